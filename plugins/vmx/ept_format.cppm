// The page format of extended page tables (EPT) without mode-based execute control.
// It serves SPTEs and, where a guest is a hypervisor itself, that guest's own tables.
module;
#include <cstdint>
export module pagesaw.plugins.vmx.ept_format;

import pagesaw.core.page_format;

export namespace pagesaw::vmx {

// [intel/vol3] "The Extended Page Table Mechanism (EPT)". Leaf SPTEs are write-back memory (6) that
// ignores the guest's PAT.
inline constexpr EntryLayout kEptLayout = {
    .present = 7,
    .read = 1u << 0,
    .write = 1u << 1,
    .exec_supervisor = 1u << 2,  // X
    .accessed = 1u << 8,
    .dirty = 1u << 9,
    .large = 1u << 7,
    .address = 0x000f'ffff'ffff'f000,  // 51:12
    .leaf_fixed = 6u << 3 | 1u << 6,   // memory type, "ignore PAT"
};

// What IA32_VMX_EPT_VPID_CAP and the EPT pointer say about entries.
struct EptInputs {
  unsigned physical_bits = 52;
  bool execute_only = true;
  bool pages_2m = true;
  bool pages_1g = true;
  bool accessed_dirty = true;
};

PageFormat MakeEptFormat(const EptInputs& inputs);

}  // namespace pagesaw::vmx
