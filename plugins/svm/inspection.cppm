// A control block for people: the fields that say how the guest's memory is translated, and how it
// was left last, by the manual's names. [amd/vol2] "Layout of VMCB"
module;
#include <cstdint>
#include <vector>
export module pagesaw.plugins.svm.inspection;

import pagesaw.core.virt_extension;
import pagesaw.plugins.svm.vmcb;

export namespace pagesaw::svm {

// Whatever is in `vmcb`: controls, guest, exit information.
std::vector<StructureField> FieldsOf(const Vmcb& vmcb);

// Whether page faults cause a #VMEXIT.
bool InterceptsPageFault(const Vmcb& vmcb);

}  // namespace pagesaw::svm
