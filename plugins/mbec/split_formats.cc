module;
#include <cstdint>
module pagesaw.plugins.mbec.split_formats;

import pagesaw.core.address;
import pagesaw.core.paging_state;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.permission_table;

namespace pagesaw::mbec {
namespace {

constexpr std::uint64_t Bits(unsigned high, unsigned low) {
  return low > high ? 0 : (~std::uint64_t{0} >> (63 - high)) & (~std::uint64_t{0} << low);
}

// Combinations of bits 5:0 that are a misconfiguration: W without R, and memory types 2, 3 and 7.
// Execute-only entries are allowed. [intel/vol3] "EPT Misconfigurations"
constexpr std::uint64_t kForbiddenLowBits = [] {
  std::uint64_t forbidden = 0;
  for (unsigned low = 0; low < 64; ++low) {
    const unsigned type = low >> 3;
    if ((low & 3) == 2 || type == 2 || type == 3 || type == 7) forbidden |= std::uint64_t{1} << low;
  }
  return forbidden;
}();

}  // namespace

PageFormat MakeEptMbecFormat(unsigned physical_bits) {
  PageFormat format;
  format.layout = kEptMbecLayout;
  format.second_stage = true;
  format.malformed_low_bits = kForbiddenLowBits;
  format.refused =
      MakePermissionTable({.second_stage = true, .explicit_execute = true, .split_execute = true});
  const std::uint64_t high = Bits(51, physical_bits);
  const std::uint64_t table = high | Bits(6, 3), root = high | Bits(7, 3);
  format.reserved[0] = {high, table, table, root, root};
  format.reserved[1] = {high, high | Bits(20, 12), high | Bits(29, 12), root, root};
  return format;
}

PageFormat MakeNptGmetFormat(unsigned physical_bits) {
  return MakeLegacyFormat({.features = {.physical_bits = static_cast<std::uint8_t>(physical_bits),
                                        .root_bit8_reserved = true},
                           .permissions = {.second_stage = true, .split_execute = true}});
}

}  // namespace pagesaw::mbec
