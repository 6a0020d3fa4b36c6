// Second-stage formats that tell supervisor-mode from user-mode execution: EPT with mode-based
// execute control (bit 10 is XU), and NPT with guest mode execute trap (U pages refuse supervisor
// fetches).
module;
#include <cstdint>
export module pagesaw.plugins.mbec.split_formats;

import pagesaw.core.page_format;

export namespace pagesaw::mbec {

// [intel/vol3] "Mode-Based Execute Control for EPT". Leaf SPTEs are write-back memory (6) that
// ignores the guest's PAT.
inline constexpr EntryLayout kEptMbecLayout = {
    .present = 0x407,
    .read = 1u << 0,
    .write = 1u << 1,
    .exec_supervisor = 1u << 2,  // XS
    .exec_user = 1u << 10,       // XU
    .accessed = 1u << 8,
    .dirty = 1u << 9,
    .large = 1u << 7,
    .address = 0x000f'ffff'ffff'f000,  // 51:12
    .leaf_fixed = 6u << 3 | 1u << 6,   // memory type, "ignore PAT"
};

PageFormat MakeEptMbecFormat(unsigned physical_bits);

// [amd/vol2] "Guest Mode Execute Trap Extension"
PageFormat MakeNptGmetFormat(unsigned physical_bits);

}  // namespace pagesaw::mbec
