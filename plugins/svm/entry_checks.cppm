// What VMRUN refuses. [amd/vol2] "Canonicalization and Consistency Checks"
module;
#include <cstdint>
export module pagesaw.plugins.svm.entry_checks;

import pagesaw.core.guest_mode;
import pagesaw.plugins.svm.intercepts;
import pagesaw.plugins.svm.vmcb;

export namespace pagesaw::svm {

// Whether the guest that `vmcb` describes can be run by a processor with `limits`.
bool IsConsistent(const Vmcb& vmcb, const Intercepts& intercepts, const RegisterLimits& limits);

}  // namespace pagesaw::svm
