// Which register values a processor can hold: what a state written from outside is checked against.
module;
#include <absl/status/status.h>
export module pagesaw.machine.register_rules;

import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;

export namespace pagesaw {

// InvalidArgument, naming the register and its value, for a state that no processor with `features`
// can be in as far as paging, modes and reserved bits go.
absl::Status CheckCpuState(const CpuState& state, const PagingFeatures& features);

}  // namespace pagesaw
