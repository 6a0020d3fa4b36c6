// The control fields of a VMCS, as one VM entry reads them.
module;
#include <cstdint>
export module pagesaw.plugins.vmx.controls;

import pagesaw.plugins.vmx.vmcs;
import pagesaw.plugins.vmx.vmx_bits;

export namespace pagesaw::vmx {

struct Controls {
  std::uint32_t pin = 0, primary = 0, exit = 0, entry = 0;
  std::uint32_t secondary = 0;  // 0 unless the primary controls turn them on

  Controls() = default;
  explicit Controls(const Vmcs& vmcs)
      : pin(vmcs.Get32(field::kPinControls)),
        primary(vmcs.Get32(field::kPrimaryControls)),
        exit(vmcs.Get32(field::kExitControls)),
        entry(vmcs.Get32(field::kEntryControls)),
        secondary(HasPrimary(primary::kSecondary) ? vmcs.Get32(field::kSecondaryControls) : 0) {}

  constexpr bool HasPin(std::uint32_t bit) const { return (pin & bit) != 0; }
  constexpr bool HasPrimary(std::uint32_t bit) const { return (primary & bit) != 0; }
  constexpr bool HasSecondary(std::uint32_t bit) const { return (secondary & bit) != 0; }
  constexpr bool HasExit(std::uint32_t bit) const { return (exit & bit) != 0; }
  constexpr bool HasEntry(std::uint32_t bit) const { return (entry & bit) != 0; }

  constexpr bool ept() const { return HasSecondary(secondary::kEpt); }
  constexpr bool unrestricted() const { return HasSecondary(secondary::kUnrestrictedGuest); }
  constexpr bool splits_execute() const { return HasSecondary(secondary::kModeBasedExecute); }
  constexpr bool guest_64() const { return HasEntry(entry::kGuest64); }
  constexpr bool host_64() const { return HasExit(exits::kHost64); }
};

}  // namespace pagesaw::vmx
