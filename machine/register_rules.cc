module;
#include <absl/status/status.h>
#include <absl/strings/str_format.h>
#include <cstdint>
#include <utility>
module pagesaw.machine.register_rules;

import pagesaw.core.address;
import pagesaw.core.register_values;

namespace pagesaw {
namespace {

constexpr std::uint64_t kCr0Known = 0xe005'003f;
constexpr std::uint64_t kCr0Nw = 1u << 29, kCr0Cd = 1u << 30;
constexpr std::uint64_t kEferKnown = 0x20'7f01;

absl::Status Refuse(const char* name, std::uint64_t value, const char* why) {
  return absl::InvalidArgumentError(absl::StrFormat("register %s = 0x%x: %s", name, value, why));
}

absl::Status CheckControl(const CpuState& state, const PagingFeatures& features) {
  const bool paging = (state.cr0 & kCr0Pg) != 0;
  const bool long_active = (state.efer & kEferLma) != 0;
  if ((state.cr0 & ~kCr0Known) != 0) return Refuse("cr0", state.cr0, "reserved bits are set");
  if (paging && (state.cr0 & kCr0Pe) == 0) return Refuse("cr0", state.cr0, "PG needs PE");
  if ((state.cr0 & kCr0Nw) != 0 && (state.cr0 & kCr0Cd) == 0) {
    return Refuse("cr0", state.cr0, "NW needs CD");
  }
  if ((state.efer & ~kEferKnown) != 0) return Refuse("efer", state.efer, "reserved bits are set");
  if (long_active != (paging && (state.efer & kEferLme) != 0)) {
    return Refuse("efer", state.efer, "LMA must be LME and CR0.PG");
  }
  if ((state.efer & kEferNxe) != 0 && !features.no_execute) {
    return Refuse("efer", state.efer, "the processor has no NX");
  }
  if (state.cr4 >> 32 != 0) return Refuse("cr4", state.cr4, "reserved bits are set");
  if (long_active && (state.cr4 & kCr4Pae) == 0) return Refuse("cr4", state.cr4, "LMA needs PAE");
  if ((state.cr4 & kCr4La57) != 0 && !features.la57) {
    return Refuse("cr4", state.cr4, "the processor has no LA57");
  }
  if ((state.cr4 & kCr4Pcide) != 0 && !long_active) {
    return Refuse("cr4", state.cr4, "PCIDE needs LMA");
  }
  const std::uint64_t reserved =
      ~((std::uint64_t{1} << features.physical_bits) - 1) & ~(kCr3LamU48 | kCr3LamU57);
  if ((state.cr3 & reserved) != 0) {
    return Refuse("cr3", state.cr3, "bits beyond the physical address width are set");
  }
  return absl::OkStatus();
}

absl::Status CheckMode(const CpuState& state) {
  if ((state.rflags & ~kRflagsKnown) != 0 || (state.rflags & kFlagFixed) == 0) {
    return Refuse("rflags", state.rflags, "bit 1 must be set and reserved bits clear");
  }
  const bool long_active = (state.efer & kEferLma) != 0;
  const Segment& code = state.segments[kCs];
  if ((state.rflags & kFlagVm) != 0 && (long_active || (state.cr0 & kCr0Pe) == 0)) {
    return Refuse("rflags", state.rflags, "VM needs protected mode outside long mode");
  }
  const bool protected_mode = (state.cr0 & kCr0Pe) != 0 && (state.rflags & kFlagVm) == 0;
  if (protected_mode && (!code.is_code() || !code.present())) {
    return Refuse("cs.attributes", code.attributes, "must be a present code segment");
  }
  if (long_active && code.long_mode()) {
    if (code.big()) return Refuse("cs.attributes", code.attributes, "L and D exclude each other");
  } else if (state.rip >> 32 != 0) {
    return Refuse("rip", state.rip, "beyond 32 bits outside 64-bit mode");
  }
  return absl::OkStatus();
}

absl::Status CheckAddresses(const CpuState& state) {
  const unsigned width = (state.cr4 & kCr4La57) != 0 ? 57 : 48;
  const std::pair<const char*, std::uint64_t> addresses[] = {
      {"rip", state.rip},
      {"fs.base", state.segments[kFs].base},
      {"gs.base", state.segments[kGs].base},
      {"ldtr.base", state.segments[kLdtr].base},
      {"tr.base", state.segments[kTr].base},
      {"gdtr.base", state.gdtr.base},
      {"idtr.base", state.idtr.base},
      {"kernel_gs_base", state.kernel_gs_base},
      {"lstar", state.lstar},
      {"cstar", state.cstar},
      {"sysenter_esp", state.sysenter_esp},
      {"sysenter_eip", state.sysenter_eip},
  };
  for (const auto& [name, value] : addresses) {
    if (!IsCanonical(Gva(value), width)) return Refuse(name, value, "is not canonical");
  }
  if (state.dr6 >> 32 != 0) return Refuse("dr6", state.dr6, "reserved bits are set");
  if (state.dr7 >> 32 != 0) return Refuse("dr7", state.dr7, "reserved bits are set");
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCpuState(const CpuState& state, const PagingFeatures& features) {
  if (absl::Status status = CheckControl(state, features); !status.ok()) return status;
  if (absl::Status status = CheckMode(state); !status.ok()) return status;
  return CheckAddresses(state);
}

}  // namespace pagesaw
