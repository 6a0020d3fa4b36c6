// A VMCS for people: the fields that say how the guest's memory is translated, and how it was left
// last, by the manual's names. [intel/vol3] "Virtual Machine Control Structures"
module;
#include <cstdint>
#include <vector>
export module pagesaw.plugins.vmx.inspection;

import pagesaw.core.access;
import pagesaw.core.virt_extension;
import pagesaw.plugins.vmx.vmcs;

export namespace pagesaw::vmx {

// Whatever is in `vmcs`, in the order of the manual: controls, guest, host, exit information.
std::vector<StructureField> FieldsOf(const Vmcs& vmcs);

// Whether a page fault with `code` causes a VM exit.
// [intel/vol3] "Exception Bitmap"
bool InterceptsPageFault(const Vmcs& vmcs, PageFaultCode code);

}  // namespace pagesaw::vmx
