// The memory virtualization that VMs use: `mmu/`'s walkers and shadow MMUs behind VmMmu.
module;
#include <absl/status/statusor.h>
#include <memory>
export module pagesaw.machine.vm_mmu;

import pagesaw.machine.vm_parts;

export namespace pagesaw {

// Makes a VmMmu as `request` says: for two-stage translation, or for shadow paging.
absl::StatusOr<std::unique_ptr<VmMmu>> MakeVmMmu(const MmuRequest& request);

}  // namespace pagesaw
