// Shared objects that must be refused, one for each BROKEN_ macro.
#include <cstdint>
#include <memory>
#include <string_view>

import pagesaw.core.plugin;

#if defined(BROKEN_NO_SYMBOL)
extern "C" int pagesaw_something_else() { return 0; }
#elif defined(BROKEN_ABI)
// Only the first field is ever read of an entry of another version.
struct FutureEntry {
  std::uint32_t abi_version = pagesaw::kPluginAbiVersion + 1;
};
extern "C" const FutureEntry* pagesaw_plugin() {
  static constexpr FutureEntry kEntry;
  return &kEntry;
}
#elif defined(BROKEN_CREATE)
extern "C" const pagesaw::PluginEntry* pagesaw_plugin() {
  static constexpr pagesaw::PluginEntry kEntry;
  return &kEntry;
}
#elif defined(BROKEN_REGISTER)
namespace {
class Refused final : public pagesaw::Plugin {
 public:
  std::string_view name() const override { return "refused"; }
  pagesaw::RegistrationResult Register(pagesaw::PluginRegistry& registry) override {
    return registry.AddTdpFormat({.name = "formatless", .vendor = "refused"});
  }
};
pagesaw::Plugin* Create() { return std::make_unique<Refused>().release(); }
}  // namespace
extern "C" const pagesaw::PluginEntry* pagesaw_plugin() {
  static constexpr pagesaw::PluginEntry kEntry = {.create = &Create};
  return &kEntry;
}
#endif
