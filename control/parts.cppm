// What the daemon's VMs are assembled from: the software processor, and the memory virtualization
// of mmu/.
export module pagesaw.control.parts;

import pagesaw.machine.vm_parts;

export namespace pagesaw {

VmParts MakeVmParts();

}  // namespace pagesaw
