"""Freestanding 64-bit guests: multiboot v1 images in an ELF32 container.

A guest is linked as ELF64 at 1 MiB, then rewrapped, because multiboot v1 loaders take ELF32 only.
"""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")

_COMMON = [
    "--target=x86_64-unknown-none-elf",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Werror",
    "-no-canonical-prefixes",
    "-ffile-compilation-dir=.",
    "-I.",
]

# For code that interrupts whatever runs.
_KERNEL = ["-mno-red-zone", "-mgeneral-regs-only"]

_CXX = ["-std=c++20", "-O2", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"]

def _compile(ctx, clang, options):
    objects = []
    for source in ctx.files.srcs:
        object = ctx.actions.declare_file("_guests/%s/%s.o" % (ctx.label.name, source.basename))
        arguments = ctx.actions.args()
        arguments.add_all(options)
        if source.extension == "cc":
            arguments.add_all(_CXX)
        arguments.add_all(["-c", source, "-o", object])
        ctx.actions.run(
            executable = clang,
            arguments = [arguments],
            inputs = [source] + ctx.files.hdrs,
            outputs = [object],
            mnemonic = "GuestCompile",
            progress_message = "Compiling %s for a guest" % source.short_path,
        )
        objects.append(object)
    return objects

def _guest_image_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    clang = toolchain.compiler_executable

    objects = _compile(ctx, clang, _COMMON + _KERNEL)

    linked = ctx.actions.declare_file("_guests/%s/%s.elf64" % (ctx.label.name, ctx.label.name))
    arguments = ctx.actions.args()
    arguments.add_all(["-static", "-nostdlib", "--build-id=none", "-z", "noexecstack", "--gc-sections"])
    arguments.add_all(["-T", ctx.file._linker_script, "-o", linked])
    arguments.add_all(objects)
    ctx.actions.run(
        # The toolchain's linker is named for its driver; lld picks its flavour by this name.
        executable = toolchain.ld_executable,
        arguments = [arguments],
        inputs = objects + [ctx.file._linker_script],
        outputs = [linked],
        mnemonic = "GuestLink",
        progress_message = "Linking guest %s" % ctx.label.name,
    )

    ctx.actions.run(
        executable = toolchain.objcopy_executable,
        arguments = ["-O", "elf32-i386", linked.path, ctx.outputs.image.path],
        inputs = [linked],
        outputs = [ctx.outputs.image],
        mnemonic = "GuestWrap",
        progress_message = "Wrapping guest %s" % ctx.label.name,
    )
    return [DefaultInfo(files = depset([ctx.outputs.image]))]

_guest_image = rule(
    implementation = _guest_image_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cc", ".S"]),
        "hdrs": attr.label_list(allow_files = [".h", ".inc"]),
        "image": attr.output(mandatory = True),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
        "_linker_script": attr.label(default = "//guests:link.ld", allow_single_file = True),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

def guest_image(name, srcs, hdrs = [], **kwargs):
    """A guest, in the file <name>.elf.

    Args:
      name: target name.
      srcs: C++ and assembly. One of them defines `_start`, entered in 32-bit protected mode with EBX =
        multiboot information; support/boot.S does and goes on to GuestMain in 64-bit mode.
      hdrs: headers of all of them.
      **kwargs: visibility and the like.
    """
    _guest_image(name = name, srcs = srcs, hdrs = hdrs, image = name + ".elf", **kwargs)

def _linux_program_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    objects = _compile(ctx, toolchain.compiler_executable, _COMMON)
    arguments = ctx.actions.args()
    arguments.add_all(["-static", "-nostdlib", "--build-id=none", "-z", "noexecstack", "--gc-sections"])
    arguments.add_all(["-o", ctx.outputs.program])
    arguments.add_all(objects)
    ctx.actions.run(
        executable = toolchain.ld_executable,
        arguments = [arguments],
        inputs = objects,
        outputs = [ctx.outputs.program],
        mnemonic = "GuestLink",
        progress_message = "Linking %s for a guest" % ctx.label.name,
    )
    return [DefaultInfo(files = depset([ctx.outputs.program]))]

_linux_program = rule(
    implementation = _linux_program_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cc", ".S"]),
        "hdrs": attr.label_list(allow_files = [".h"]),
        "program": attr.output(mandatory = True),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

def linux_program(name, **kwargs):
    """A static program for Linux on a guest, without any library; the output is `<name>.linux`."""
    _linux_program(name = name, program = name + ".linux", **kwargs)
