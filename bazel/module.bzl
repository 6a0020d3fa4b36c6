"""C++20 modules for a Bazel without `module_interfaces`, and the targets that import them.

Each interface unit and partition is precompiled to a BMI (.pcm), and its object is then made from
that BMI, so a source is parsed once. Flags come from the C++ toolchain alone.
"""

load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "ACTION_NAMES")
load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")

ModuleInfo = provider(
    doc = "BMIs that an importer of this target needs.",
    fields = {"units": "depset of struct(name, pcm): the target's module, its partitions, and theirs"},
)

def _flags_and_pcms(units):
    """Splits a depset of units into the flags that name them and the files."""
    units = units.to_list()
    return (
        ["-fmodule-file=%s=%s" % (unit.name, unit.pcm.path) for unit in units],
        [unit.pcm for unit in units],
    )

def _units_of(deps):
    return depset(
        transitive = [dep[ModuleInfo].units for dep in deps if ModuleInfo in dep],
        order = "postorder",
    )

def _toolchain(ctx):
    cc_toolchain = find_cpp_toolchain(ctx)
    feature_configuration = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = cc_toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    return struct(cc = cc_toolchain, features = feature_configuration)

def _copts(ctx):
    return [ctx.expand_location(flag, ctx.attr.data) for flag in ctx.attr.copts]

def _command_line(ctx, toolchain, context, copts):
    """The toolchain's flags for a C++ compilation that cc_common.compile does not run."""
    variables = cc_common.create_compile_variables(
        feature_configuration = toolchain.features,
        cc_toolchain = toolchain.cc,
        user_compile_flags = ctx.fragments.cpp.copts + ctx.fragments.cpp.cxxopts + copts,
        include_directories = context.includes,
        quote_include_directories = depset(
            [".", ctx.bin_dir.path],
            transitive = [context.quote_includes],
        ),
        system_include_directories = context.system_includes,
        preprocessor_defines = depset(transitive = [context.defines, context.local_defines]),
    )
    return cc_common.get_memory_inefficient_command_line(
        feature_configuration = toolchain.features,
        action_name = ACTION_NAMES.cpp_compile,
        variables = variables,
    )

def _run_clang(ctx, toolchain, arguments, inputs, output, mnemonic, message):
    ctx.actions.run(
        executable = cc_common.get_tool_for_action(
            feature_configuration = toolchain.features,
            action_name = ACTION_NAMES.cpp_compile,
        ),
        arguments = [arguments],
        inputs = inputs,
        outputs = [output],
        env = {"PWD": "/proc/self/cwd"},
        mnemonic = mnemonic,
        progress_message = "%s %s" % (message, output.short_path),
    )

def _tidy(ctx, sources, context, copts, units):
    """Declares one clang-tidy report for each (source, language) pair."""
    toolchain = _toolchain(ctx)
    module_flags, pcms = _flags_and_pcms(units)
    reports = []
    for source in sources:
        report = ctx.actions.declare_file("_tidy/%s/%s.txt" % (ctx.label.name, source.basename))
        arguments = ctx.actions.args()
        arguments.add(report)
        arguments.add(source)
        arguments.add_all(_command_line(ctx, toolchain, context, copts))
        arguments.add_all(module_flags)
        arguments.add_all(["-x", "c++-module" if source.extension == "cppm" else "c++"])
        ctx.actions.run_shell(
            command = """
report=$1; source=$2; shift 2
/usr/lib/llvm-19/bin/clang-tidy --quiet --config-file=.clang-tidy "$source" -- "$@" > "$report" 2>&1 ||
  { cat "$report"; exit 1; }
""",
            arguments = [arguments],
            inputs = depset(
                [source, ctx.file._tidy_config] + pcms,
                transitive = [context.headers],
            ),
            outputs = [report],
            mnemonic = "ClangTidy",
            progress_message = "Linting %s" % source.short_path,
        )
        reports.append(report)
    return depset(reports)

