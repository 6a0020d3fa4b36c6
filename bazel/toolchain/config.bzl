"""clang 19, lld and libstdc++ 12 as Debian installs them.

The one place for compiler and linker flags: the module actions of //bazel:module.bzl take theirs
from here too. All code is position independent, so each source is compiled once, whether it ends in
a program or in a shared object.
"""

load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "ACTION_NAMES")
load(
    "@bazel_tools//tools/cpp:cc_toolchain_config_lib.bzl",
    "feature",
    "flag_group",
    "flag_set",
    "tool_path",
    "with_feature_set",
)

_LLVM = "/usr/lib/llvm-19"

_CXX_COMPILE = [
    ACTION_NAMES.cpp_compile,
    ACTION_NAMES.cpp_header_parsing,
    ACTION_NAMES.cpp_module_compile,
    ACTION_NAMES.cpp_module_codegen,
    ACTION_NAMES.linkstamp_compile,
]

_COMPILE = _CXX_COMPILE + [
    ACTION_NAMES.assemble,
    ACTION_NAMES.c_compile,
    ACTION_NAMES.preprocess_assemble,
]

_LINK = [
    ACTION_NAMES.cpp_link_executable,
    ACTION_NAMES.cpp_link_dynamic_library,
    ACTION_NAMES.cpp_link_nodeps_dynamic_library,
]

def _flags(actions, flags, when = None, unless = None):
    conditions = []
    if when or unless:
        conditions = [with_feature_set(features = when or [], not_features = unless or [])]
    return flag_set(
        actions = actions,
        flag_groups = [flag_group(flags = flags)],
        with_features = conditions,
    )

def _sanitizer(name, sanitizers, flags):
    return feature(
        name = name,
        flag_sets = [
            _flags(_COMPILE, ["-fsanitize=" + sanitizers, "-fno-omit-frame-pointer", "-gline-tables-only"] + flags),
            _flags(_LINK, ["-fsanitize=" + sanitizers]),
        ],
        provides = ["sanitizer"],
    )

def _impl(ctx):
    features = [
        feature(name = "fastbuild"),
        feature(name = "dbg"),
        feature(name = "opt"),
        # Objects go to the linker as they are; no archives are written.
        feature(name = "supports_start_end_lib", enabled = True),
        feature(
            name = "default_compile_flags",
            enabled = True,
            flag_sets = [
                _flags(_COMPILE, [
                    "-fPIC",
                    "-fno-plt",
                    "-fstack-protector-strong",
                    "-ffunction-sections",
                    "-fdata-sections",
                    "-pthread",
                ]),
                _flags(_COMPILE, ["-O1", "-g0", "-D_GLIBCXX_ASSERTIONS"], unless = ["dbg", "opt"]),
                _flags(_COMPILE, ["-O0", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"], when = ["dbg"]),
                _flags(_COMPILE, ["-O2", "-g0", "-DNDEBUG", "-D_FORTIFY_SOURCE=2"], when = ["opt"]),
                _flags(_CXX_COMPILE, ["-std=c++20"]),
            ],
        ),
        feature(
            name = "warnings",
            enabled = True,
            flag_sets = [_flags(_COMPILE, [
                "-Wall",
                "-Wextra",
                "-Wshadow",
                "-Werror",
                "-Wno-unused-command-line-argument",
            ])],
        ),
        # Frames of dynamic size cannot be had with the calling convention preserve_none.
        _sanitizer("asan", "address,undefined", [
            "-fno-sanitize-recover=all",
            "-mllvm",
            "-asan-stack-dynamic-alloca=0",
        ]),
        _sanitizer("tsan", "thread", []),
        # Coverage for libFuzzer, whose main comes with //bazel:fuzz.bzl, and what asan has.
        _sanitizer("fuzzer", "fuzzer-no-link,address,undefined", [
            "-fno-sanitize-recover=all",
            "-mllvm",
            "-asan-stack-dynamic-alloca=0",
        ]),
        feature(
            name = "default_link_flags",
            enabled = True,
            flag_sets = [
                _flags(_LINK, [
                    "--driver-mode=g++",
                    "-fuse-ld=lld",
                    "-no-canonical-prefixes",
                    "-pthread",
                    "-Wl,--as-needed",
                    "-Wl,-z,relro,-z,now",
                    "-Wl,--build-id=sha1",
                ]),
                _flags([ACTION_NAMES.cpp_link_executable], ["-pie"]),
                _flags(_LINK, ["-Wl,--gc-sections"], when = ["opt"]),
            ],
        ),
        # Last on the command line: nothing of the machine, the time or the path may enter an output.
        feature(
            name = "unfiltered_compile_flags",
            enabled = True,
            flag_sets = [_flags(_COMPILE, [
                "-no-canonical-prefixes",
                "-ffile-compilation-dir=.",
                "-Wno-builtin-macro-redefined",
                "-D__DATE__=\"redacted\"",
                "-D__TIMESTAMP__=\"redacted\"",
                "-D__TIME__=\"redacted\"",
            ])],
        ),
    ]

    tools = {
        "ar": "llvm-ar",
        "cpp": "clang-cpp",
        "dwp": "llvm-dwp",
        "gcc": "clang",
        "gcov": "llvm-cov",
        "ld": "ld.lld",
        "nm": "llvm-nm",
        "objcopy": "llvm-objcopy",
        "objdump": "llvm-objdump",
        "strip": "llvm-strip",
    }
    return cc_common.create_cc_toolchain_config_info(
        ctx = ctx,
        toolchain_identifier = "clang-19-x86_64",
        host_system_name = "x86_64-linux-gnu",
        target_system_name = "x86_64-linux-gnu",
        target_cpu = "k8",
        target_libc = "glibc",
        compiler = "clang",
        abi_version = "libstdc++",
        abi_libc_version = "glibc",
        features = features,
        tool_paths = [
            tool_path(name = name, path = _LLVM + "/bin/" + tool)
            for name, tool in tools.items()
        ],
        cxx_builtin_include_directories = [
            "/usr/include",
            "/usr/lib/gcc",
            _LLVM + "/lib/clang/19",
        ],
    )

clang_toolchain_config = rule(
    implementation = _impl,
    provides = [CcToolchainConfigInfo],
)
