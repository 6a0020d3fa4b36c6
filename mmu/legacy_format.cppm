// The page formats that x86 processors walk by CR3: 32-bit, PAE, 4-level and 5-level.
// Walkers use them for a guest's entries, and formats of SPTEs that look the same start from them.
module;
#include <cstdint>
export module pagesaw.mmu.legacy_format;

import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.mmu.permission_table;

export namespace pagesaw {

// 8-byte entries: PAE, 4-level and 5-level paging. The four PDPTEs of PAE paging are registers;
// their reserved bits stand at level 3 of a PAE format. [intel/vol3] "4-Level Paging and 5-Level
// Paging"
inline constexpr EntryLayout kLegacy64Layout = {
    .entry_bytes = 8,
    .index_bits = 9,
    .present = 1u << 0,                    // P
    .write = 1u << 1,                      // R/W
    .user = 1u << 2,                       // U/S
    .no_execute = std::uint64_t{1} << 63,  // XD
    .accessed = 1u << 5,                   // A
    .dirty = 1u << 6,                      // D
    .large = 1u << 7,                      // PS
    .global = 1u << 8,                     // G
    .address = 0x000f'ffff'ffff'f000,      // 51:12
    .pat_large = 1u << 12,                 // PAT of a large leaf
};

// 4-byte entries with 4 MiB pages. [intel/vol3] "32-Bit Paging"
inline constexpr EntryLayout kLegacy32Layout = {
    .entry_bytes = 4,
    .index_bits = 10,
    .present = 1u << 0,
    .write = 1u << 1,
    .user = 1u << 2,
    .accessed = 1u << 5,
    .dirty = 1u << 6,
    .large = 1u << 7,
    .global = 1u << 8,
    .address = 0xffff'f000,
    .pat_large = 1u << 12,
};

// 4-byte entries with CR4.PSE clear: bit 7 of a directory entry is ignored.
inline constexpr EntryLayout kLegacy32NoPseLayout = [] {
  EntryLayout layout = kLegacy32Layout;
  layout.large = 0;
  layout.pat_large = 0;
  return layout;
}();

// Where bits 62:59 of a leaf have its protection key. [intel/vol3] "Protection Keys"
inline constexpr unsigned kProtectionKeyShift = 59;

// What a legacy format is made from.
struct LegacyFormatInputs {
  PagingMode mode = PagingMode::k4Level;
  PagingFeatures features = {};
  bool page_size_extensions = true;   // CR4.PSE; 32-bit paging only
  PermissionInputs permissions = {};  // no_execute is EFER.NXE: without it bit 63 is reserved
  ProtectionKeyInputs keys = {};      // honoured in 4-level and 5-level paging only
  bool reports_fetch = true;
  bool shadow_stacks = false;  // CR4.CET
};

PageFormat MakeLegacyFormat(const LegacyFormatInputs& inputs);

// The format of the tables that a processor in `state` walks. Without paging there are none: the
// format then refuses nothing.
PageFormat MakeLegacyFormat(const PagingState& state);

// SPTEs that stand for a guest's linear addresses. Their addresses have `physical_bits` bits; the
// access they meet has passed the guest's own rules, SMAP among them.
PageFormat MakeLegacySpteFormat(unsigned physical_bits, bool smep);

}  // namespace pagesaw