def _compile(ctx, toolchain, units, contexts, public_headers = [], private_headers = [], includes = []):
    """Compiles ctx.files.srcs as importers of `units`."""
    module_flags, pcms = _flags_and_pcms(units)
    copts = _copts(ctx)
    context, outputs = cc_common.compile(
        actions = ctx.actions,
        feature_configuration = toolchain.features,
        cc_toolchain = toolchain.cc,
        name = ctx.label.name,
        srcs = ctx.files.srcs,
        public_hdrs = public_headers,
        private_hdrs = private_headers,
        system_includes = includes,
        local_defines = ctx.attr.local_defines,
        user_compile_flags = copts + module_flags,
        compilation_contexts = contexts,
        additional_inputs = pcms,
    )
    return context, outputs

def _cc_infos(deps):
    return [dep[CcInfo] for dep in deps if CcInfo in dep]

def _compilation_contexts(deps):
    return [info.compilation_context for info in _cc_infos(deps)]

def _linking_contexts(deps):
    return [info.linking_context for info in _cc_infos(deps)]

def _runfiles(ctx):
    runfiles = ctx.runfiles(files = ctx.files.data)
    for dep in ctx.attr.data + ctx.attr.deps + getattr(ctx.attr, "implementation_deps", []):
        runfiles = runfiles.merge(dep[DefaultInfo].default_runfiles)
        runfiles = runfiles.merge(dep[DefaultInfo].data_runfiles)
    return runfiles

def _cc_module_impl(ctx):
    toolchain = _toolchain(ctx)
    copts = _copts(ctx)
    own_headers = cc_common.create_compilation_context(
        headers = depset(ctx.files.hdrs),
        local_defines = depset(ctx.attr.local_defines),
    )
    interface_context = cc_common.merge_cc_infos(
        cc_infos = [CcInfo(compilation_context = own_headers)] + _cc_infos(ctx.attr.deps),
    ).compilation_context
    flags = _command_line(
        ctx,
        toolchain,
        interface_context,
        copts + ["-D" + define for define in ctx.attr.local_defines],
    )

    interfaces = ctx.files.partition_srcs + [ctx.file.interface]
    names = ctx.attr.partition_names + [ctx.attr.module]
    if len(interfaces) != len(names):
        fail("each partition must be one file")
    for name in ctx.attr.partition_names:
        if not name.startswith(ctx.attr.module + ":"):
            fail("partition %s is not one of module %s" % (name, ctx.attr.module))

    units = _units_of(ctx.attr.deps)
    objects = []
    for source, name in zip(interfaces, names):
        module_flags, pcms = _flags_and_pcms(units)
        file_name = name.replace(":", "-")
        pcm = ctx.actions.declare_file("_pcms/%s/%s.pcm" % (ctx.label.name, file_name))
        object = ctx.actions.declare_file("_objs/%s/%s.pcm.o" % (ctx.label.name, file_name))

        precompile = ctx.actions.args()
        precompile.add_all(flags)
        precompile.add_all(module_flags)
        precompile.add_all(["-Xclang", "-fmodules-embed-all-files", "--precompile", "-x", "c++-module"])
        precompile.add_all([source, "-o", pcm])
        _run_clang(
            ctx,
            toolchain,
            precompile,
            depset([source] + pcms, transitive = [interface_context.headers]),
            pcm,
            "CppModulePrecompile",
            "Precompiling",
        )

        codegen = ctx.actions.args()
        codegen.add_all(flags)
        codegen.add_all(module_flags)
        codegen.add_all(["-c", pcm, "-o", object])
        _run_clang(
            ctx,
            toolchain,
            codegen,
            depset([pcm] + pcms),
            object,
            "CppModuleCodegen",
            "Compiling",
        )

        objects.append(object)
        units = depset([struct(name = name, pcm = pcm)], transitive = [units], order = "postorder")

    outputs = [cc_common.create_compilation_outputs(objects = depset(objects))]
    implementation_units = depset(
        transitive = [units, _units_of(ctx.attr.implementation_deps)],
        order = "postorder",
    )
    all_deps = ctx.attr.deps + ctx.attr.implementation_deps
    if ctx.files.srcs:
        _, compiled = _compile(
            ctx,
            toolchain,
            implementation_units,
            _compilation_contexts(all_deps),
            private_headers = ctx.files.hdrs,
        )
        outputs.append(compiled)
    linking_context, _ = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        feature_configuration = toolchain.features,
        cc_toolchain = toolchain.cc,
        name = ctx.label.name,
        compilation_outputs = cc_common.merge_compilation_outputs(compilation_outputs = outputs),
        linking_contexts = _linking_contexts(all_deps),
        user_link_flags = ctx.attr.linkopts,
        alwayslink = ctx.attr.alwayslink,
        disallow_dynamic_library = True,
    )

    context = cc_common.merge_cc_infos(cc_infos = _cc_infos(ctx.attr.deps)).compilation_context
    pcms = [unit.pcm for unit in units.to_list() if unit.name in names]
    return [
        DefaultInfo(files = depset(pcms + objects), runfiles = _runfiles(ctx)),
        CcInfo(compilation_context = context, linking_context = linking_context),
        ModuleInfo(units = units),
        OutputGroupInfo(
            pcms = depset(pcms),
            tidy = _tidy(
                ctx,
                interfaces + ctx.files.srcs,
                cc_common.merge_cc_infos(cc_infos = [
                    CcInfo(compilation_context = interface_context),
                ] + _cc_infos(ctx.attr.implementation_deps)).compilation_context,
                copts + ["-D" + define for define in ctx.attr.local_defines],
                implementation_units,
            ),
        ),
    ]

