// A plugin outside the tree of the daemon: a second-stage format of its own, whose entries have the
// present bit of NPT but grant execution by a bit, as EPT does.
#include <cstdint>
#include <memory>
#include <string_view>

import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.plugin;
import pagesaw.core.virt_extension;

namespace pagesaw::example {
namespace {

PageFormat MakeFormat(unsigned physical_bits) {
  PageFormat format;
  format.layout.present = 1u << 0;
  format.layout.write = 1u << 1;
  format.layout.exec_supervisor = 1u << 2;
  format.layout.large = 1u << 7;
  format.layout.address = 0x000f'ffff'ffff'f000;
  format.second_stage = true;
  format.accessed_dirty = false;
  const std::uint64_t beyond = format.layout.address & ~((std::uint64_t{1} << physical_bits) - 1);
  for (auto& by_level : format.reserved) by_level.fill(beyond);
  // A write needs W, a fetch needs X; reads are always allowed. Codes: R 1, W 2, XU 4, XS 8.
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned code = 0; code < 16; ++code) {
      const bool write_refused = (row & 1) != 0 && (code & 2) == 0;
      const bool fetch_refused = (row & 8) != 0 && (code & 8) == 0;
      if (write_refused || fetch_refused) {
        format.refused[row] = static_cast<std::uint16_t>(format.refused[row] | 1u << code);
      }
    }
  }
  return format;
}

class ExamplePlugin final : public Plugin {
 public:
  std::string_view name() const override { return "example"; }
  RegistrationResult Register(PluginRegistry& registry) override {
    return registry.AddTdpFormat({.name = "example-tdp",
                                  .vendor = "example",
                                  .splits_execute = false,
                                  .root_level = Level::kPml4,
                                  .make = &MakeFormat});
  }
};

Plugin* Create() { return std::make_unique<ExamplePlugin>().release(); }

}  // namespace
}  // namespace pagesaw::example

extern "C" const pagesaw::PluginEntry* pagesaw_plugin() {
  static constexpr pagesaw::PluginEntry kEntry = {.abi_version = pagesaw::kPluginAbiVersion,
                                                  .create = &pagesaw::example::Create};
  return &kEntry;
}
