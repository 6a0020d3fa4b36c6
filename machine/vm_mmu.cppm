// The memory virtualization that VMs use: `mmu/`'s walkers and shadow MMUs behind VmMmu.
module;
#include <absl/status/statusor.h>
#include <memory>
export module pagesaw.machine.vm_mmu;

import pagesaw.machine.vm_parts;

export namespace pagesaw {

// Makes a VmMmu for two-stage translation whose SPTEs have `request.tdp_format`.
absl::StatusOr<std::unique_ptr<VmMmu>> MakeVmMmu(const MmuRequest& request);

}  // namespace pagesaw
