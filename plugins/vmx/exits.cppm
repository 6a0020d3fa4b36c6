// What a VM exit tells: the reason, the exit qualification and the fields about events and
// instructions. [intel/vol3] "Recording VM-Exit Information and Updating VM-entry Control Fields"
module;
#include <cstdint>
#include <optional>
export module pagesaw.plugins.vmx.exits;

import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.plugins.vmx.vmcs;
import pagesaw.plugins.vmx.vmx_bits;

export namespace pagesaw::vmx {

// The basic exit reason of `event`.
ExitReason ReasonOf(const InterceptedEvent& event);

// The VM-exit or VM-entry interruption information of `event`, valid.
std::uint32_t InformationOf(const DeliveredEvent& event);
// What VM-entry interruption information asks for. Software events return behind the instruction
// that `length` bytes at `rip` are.
DeliveredEvent InjectedEvent(std::uint32_t information, std::uint32_t error_code, std::uint64_t rip,
                             std::uint32_t length);

// Stores what an exit for `event` tells. `state` is the guest's; `delivered` was on its way.
// `acknowledged`: the number of an external interrupt is its vector.
void RecordExit(Vmcs& vmcs, const InterceptedEvent& event, const CpuState& state,
                const std::optional<DeliveredEvent>& delivered, bool acknowledged);

// Stores what an exit for `fault`, met in EPT of `format`, tells.
void RecordNestedFault(Vmcs& vmcs, const NestedFault& fault, const PageFormat& format,
                       const CpuState& state, const std::optional<DeliveredEvent>& delivered);

}  // namespace pagesaw::vmx
