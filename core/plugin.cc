module;
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
module pagesaw.core.plugin;

namespace pagesaw {
namespace {

RegistrationError Refuse(std::string_view what, std::string_view name, std::string_view why) {
  std::string message(what);
  message += " '";
  message += name;
  message += "': ";
  message += why;
  return RegistrationError{std::move(message)};
}

}  // namespace

PluginRegistry::PluginRegistry() = default;
PluginRegistry::~PluginRegistry() = default;

RegistrationResult PluginRegistry::AddPlugin(std::string name) {
  if (name.empty()) return Refuse("plugin", name, "the name is empty");
  for (const std::string& known : plugins_) {
    if (known == name) return Refuse("plugin", name, "a plugin of that name is loaded already");
  }
  plugins_.push_back(std::move(name));
  return std::nullopt;
}

RegistrationResult PluginRegistry::AddExtension(std::unique_ptr<VirtExtension> extension) {
  const std::string_view name = extension->name();
  if (name.empty()) return Refuse("extension", name, "the name is empty");
  if (extension->cpuid_vendor().size() != 12) {
    return Refuse("extension", name, "the CPUID vendor string must have 12 characters");
  }
  for (const auto& known : extensions_) {
    if (known->name() == name) {
      return Refuse("extension", name, "an extension of that name is registered already");
    }
    if (known->vendor() == extension->vendor()) {
      return Refuse("extension", name, "its vendor has an extension already");
    }
  }
  extensions_.push_back(std::move(extension));
  return std::nullopt;
}

RegistrationResult PluginRegistry::AddTdpFormat(TdpFormat format) {
  if (format.name.empty()) return Refuse("TDP format", format.name, "the name is empty");
  if (format.make == nullptr) return Refuse("TDP format", format.name, "it has no maker");
  if (FindTdpFormat(format.name) != nullptr) {
    return Refuse("TDP format", format.name, "a format of that name is registered already");
  }
  tdp_formats_.push_back(std::make_unique<TdpFormat>(std::move(format)));
  return std::nullopt;
}

const VirtExtension* PluginRegistry::ExtensionOf(std::string_view vendor) const {
  for (const auto& extension : extensions_) {
    if (extension->vendor() == vendor) return extension.get();
  }
  return nullptr;
}

const TdpFormat* PluginRegistry::FindTdpFormat(std::string_view name) const {
  for (const auto& format : tdp_formats_) {
    if (format->name == name) return format.get();
  }
  return nullptr;
}

const TdpFormat* PluginRegistry::TdpFormatOf(std::string_view vendor, bool splits_execute) const {
  for (const auto& format : tdp_formats_) {
    if (format->vendor == vendor && format->splits_execute == splits_execute) return format.get();
  }
  return nullptr;
}

std::vector<std::string> PluginRegistry::vendors() const {
  std::vector<std::string> result;
  result.reserve(extensions_.size());
  for (const auto& extension : extensions_) result.emplace_back(extension->vendor());
  return result;
}

}  // namespace pagesaw
