// The plugins of a process: built-in ones that it is handed, others loaded from shared objects, and
// the registry that they all fill.
module;
#include <absl/status/status.h>

#include <memory>
#include <string>
#include <vector>
export module pagesaw.control.plugin_set;

import pagesaw.core.plugin;

export namespace pagesaw {

// Filled before the first VM is made. After an error it must not be used any further: a plugin may
// have registered half of what it provides.
class PluginSet {
 public:
  // Lets `plugin` register what it provides. AlreadyExists if it, or something it provides, has a
  // name that is taken; InvalidArgument for what the registry refuses otherwise.
  absl::Status Add(std::unique_ptr<Plugin> plugin);

  // Loads the shared object at `path` and adds its plugin. It stays loaded until the process ends.
  // NotFound if there is no such file; InvalidArgument if it is not a loadable shared object or has
  // no entry point; FailedPrecondition if it was built for another ABI version; else as `Add`.
  absl::Status Load(const std::string& path);

  const PluginRegistry& registry() const { return registry_; }

 private:
  std::vector<std::unique_ptr<Plugin>> plugins_;
  PluginRegistry registry_;  // goes first: it holds what plugins made
};

}  // namespace pagesaw
