// Models of either vendor's processors for tests, without the plugins that know the vendors.
module;
#include <cstdint>
#include <string_view>
export module pagesaw.cpu.test_vendor;

export import pagesaw.cpu.model;

export namespace pagesaw::cpu {

enum class Vendor : std::uint8_t { kIntel, kAmd };

// A model with `features`, a wish as MakeModel takes it, besides the default ones.
CpuModel ModelOf(Vendor vendor, std::string_view features = {});

}  // namespace pagesaw::cpu
