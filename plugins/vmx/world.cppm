// Which registers a VMCS, VM entries and VM exits move where.
module;
#include <cstdint>
#include <optional>
export module pagesaw.plugins.vmx.world;

import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.plugins.vmx.controls;
import pagesaw.plugins.vmx.vmcs;

export namespace pagesaw::vmx {

// The state of the guest that a VM entry makes of the hypervisor's `state`.
// [intel/vol3] "Loading Guest State". The PDPTEs of PAE paging come from the VMCS, or without EPT
// are read through `host`; nullopt if one is malformed.
std::optional<CpuState> GuestState(VirtHost& host, const Vmcs& vmcs, const Controls& controls,
                                   const CpuState& state);

// Stores what a VM exit stores of the guest's `state`. [intel/vol3] "Saving Guest State"
void SaveGuestState(Vmcs& vmcs, const Controls& controls, const CpuState& state,
                    const BoundaryState& boundary);

// What a VM exit, or a VM entry that failed, makes of `state`. [intel/vol3] "Loading Host State".
// nullopt if a PDPTE of the hypervisor is malformed.
std::optional<CpuState> HypervisorState(VirtHost& host, const Vmcs& vmcs, const Controls& controls,
                                        const CpuState& state);

}  // namespace pagesaw::vmx
