// Extended page tables of a hypervisor in the guest: which tables an EPT pointer names, and how
// faults in them are reported. [intel/vol3] "The Extended Page Table Mechanism (EPT)"
module;
#include <cstdint>
export module pagesaw.plugins.vmx.ept;

import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.plugins.vmx.capabilities;

export namespace pagesaw::vmx {

// Makes the format of tables that tell supervisor and user execution apart.
using SplitFormatMaker = PageFormat (*)(unsigned physical_bits);

// Whether `pointer` may stand in the VMCS, in a list of pointers or in the operand of INVEPT.
// [intel/vol3] "Extended-Page-Table Pointer (EPTP)"
bool IsEptPointer(std::uint64_t pointer, const Capabilities& capabilities, unsigned physical_bits);

// The tables that the pointer `pointer` names. `split`: what makes their format, if execution is
// split; else null.
NestedPaging EptOf(std::uint64_t pointer, unsigned physical_bits, SplitFormatMaker split);

// The exit qualification of an EPT violation in tables of `format`.
// [intel/vol3] "Exit Qualification for EPT Violations"
std::uint64_t ViolationQualification(const NestedFault& fault, const PageFormat& format);

}  // namespace pagesaw::vmx
