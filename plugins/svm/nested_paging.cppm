// Nested paging as SVM has it: which tables a control block and the hypervisor's own mode name, and
// how a fault in them is reported. [amd/vol2] "Nested Paging"
module;
#include <cstdint>
export module pagesaw.plugins.svm.nested_paging;

import pagesaw.core.access;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.plugins.svm.vmcb;

export namespace pagesaw::svm {

// Whether `vmcb` enables nested paging, on a processor that has it.
bool EnablesNestedPaging(const Vmcb& vmcb, const RegisterLimits& limits);

// Whether what `vmcb` says of it can be entered from a hypervisor in `state`.
bool NestedPagingFits(const Vmcb& vmcb, const CpuState& state, const RegisterLimits& limits);

// The tables that it names. They look as those of the hypervisor's own mode do, at VMRUN: its
// EFER.NXE decides on bit 63. `splits_execute`: the guest mode execute trap is offered.
NestedPaging NestedPagingOf(const Vmcb& vmcb, const CpuState& state, const RegisterLimits& limits,
                            bool splits_execute);

// EXITINFO1 of a nested page fault in tables of `format`.
// [amd/vol2] "Nested versus Guest Page Faults, Fault Ordering"
std::uint64_t NestedFaultInfo(const NestedFault& fault, const PageFormat& format);

}  // namespace pagesaw::svm