def _cc_library_impl(ctx):
    toolchain = _toolchain(ctx)
    units = _units_of(ctx.attr.deps)
    context, outputs = _compile(
        ctx,
        toolchain,
        units,
        _compilation_contexts(ctx.attr.deps),
        public_headers = ctx.files.hdrs,
    )
    linking_context, _ = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        feature_configuration = toolchain.features,
        cc_toolchain = toolchain.cc,
        name = ctx.label.name,
        compilation_outputs = outputs,
        linking_contexts = _linking_contexts(ctx.attr.deps),
        user_link_flags = ctx.attr.linkopts,
        alwayslink = ctx.attr.alwayslink,
        disallow_dynamic_library = True,
    )
    return [
        DefaultInfo(files = depset(outputs.objects), runfiles = _runfiles(ctx)),
        CcInfo(compilation_context = context, linking_context = linking_context),
        OutputGroupInfo(tidy = _tidy_of_sources(ctx, units, context)),
    ]

def _tidy_of_sources(ctx, units, context):
    sources = [source for source in ctx.files.srcs if source.extension == "cc"]
    return _tidy(ctx, sources, context, _copts(ctx) + ["-D" + define for define in ctx.attr.local_defines], units)

def _link(ctx, linkshared):
    toolchain = _toolchain(ctx)
    units = _units_of(ctx.attr.deps)
    context, outputs = _compile(
        ctx,
        toolchain,
        units,
        _compilation_contexts(ctx.attr.deps),
        private_headers = ctx.files.hdrs,
    )
    linked = cc_common.link(
        actions = ctx.actions,
        feature_configuration = toolchain.features,
        cc_toolchain = toolchain.cc,
        name = ctx.label.name,
        output_type = "dynamic_library" if linkshared else "executable",
        compilation_outputs = outputs,
        linking_contexts = _linking_contexts(ctx.attr.deps),
        user_link_flags = [ctx.expand_location(flag, ctx.attr.data) for flag in ctx.attr.linkopts],
        additional_inputs = ctx.files.data,
    )
    return linked, OutputGroupInfo(tidy = _tidy_of_sources(ctx, units, context))

def _cc_binary_impl(ctx):
    linked, groups = _link(ctx, linkshared = False)
    return [
        DefaultInfo(
            executable = linked.executable,
            files = depset([linked.executable]),
            runfiles = _runfiles(ctx),
        ),
        groups,
    ]

def _cc_shared_impl(ctx):
    linked, groups = _link(ctx, linkshared = True)
    library = linked.library_to_link.resolved_symlink_dynamic_library or linked.library_to_link.dynamic_library
    return [
        DefaultInfo(files = depset([library]), runfiles = _runfiles(ctx)),
        groups,
    ]

