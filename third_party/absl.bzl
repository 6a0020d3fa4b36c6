"""Targets for Abseil's packaged libraries."""

# Libraries that Abseil's own headers call behind the named ones. The linker keeps those in use.
_BEHIND = [
    "bad_any_cast_impl",
    "bad_optional_access",
    "bad_variant_access",
    "base",
    "city",
    "hash",
    "int128",
    "log_severity",
    "low_level_hash",
    "raw_logging_internal",
    "spinlock_wait",
    "strings",
    "strings_internal",
    "throw_delegate",
]

def absl_library(name, libs = []):
    """Declares //third_party:absl_<name>, which links the shared libraries absl_<lib>."""
    native.cc_library(
        name = "absl_" + name,
        linkopts = ["-labsl_" + lib for lib in libs + [lib for lib in _BEHIND if lib not in libs]],
    )
