"""Protocol buffer and gRPC code from the system's protoc."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")

ProtoSourcesInfo = provider(
    doc = "What an importing .proto needs.",
    fields = {
        "sources": "depset of .proto files",
        "roots": "depset of directories that import paths are relative to",
    },
)

_PROTOC = "/usr/bin/protoc"
_GRPC_PLUGIN = "/usr/bin/grpc_cpp_plugin"

def _impl(ctx):
    root = ctx.label.package
    if ctx.attr.strip_import_prefix:
        root = (root + "/" if root else "") + ctx.attr.strip_import_prefix
    generated_root = ctx.bin_dir.path + "/" + root

    sources = depset(ctx.files.srcs, transitive = [dep[ProtoSourcesInfo].sources for dep in ctx.attr.deps])
    roots = depset([root], transitive = [dep[ProtoSourcesInfo].roots for dep in ctx.attr.deps])

    headers = []
    code = []
    for source in ctx.files.srcs:
        if not source.short_path.startswith(root + "/"):
            fail("%s does not lie in %s" % (source.short_path, root))
        stem = source.short_path[:-len(".proto")][len(ctx.label.package) + 1 if ctx.label.package else 0:]
        for kind in [".pb"] + ([".grpc.pb"] if ctx.attr.grpc else []):
            headers.append(ctx.actions.declare_file(stem + kind + ".h"))
            code.append(ctx.actions.declare_file(stem + kind + ".cc"))
    descriptors = ctx.actions.declare_file(ctx.label.name + ".descriptors.pb")

    arguments = ctx.actions.args()
    arguments.add_all(roots, format_each = "-I%s")
    arguments.add(generated_root, format = "--cpp_out=%s")
    if ctx.attr.grpc:
        arguments.add("--plugin=protoc-gen-grpc=" + _GRPC_PLUGIN)
        arguments.add(generated_root, format = "--grpc_out=%s")
    arguments.add(descriptors, format = "--descriptor_set_out=%s")
    arguments.add("--include_imports")
    arguments.add_all(ctx.files.srcs)
    ctx.actions.run(
        executable = _PROTOC,
        arguments = [arguments],
        inputs = sources,
        outputs = headers + code + [descriptors],
        mnemonic = "Protoc",
        progress_message = "Generating C++ for %s" % ctx.label,
    )

    cc_toolchain = find_cpp_toolchain(ctx)
    feature_configuration = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = cc_toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    libraries = [dep[CcInfo] for dep in ctx.attr.deps + ctx.attr._runtime]
    context, outputs = cc_common.compile(
        actions = ctx.actions,
        feature_configuration = feature_configuration,
        cc_toolchain = cc_toolchain,
        name = ctx.label.name,
        srcs = code,
        public_hdrs = headers,
        system_includes = [generated_root],
        user_compile_flags = ["-w"],
        compilation_contexts = [library.compilation_context for library in libraries],
    )
    linking_context, _ = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        feature_configuration = feature_configuration,
        cc_toolchain = cc_toolchain,
        name = ctx.label.name,
        compilation_outputs = outputs,
        linking_contexts = [library.linking_context for library in libraries],
        disallow_dynamic_library = True,
    )
    return [
        DefaultInfo(files = depset(outputs.objects)),
        CcInfo(compilation_context = context, linking_context = linking_context),
        ProtoSourcesInfo(sources = sources, roots = roots),
        OutputGroupInfo(headers = depset(headers), descriptors = depset([descriptors])),
    ]

pagesaw_proto_library = rule(
    implementation = _impl,
    doc = "C++ (and with grpc, service stubs) for .proto files; include by the path below strip_import_prefix.",
    attrs = {
        "srcs": attr.label_list(allow_files = [".proto"], mandatory = True),
        "deps": attr.label_list(providers = [CcInfo, ProtoSourcesInfo]),
        "strip_import_prefix": attr.string(default = "proto", doc = "folder of this package"),
        "grpc": attr.bool(default = True),
        "_runtime": attr.label_list(default = ["//third_party:protobuf", "//third_party:grpc"]),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
    provides = [CcInfo, ProtoSourcesInfo],
)
