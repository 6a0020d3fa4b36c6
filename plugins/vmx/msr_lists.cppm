// The lists of MSRs that VM entries and VM exits load and store. [intel/vol3] "VM-Exit Controls for
// MSRs", "Loading MSRs"
module;
#include <cstdint>
export module pagesaw.plugins.vmx.msr_lists;

import pagesaw.core.address;
import pagesaw.core.guest_mode;

export namespace pagesaw::vmx {

// Loads the `count` entries at `list`. 0, or the number of the first, from 1, that cannot be.
std::uint32_t LoadMsrs(VirtHost& host, Gpa list, std::uint32_t count);

// Stores into the `count` entries at `list`. The same. `tsc`: the time-stamp counter when the VM
// exit began.
std::uint32_t StoreMsrs(VirtHost& host, Gpa list, std::uint32_t count, std::uint64_t tsc);

}  // namespace pagesaw::vmx
