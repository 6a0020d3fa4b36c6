module;
#include <cstdint>
module pagesaw.plugins.vmx.ept_format;

import pagesaw.core.address;
import pagesaw.mmu.permission_table;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t Bits(unsigned high, unsigned low) {
  return low > high ? 0 : (~std::uint64_t{0} >> (63 - high)) & (~std::uint64_t{0} << low);
}

// Combinations of bits 5:0 of a present entry that are a misconfiguration. A non-leaf entry has its
// bits 5:3 reserved besides. [intel/vol3] "EPT Misconfigurations"
std::uint64_t ForbiddenLowBits(bool execute_only) {
  std::uint64_t forbidden = 0;
  for (unsigned low = 0; low < 64; ++low) {
    const bool read = (low & 1) != 0, write = (low & 2) != 0, execute = (low & 4) != 0;
    const unsigned memory_type = low >> 3;
    const bool bad_type = memory_type == 2 || memory_type == 3 || memory_type == 7;
    if (bad_type || (!read && (write || (execute && !execute_only)))) {
      forbidden |= std::uint64_t{1} << low;
    }
  }
  return forbidden;
}

}  // namespace

// [intel/vol3] "Format of an EPT PML4 Entry" and its neighbours
PageFormat MakeEptFormat(const EptInputs& in) {
  PageFormat format;
  format.layout = kEptLayout;
  format.second_stage = true;
  format.accessed_dirty = in.accessed_dirty;
  format.malformed_low_bits = ForbiddenLowBits(in.execute_only);
  format.refused = MakePermissionTable({.second_stage = true, .explicit_execute = true});
  const std::uint64_t high = Bits(51, in.physical_bits);
  for (auto& by_level : format.reserved) {
    by_level = {high, high | Bits(6, 3), high | Bits(6, 3), high | Bits(7, 3), high | Bits(7, 3)};
  }
  auto& large = format.reserved[1];
  large[Number(Level::kPdpt) - 1] = high | (in.pages_1g ? Bits(29, 12) : Bits(7, 7));
  large[Number(Level::kPd) - 1] = high | (in.pages_2m ? Bits(20, 12) : Bits(7, 7));
  return format;
}

}  // namespace pagesaw::vmx
