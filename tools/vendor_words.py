"""Checks that folders which know no vendor name none of their structures.

Usage: vendor_words.py FILE...
Looks at identifiers, not at comments or texts: the manuals may be cited anywhere. Prints each
refused name and exits with 1 if there is one.
"""

import re
import sys

# The folders, and whose files are looked at. Tests there may play a vendor's part.
FOLDERS = ("core/", "mmu/", "cpu/", "machine/")
# Control structures, their pointers and fields, as words of an identifier, or words in a row.
# Instructions and features of CPUID are no structures: decoders and CPUID name them.
WORDS = (
    ("vmcs",), ("vmcb",), ("eptp",), ("ncr3",), ("hsave",), ("exitinfo",), ("exitintinfo",),
    ("n", "cr3"), ("ept", "pointer"), ("ept", "entry"), ("npt", "entry"), ("nested", "cr3"), ("host", "save"),
    ("exit", "info"), ("exit", "qualification"),
)

_NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+")


def words_of(identifier):
    """Splits CamelCase and snake_case into words in small letters; a final number belongs to one."""
    return [word.lower() for word in _WORD.findall(identifier)]


def names_vendor(identifier):
    """Whether an identifier names a vendor's structure, also with a number behind (as in Vmcs12)."""
    words = words_of(identifier)
    bare = [word if word in ("ncr3", "cr3") else word.rstrip("0123456789") for word in words]
    for phrase in WORDS:
        for start in range(len(bare) - len(phrase) + 1):
            if tuple(bare[start:start + len(phrase)]) == phrase:
                return True
    return False


def check(name, text):
    """Returns a line for each refused identifier of a file."""
    if not name.startswith(FOLDERS) or "_test" in name:
        return []
    blank = lambda match: "\n" * match.group(0).count("\n")
    refused = []
    for number, line in enumerate(_NOT_CODE.sub(blank, text).split("\n"), 1):
        for identifier in _IDENTIFIER.findall(line):
            if names_vendor(identifier):
                refused.append("%s:%d: '%s' names a vendor's structure" % (name, number, identifier))
    return refused


def main():
    refused = []
    for name in sys.argv[1:]:
        with open(name, encoding="utf-8") as file:
            refused += check(name, file.read())
    for line in refused:
        print("layering: " + line)
    if len(sys.argv) == 1:
        print("layering: no files to check")
        return 1
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
