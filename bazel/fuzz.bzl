"""Fuzz targets: libFuzzer programs, and tests that try their corpus and a little more."""

load("//bazel:module.bzl", "pagesaw_cc_test")

def pagesaw_fuzz_test(name, srcs, deps, corpus = [], runs = 300):
    """A program around LLVMFuzzerTestOneInput.

    As it is, a test: it tries the files of the corpus and `runs` inputs made by chance. Under
    --config=fuzzer, a fuzzer that takes libFuzzer's options and runs until it is stopped.

    Args:
      name: target name.
      srcs: where LLVMFuzzerTestOneInput is.
      deps: modules and libraries.
      corpus: files with inputs.
      runs: how many inputs the test makes up.
    """
    pagesaw_cc_test(
        name = name,
        srcs = srcs + select({
            "//bazel:fuzzing": [],
            "//conditions:default": ["//bazel:fuzz_main.cc"],
        }),
        args = select({
            "//bazel:fuzzing": ["-runs=%d" % runs],
            "//conditions:default": ["--runs=%d" % runs],
        }) + ["$(location %s)" % file for file in corpus],
        data = corpus,
        gtest_main = False,
        linkopts = select({
            "//bazel:fuzzing": ["-fsanitize=fuzzer"],
            "//conditions:default": [],
        }),
        tags = ["fuzz"],
        deps = deps,
    )
