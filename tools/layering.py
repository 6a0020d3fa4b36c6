"""Checks that folders depend downwards only.

Usage: layering.py < EDGES, where EDGES is `bazel query --output=graph --nograph:factored`.
Prints each refused edge and exits with 1 if there is one.
"""

import re
import sys

# From the ground up. Folders of one row do not see one another.
LAYERS = [
    ["core"],
    ["mmu"],
    ["cpu"],
    ["plugins/vmx", "plugins/svm", "plugins/mbec"],
    ["machine"],
    ["control"],
]
# Packages that hold build rules and settings, open to all.
_BUILD = ("", "bazel", "bazel/toolchain")
_TEST_LIBRARIES = ("gtest", "gtest_main", "gmock")
_RPC_LIBRARIES = ("grpc", "grpc++", "protobuf")

_RANK = {folder: rank for rank, row in enumerate(LAYERS) for folder in row}
_EDGE = re.compile(r'^\s*"([^"]+)" -> "([^"]+)"')


def split(label):
    """Splits //package:name."""
    package, _, name = label[2:].partition(":")
    return package, name or package.rpartition("/")[2]


def folder_of(package):
    """The folder of LAYERS that holds the package, or None."""
    for folder in _RANK:
        if package == folder or package.startswith(folder + "/"):
            return folder
    return None


def refuse(source, target):
    """Says why source must not depend on target, or returns None."""
    if not source.startswith("//") or not target.startswith("//"):
        return None
    source_package, source_name = split(source)
    package, name = split(target)
    source_folder, folder = folder_of(source_package), folder_of(package)
    if source_folder is None or package in _BUILD:
        return None
    if folder is not None:
        if folder == source_folder or _RANK[folder] < _RANK[source_folder]:
            return None
        same_row = _RANK[folder] == _RANK[source_folder]
        return "%s must not see %s, %s" % (
            source_folder, folder, "a peer" if same_row else "which is above it")
    if package == "third_party":
        if name in _TEST_LIBRARIES:
            return None
        if source_folder == "core":
            return "core depends on the standard library alone"
        if name in _RPC_LIBRARIES and source_folder != "control":
            return "only control may use gRPC and protobuf"
        return None
    if package.split("/")[0] == "guests" and (source_folder == "control" or source_name.endswith("_test")):
        return None
    return "%s must not see //%s" % (source_folder, package)


def parse(lines):
    """Yields the (source, target) pairs of a graph in dot format."""
    for line in lines:
        match = _EDGE.match(line)
        if match:
            yield match.group(1), match.group(2)


def check(edges):
    """Returns a line for each refused edge."""
    refused = []
    for source, target in edges:
        reason = refuse(source, target)
        if reason:
            refused.append("%s -> %s: %s" % (source, target, reason))
    return refused


def main():
    edges = list(parse(sys.stdin))
    refused = check(edges)
    for line in refused:
        print("layering: " + line)
    if not edges:
        print("layering: no dependencies to check")
        return 1
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
