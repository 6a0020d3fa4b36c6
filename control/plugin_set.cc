module;
#include <absl/status/status.h>
#include <absl/strings/str_cat.h>
#include <dlfcn.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
module pagesaw.control.plugin_set;

namespace pagesaw {
namespace {

// What the loader last complained about.
std::string LoaderError() {
  const char* error = dlerror();
  return error == nullptr ? "unknown error" : error;
}

using EntryPoint = const PluginEntry* (*)();

// UBSan compares what it knows of the function's type, which another binary's compiler noted:
// without it.
[[clang::no_sanitize("function")]] const PluginEntry* Call(EntryPoint entry_point) {
  return entry_point();
}

}  // namespace

absl::Status PluginSet::Add(std::unique_ptr<Plugin> plugin) {
  if (auto error = registry_.AddPlugin(std::string(plugin->name()))) {
    return absl::AlreadyExistsError(error->message);
  }
  if (auto error = plugin->Register(registry_)) {
    const auto name = plugin->name();
    return absl::InvalidArgumentError(
        absl::StrCat("plugin '", std::string(name), "': ", error->message));
  }
  plugins_.push_back(std::move(plugin));
  return absl::OkStatus();
}

absl::Status PluginSet::Load(const std::string& path) {
  if (access(path.c_str(), F_OK) != 0) {
    return absl::NotFoundError(absl::StrCat(path, ": there is no such file"));
  }
  // Without a slash the loader would look in its own directories.
  const std::string file = path.find('/') == std::string::npos ? "./" + path : path;
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a shared object that can be loaded: ", LoaderError()));
  }
  const auto entry_point = reinterpret_cast<EntryPoint>(dlsym(handle, kPluginEntrySymbol));
  if (entry_point == nullptr) {
    dlclose(handle);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a plugin: it has no symbol '", kPluginEntrySymbol, "'"));
  }
  const PluginEntry* entry = Call(entry_point);
  if (entry == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a plugin: '", kPluginEntrySymbol, "' returned nothing"));
  }
  if (entry->abi_version != kPluginAbiVersion) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": built for plugin ABI version ",
                                                      entry->abi_version, ", this program has ",
                                                      kPluginAbiVersion));
  }
  std::unique_ptr<Plugin> plugin(entry->create == nullptr ? nullptr : entry->create());
  if (plugin == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the plugin could not be created"));
  }
  const absl::Status added = Add(std::move(plugin));
  if (!added.ok()) return absl::Status(added.code(), absl::StrCat(path, ": ", added.message()));
  return absl::OkStatus();
}

}  // namespace pagesaw
