// Which registers a control block, VMRUN and #VMEXIT, VMLOAD and VMSAVE move where.
module;
#include <cstdint>
#include <optional>
export module pagesaw.plugins.svm.world;

import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.plugins.svm.vmcb;

export namespace pagesaw::svm {

// The state of the guest that VMRUN makes of `state`. [amd/vol2] "VMRUN", "Loading Guest State".
// The PDPTEs of PAE paging are read through `host`; nullopt if one cannot be.
std::optional<CpuState> GuestState(VirtHost& host, const Vmcb& vmcb, const CpuState& state);

// Stores what #VMEXIT stores of the guest's `state`.
void SaveGuestState(Vmcb& vmcb, const CpuState& state);

// What #VMEXIT makes of the guest's `state` to go on behind the VMRUN that `hypervisor` stood at.
CpuState HypervisorState(const CpuState& state, const CpuState& hypervisor);

// VMLOAD and VMSAVE: the registers that the world switch leaves alone.
CpuState WithLoaded(const CpuState& state, const Vmcb& vmcb, const RegisterLimits& limits);
void SaveMore(Vmcb& vmcb, const CpuState& state);

}  // namespace pagesaw::svm
