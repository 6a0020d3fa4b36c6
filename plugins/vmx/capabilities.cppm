// What VMX of one processor has: the table behind the capability MSRs, by which controls and
// control registers are judged, too. [intel/vol3] "VMX Capability Reporting Facility"
module;
#include <cstdint>
#include <optional>
export module pagesaw.plugins.vmx.capabilities;

import pagesaw.core.guest_mode;
import pagesaw.plugins.vmx.vmx_bits;

export namespace pagesaw::vmx {

// Which bits of a control field must be set, and which may be.
struct AllowedControls {
  std::uint32_t required = 0;
  std::uint32_t allowed = 0;

  constexpr bool Allows(std::uint32_t value) const {
    return (required & ~value) == 0 && (value & ~allowed) == 0;
  }
};

// Which bits of a control register must be set in VMX operation, and which may be.
struct FixedBits {
  std::uint64_t required = 0;
  std::uint64_t allowed = 0;

  constexpr bool Allows(std::uint64_t value) const {
    return (required & ~value) == 0 && (value & ~allowed) == 0;
  }
};

class Capabilities {
 public:
  // Of a processor with the features of `host`. `splits_execute`: tables that tell supervisor and
  // user execution apart can be had.
  Capabilities(const VirtHost& host, bool splits_execute);

  // As the "true" MSRs have them.
  const AllowedControls& pin() const { return pin_; }
  const AllowedControls& primary() const { return primary_; }
  const AllowedControls& secondary() const { return secondary_; }
  const AllowedControls& exit() const { return exit_; }
  const AllowedControls& entry() const { return entry_; }
  // In a guest that is unrestricted: without paging, and in real mode, too.
  FixedBits unrestricted_cr0() const;
  const FixedBits& cr0() const { return cr0_; }
  const FixedBits& cr4() const { return cr4_; }

  bool has_ept() const { return (secondary_.allowed & secondary::kEpt) != 0; }
  bool ept_5_levels() const { return ept_5_levels_; }
  bool cet() const { return (entry_.allowed & entry::kLoadCet) != 0; }
  bool functions() const { return (secondary_.allowed & secondary::kVmFunctions) != 0; }

  // The value of a capability MSR, if there is one of this number.
  std::optional<std::uint64_t> Msr(std::uint32_t index) const;

 private:
  std::uint64_t EptCapabilities() const;

  AllowedControls pin_, primary_, secondary_, exit_, entry_;
  FixedBits cr0_, cr4_;
  bool ept_5_levels_ = false;
};

// The preemption timer counts down by 1 each time this bit of the time-stamp counter changes.
inline constexpr unsigned kPreemptionTimerShift = 3;
inline constexpr unsigned kCr3TargetCount = 4;
// The entries that an MSR list can have.
inline constexpr std::uint32_t kMsrListEntries = 512;

}  // namespace pagesaw::vmx
