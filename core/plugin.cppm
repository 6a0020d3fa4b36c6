// Plugins and the registry that they fill. The daemon lists its built-in plugins by hand and loads
// others from shared objects; nothing registers itself.
module;
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.core.plugin;

import pagesaw.core.virt_extension;

export namespace pagesaw {

// Raised with every change of an interface that a plugin sees.
inline constexpr std::uint32_t kPluginAbiVersion = 3;

// Why a registration was refused, as a sentence that names what was refused.
struct RegistrationError {
  std::string message;
};
using RegistrationResult = std::optional<RegistrationError>;

// What all plugins of a process provide. Filled before the first VM is made, then only read.
class PluginRegistry {
 public:
  PluginRegistry();
  ~PluginRegistry();
  PluginRegistry(const PluginRegistry&) = delete;
  PluginRegistry& operator=(const PluginRegistry&) = delete;

  // Each refuses a name that is taken, an empty name, and (formats) a missing maker.
  [[nodiscard]] RegistrationResult AddExtension(std::unique_ptr<VirtExtension> extension);
  [[nodiscard]] RegistrationResult AddTdpFormat(TdpFormat format);
  // Notes that the plugin `name` is loaded.
  [[nodiscard]] RegistrationResult AddPlugin(std::string name);

  // The extension that people choose by `vendor`, or null.
  const VirtExtension* ExtensionOf(std::string_view vendor) const;
  // The format called `name`, or null.
  const TdpFormat* FindTdpFormat(std::string_view name) const;
  // The format that a VM of `vendor` uses: one that splits execute rights iff `splits_execute`.
  // Null if none is registered.
  const TdpFormat* TdpFormatOf(std::string_view vendor, bool splits_execute) const;

  const std::vector<std::string>& plugins() const { return plugins_; }
  const std::vector<std::unique_ptr<TdpFormat>>& tdp_formats() const { return tdp_formats_; }
  std::vector<std::string> vendors() const;

 private:
  std::vector<std::string> plugins_;
  std::vector<std::unique_ptr<VirtExtension>> extensions_;
  std::vector<std::unique_ptr<TdpFormat>> tdp_formats_;
};

class Plugin {
 public:
  virtual ~Plugin() = default;
  virtual std::string_view name() const = 0;
  // Adds what the plugin provides. On an error the daemon does not start.
  [[nodiscard]] virtual RegistrationResult Register(PluginRegistry& registry) = 0;
};

// What the one entry point of a plugin's shared object returns. `abi_version` stays first for ever,
// so that a plugin of another version can be told and refused.
struct PluginEntry {
  std::uint32_t abi_version = kPluginAbiVersion;
  Plugin* (*create)() = nullptr;  // the caller owns the plugin
};

// The entry point: `extern "C" const pagesaw::PluginEntry* pagesaw_plugin();`
inline constexpr const char* kPluginEntrySymbol = "pagesaw_plugin";

}  // namespace pagesaw
