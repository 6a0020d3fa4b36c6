// Formats for tests of SPTEs: one of each kind that a processor can have.
module;
#include <cstdint>
export module pagesaw.mmu.test_formats;

import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.permission_table;

export namespace pagesaw {

inline constexpr unsigned kTestPhysicalBits = 47;

// Second stage in the legacy layout; `split`: user pages refuse supervisor-mode fetches.
inline PageFormat LegacySecondStage(bool split, unsigned physical_bits = kTestPhysicalBits) {
  return MakeLegacyFormat({.features = {.physical_bits = static_cast<std::uint8_t>(physical_bits)},
                           .permissions = {.second_stage = true, .split_execute = split}});
}

// Second stage with R, W and X (or XS and XU: `split`) as bits of their own.
inline PageFormat ExplicitSecondStage(bool split, bool execute_only = true) {
  PageFormat format;
  format.layout = {.present = split ? 0x407u : 7,
                   .read = 1,
                   .write = 2,
                   .exec_supervisor = 4,
                   .exec_user = split ? 0x400u : 0,
                   .accessed = 0x100,
                   .dirty = 0x200,
                   .large = 0x80,
                   .address = 0x000f'ffff'ffff'f000,
                   .leaf_fixed = 6u << 3};
  format.second_stage = true;
  for (unsigned low = 0; low < 64; ++low) {
    const bool read = (low & 1) != 0, write = (low & 2) != 0, execute = (low & 4) != 0;
    if (!read && (write || (execute && !execute_only))) {
      format.malformed_low_bits |= std::uint64_t{1} << low;
    }
  }
  format.refused =
      MakePermissionTable({.second_stage = true, .explicit_execute = true, .split_execute = split});
  return format;
}

}  // namespace pagesaw
