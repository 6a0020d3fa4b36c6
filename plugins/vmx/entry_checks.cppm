// What VM entries refuse. [intel/vol3] "VM Entries"
module;
#include <cstdint>
#include <optional>
export module pagesaw.plugins.vmx.entry_checks;

import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.plugins.vmx.capabilities;
import pagesaw.plugins.vmx.controls;
import pagesaw.plugins.vmx.vmcs;

export namespace pagesaw::vmx {

// What all checks look at.
struct EntryContext {
  VirtHost& host;
  const Vmcs& vmcs;
  const Controls& controls;
  const Capabilities& capabilities;
  RegisterLimits limits;
};

// CET state that VM entries and VM exits load, for code that is `wide` (64 bits).
struct CetImage {
  std::uint64_t supervisor = 0, ssp = 0, interrupt_ssp_table = 0;
  bool wide = false;
};
bool CetFits(const EntryContext& context, const CetImage& image);

// "Checks on VMX Controls"; if not, the instruction fails with error 7.
bool ControlsFit(const EntryContext& context);

// "Checks on Host Control Registers, MSRs, and SSP" to "Checks Related to Address-Space Size"; if
// not, it fails with error 8. `state` is the hypervisor's.
bool HostStateFits(const EntryContext& context, const CpuState& state);

// "Checks on the Guest State Area": the exit qualification of the failure, if one fails. PDPTEs are
// checked where they are loaded.
std::optional<std::uint64_t> GuestStateFailure(const EntryContext& context);

}  // namespace pagesaw::vmx