def _cc_test_impl(ctx):
    linked, groups = _link(ctx, linkshared = False)
    return [
        DefaultInfo(
            executable = linked.executable,
            files = depset([linked.executable]),
            runfiles = _runfiles(ctx),
        ),
        groups,
        testing.TestEnvironment({
            name: ctx.expand_location(value, ctx.attr.data)
            for name, value in ctx.attr.env.items()
        }),
    ]

_COMMON_ATTRS = {
    "srcs": attr.label_list(allow_files = [".cc", ".c", ".S", ".h", ".inc"]),
    "hdrs": attr.label_list(
        allow_files = True,
        doc = "textual headers and tables (.h, .inc)",
    ),
    "deps": attr.label_list(providers = [CcInfo]),
    "data": attr.label_list(allow_files = True),
    "copts": attr.string_list(),
    "local_defines": attr.string_list(),
    "linkopts": attr.string_list(),
    "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    "_tidy_config": attr.label(default = "//:.clang-tidy", allow_single_file = True),
}

_TOOLCHAINS = ["@bazel_tools//tools/cpp:toolchain_type"]

_cc_module = rule(
    implementation = _cc_module_impl,
    attrs = dict(
        _COMMON_ATTRS,
        interface = attr.label(allow_single_file = [".cppm"], mandatory = True),
        module = attr.string(mandatory = True),
        partition_srcs = attr.label_list(allow_files = [".cppm"]),
        partition_names = attr.string_list(),
        implementation_deps = attr.label_list(providers = [CcInfo]),
        alwayslink = attr.bool(),
    ),
    fragments = ["cpp"],
    toolchains = _TOOLCHAINS,
    provides = [CcInfo, ModuleInfo],
)

_cc_library = rule(
    implementation = _cc_library_impl,
    attrs = dict(_COMMON_ATTRS, alwayslink = attr.bool()),
    fragments = ["cpp"],
    toolchains = _TOOLCHAINS,
    provides = [CcInfo],
)

_cc_binary = rule(
    implementation = _cc_binary_impl,
    attrs = _COMMON_ATTRS,
    executable = True,
    fragments = ["cpp"],
    toolchains = _TOOLCHAINS,
)

_cc_shared = rule(
    implementation = _cc_shared_impl,
    attrs = _COMMON_ATTRS,
    fragments = ["cpp"],
    toolchains = _TOOLCHAINS,
)

_cc_test = rule(
    implementation = _cc_test_impl,
    attrs = dict(_COMMON_ATTRS, env = attr.string_dict()),
    fragments = ["cpp"],
    test = True,
    toolchains = _TOOLCHAINS,
)

def cc_module(name, interface, module, partitions = {}, **kwargs):
    """One named module.

    Args:
      name: target name.
      interface: the primary interface unit (.cppm).
      module: the module's name, for example "pagesaw.mmu".
      partitions: {file: "pagesaw.mmu:part"}, a partition after those that it imports.
      **kwargs: srcs (implementation units), deps (modules and libraries that the interface uses),
        implementation_deps (those that only srcs use), hdrs (textual headers), copts,
        local_defines, linkopts, alwayslink, visibility, testonly, tags.
    """
    _cc_module(
        name = name,
        interface = interface,
        module = module,
        partition_srcs = partitions.keys(),
        partition_names = partitions.values(),
        **kwargs
    )

def pagesaw_cc_library(name, **kwargs):
    """A library whose .cc files import modules; its headers must not."""
    _cc_library(name = name, **kwargs)

def pagesaw_cc_binary(name, linkshared = False, **kwargs):
    """A program, or with linkshared the shared object lib<name>.so, whose .cc files import modules."""
    rule = _cc_shared if linkshared else _cc_binary
    rule(name = name, **kwargs)

def pagesaw_cc_test(name, deps = [], gtest_main = True, size = "small", **kwargs):
    """A GoogleTest program whose .cc files import modules."""
    _cc_test(
        name = name,
        size = size,
        deps = deps + (["//third_party:gtest_main"] if gtest_main else ["//third_party:gtest"]),
        **kwargs
    )
