module;
#include <array>
#include <cstdint>
#include <optional>
module pagesaw.plugins.vmx.world;

import pagesaw.core.guest_structures;
import pagesaw.core.paging_state;
import pagesaw.core.register_values;
import pagesaw.plugins.vmx.vmx_bits;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t kCr0Et = 1u << 4;
constexpr std::uint64_t kCr0Kept = kCr0Et | 3u << 29;  // ET, NW, CD: no transition changes them
constexpr std::uint32_t kUnusable = 1u << 16;
constexpr std::uint16_t kPresent = 1u << 7;

std::uint64_t Cr0Of(std::uint64_t field, std::uint64_t kept, const RegisterLimits& limits) {
  return (field & limits.cr0 & ~kCr0Kept) | (kept & kCr0Kept);
}

// An unusable register is one that is not present.
Segment SegmentOf(const Vmcs& vmcs, const SegmentFields& fields) {
  const std::uint32_t access = vmcs.Get32(fields.access);
  const bool unusable = (access & kUnusable) != 0;
  return {.selector = static_cast<std::uint16_t>(vmcs.Get(fields.selector)),
          .attributes = static_cast<std::uint16_t>(access & ~(unusable ? kPresent : 0u)),
          .limit = vmcs.Get32(fields.limit),
          .base = vmcs.Get(fields.base)};
}

void SetSegment(Vmcs& vmcs, const SegmentFields& fields, const Segment& segment) {
  vmcs.Set(fields.selector, segment.selector);
  vmcs.Set(fields.limit, segment.limit);
  vmcs.Set(fields.access, segment.attributes | (segment.present() ? 0 : kUnusable));
  vmcs.Set(fields.base, segment.base);
}

DescriptorTable TableOf(const Vmcs& vmcs, Field base, Field limit) {
  return {.base = vmcs.Get(base), .limit = static_cast<std::uint16_t>(vmcs.Get(limit))};
}

// Other processors may write to a VMCS behind its checks, and nothing at all may be left of it:
// what is loaded must be a state that a processor can be in, whichever that is.
void MakePossible(CpuState& state, const RegisterLimits& limits) {
  if ((state.cr0 & kCr0Pg) != 0) state.cr0 |= kCr0Pe;
  state.cr4 &= limits.cr4;
  state.efer = state.efer & limits.efer & ~kEferLma;
  if ((state.cr0 & kCr0Pg) != 0 && (state.efer & kEferLme) != 0) {
    state.efer |= kEferLma;
    state.cr4 |= kCr4Pae;
  } else {
    state.cr4 &= ~kCr4Pcide;
  }
  if ((state.cr0 & kCr0Wp) == 0) state.cr4 &= ~kCr4Cet;
  state.cr3 &= limits.cr3;
  state.rflags = (state.rflags & kRflagsKnown) | kFlagFixed;
  const bool legacy = (state.cr0 & kCr0Pe) != 0 && (state.efer & kEferLma) == 0;
  if (!legacy) state.rflags &= ~kFlagVm;
  for (Segment& segment : state.segments) {
    segment.base = MadeCanonical(segment.base, limits.linear_bits);
  }
  state.cet.ssp &= ~std::uint64_t{3};
  for (std::uint64_t* const address :
       {&state.cet.ssp, &state.cet.interrupt_ssp_table, &state.cet.supervisor, &state.gdtr.base,
        &state.idtr.base, &state.sysenter_esp, &state.sysenter_eip}) {
    *address = MadeCanonical(*address, limits.linear_bits);
  }
}

// With EPT the PDPTEs come from the VMCS.
bool LoadGuestPdptes(VirtHost& host, const Vmcs& vmcs, const Controls& controls, CpuState& guest) {
  if (!controls.ept()) return LoadPdptes(host, guest);
  if (!UsesPdptes(guest)) return true;
  const std::uint64_t reserved = ReservedPdpteBits(host.limits().physical_bits);
  for (unsigned i = 0; i < guest.pdptes.size(); ++i) {
    guest.pdptes[i] = vmcs.Get(field::kGuestPdptes[i]);
    if ((guest.pdptes[i] & 1) != 0 && (guest.pdptes[i] & reserved) != 0) return false;
  }
  return true;
}

Activity ActivityOf(const Vmcs& vmcs) {
  switch (static_cast<ActivityState>(vmcs.Get(field::kActivity))) {
    case ActivityState::kHlt:
      return Activity::kHalted;
    case ActivityState::kShutdown:
      return Activity::kShutdown;
    case ActivityState::kWaitForSipi:
      return Activity::kWaitForSipi;
    default:
      return Activity::kActive;
  }
}

ActivityState ActivityFieldOf(Activity activity) {
  switch (activity) {
    case Activity::kHalted:
      return ActivityState::kHlt;
    case Activity::kShutdown:
      return ActivityState::kShutdown;
    case Activity::kWaitForSipi:
      return ActivityState::kWaitForSipi;
    case Activity::kActive:
      break;
  }
  return ActivityState::kActive;
}

void LoadGuestControls(CpuState& guest, const Vmcs& vmcs, const Controls& controls,
                       const RegisterLimits& limits) {
  guest.cr0 = Cr0Of(vmcs.Get(field::kGuestCr0), guest.cr0, limits);
  guest.cr3 = vmcs.Get(field::kGuestCr3);
  guest.cr4 = vmcs.Get(field::kGuestCr4);
  if (controls.HasEntry(entry::kLoadDebug)) {
    guest.dr7 = (vmcs.Get(field::kGuestDr7) & kDr7Writable) | kDr7Fixed;
  }
  if (controls.HasEntry(entry::kLoadEfer)) {
    guest.efer = vmcs.Get(field::kGuestEfer);
  } else {
    const bool wide = controls.guest_64();
    guest.efer = wide ? guest.efer | kEferLma : guest.efer & ~kEferLma;
    if ((guest.cr0 & kCr0Pg) != 0) {
      guest.efer = wide ? guest.efer | kEferLme : guest.efer & ~kEferLme;
    }
  }
  if (controls.HasEntry(entry::kLoadPat)) guest.pat = vmcs.Get(field::kGuestPat);
  if (controls.HasEntry(entry::kLoadCet)) {
    guest.cet.supervisor = vmcs.Get(field::kGuestSupervisorCet);
    guest.cet.ssp = vmcs.Get(field::kGuestSsp);
    guest.cet.interrupt_ssp_table = vmcs.Get(field::kGuestInterruptSspTable);
  }
  guest.sysenter_cs = vmcs.Get(field::kGuestSysenterCs);
  guest.sysenter_esp = vmcs.Get(field::kGuestSysenterEsp);
  guest.sysenter_eip = vmcs.Get(field::kGuestSysenterEip);
}

// A segment of the hypervisor: flat, and unusable if its selector is null.
Segment HostSegment(const Vmcs& vmcs, Field selector_field, std::uint64_t base = 0) {
  constexpr std::uint16_t kData = 0xc093;  // G, B, P, read/write, accessed
  const auto selector = static_cast<std::uint16_t>(vmcs.Get(selector_field));
  return {.selector = selector,
          .attributes = static_cast<std::uint16_t>(selector == 0 ? kData & ~kPresent : kData),
          .limit = 0xffff'ffff,
          .base = base};
}

void LoadHostSegments(CpuState& next, const Vmcs& vmcs, bool wide) {
  constexpr std::uint16_t kCode = 0x809b, kLong = 0x2000, kBig = 0x4000;
  constexpr std::uint32_t kTaskLimit = 0x67;
  auto& segments = next.segments;
  segments[kCs] = HostSegment(vmcs, field::kHostCs);
  segments[kCs].attributes = kCode | (wide ? kLong : kBig);
  segments[kSs] = HostSegment(vmcs, field::kHostSs);
  segments[kDs] = HostSegment(vmcs, field::kHostDs);
  segments[kEs] = HostSegment(vmcs, field::kHostEs);
  segments[kFs] = HostSegment(vmcs, field::kHostFs, vmcs.Get(field::kHostFsBase));
  segments[kGs] = HostSegment(vmcs, field::kHostGs, vmcs.Get(field::kHostGsBase));
  segments[kTr] = {.selector = static_cast<std::uint16_t>(vmcs.Get(field::kHostTr)),
                   .attributes = 0x8b,
                   .limit = kTaskLimit,
                   .base = vmcs.Get(field::kHostTrBase)};
  segments[kLdtr] = {.selector = 0, .attributes = 0, .limit = 0, .base = 0};
  next.gdtr = {.base = vmcs.Get(field::kHostGdtrBase), .limit = 0xffff};
  next.idtr = {.base = vmcs.Get(field::kHostIdtrBase), .limit = 0xffff};
}

}  // namespace

std::optional<CpuState> GuestState(VirtHost& host, const Vmcs& vmcs, const Controls& controls,
                                   const CpuState& state) {
  CpuState guest = state;
  LoadGuestControls(guest, vmcs, controls, host.limits());
  for (unsigned name = 0; name < kSegmentCount; ++name) {
    guest.segments[name] = SegmentOf(vmcs, kGuestSegments[name]);
  }
  guest.gdtr = TableOf(vmcs, field::kGuestGdtrBase, field::kGuestGdtrLimit);
  guest.idtr = TableOf(vmcs, field::kGuestIdtrBase, field::kGuestIdtrLimit);
  guest.gpr[kRsp] = vmcs.Get(field::kGuestRsp);
  guest.rip = vmcs.Get(field::kGuestRip);
  guest.rflags = vmcs.Get(field::kGuestRflags);
  const std::uint32_t blocking = vmcs.Get32(field::kInterruptibility);
  guest.interrupt_shadow = (blocking & (kBlockedBySti | kBlockedByMovSs)) != 0;
  guest.nmi_blocked = (blocking & kBlockedByNmi) != 0;
  guest.activity = ActivityOf(vmcs);
  MakePossible(guest, host.limits());
  if (!LoadGuestPdptes(host, vmcs, controls, guest)) return std::nullopt;
  return guest;
}

void SaveGuestState(Vmcs& vmcs, const Controls& controls, const CpuState& state,
                    const BoundaryState& boundary) {
  vmcs.Set(field::kGuestCr0, state.cr0);
  vmcs.Set(field::kGuestCr3, state.cr3);
  vmcs.Set(field::kGuestCr4, state.cr4);
  if (controls.HasExit(exits::kSaveDebug)) vmcs.Set(field::kGuestDr7, state.dr7);
  if (controls.HasExit(exits::kSavePat)) vmcs.Set(field::kGuestPat, state.pat);
  if (controls.HasExit(exits::kSaveEfer)) vmcs.Set(field::kGuestEfer, state.efer);
  // Processors that can load them save them in any case.
  vmcs.Set(field::kGuestSupervisorCet, state.cet.supervisor);
  vmcs.Set(field::kGuestSsp, state.cet.ssp);
  vmcs.Set(field::kGuestInterruptSspTable, state.cet.interrupt_ssp_table);
  vmcs.Set(field::kGuestSysenterCs, state.sysenter_cs);
  vmcs.Set(field::kGuestSysenterEsp, state.sysenter_esp);
  vmcs.Set(field::kGuestSysenterEip, state.sysenter_eip);
  for (unsigned name = 0; name < kSegmentCount; ++name) {
    SetSegment(vmcs, kGuestSegments[name], state.segments[name]);
  }
  vmcs.Set(field::kGuestGdtrBase, state.gdtr.base);
  vmcs.Set(field::kGuestGdtrLimit, state.gdtr.limit);
  vmcs.Set(field::kGuestIdtrBase, state.idtr.base);
  vmcs.Set(field::kGuestIdtrLimit, state.idtr.limit);
  if (controls.ept() && UsesPdptes(state)) {
    for (unsigned i = 0; i < state.pdptes.size(); ++i) {
      vmcs.Set(field::kGuestPdptes[i], state.pdptes[i]);
    }
  }
  const bool wide = (state.efer & kEferLma) != 0;
  const std::uint32_t entry_controls = vmcs.Get32(field::kEntryControls) & ~entry::kGuest64;
  vmcs.Set(field::kEntryControls, entry_controls | (wide ? entry::kGuest64 : 0));
  vmcs.Set(field::kGuestRsp, state.gpr[kRsp]);
  vmcs.Set(field::kGuestRip, state.rip);
  vmcs.Set(field::kGuestRflags, state.rflags);
  const std::uint32_t shadow = boundary.stack_shadow ? kBlockedByMovSs : kBlockedBySti;
  vmcs.Set(field::kInterruptibility,
           (state.interrupt_shadow ? shadow : 0) | (state.nmi_blocked ? kBlockedByNmi : 0));
  vmcs.Set(field::kActivity, static_cast<std::uint32_t>(ActivityFieldOf(state.activity)));
  // [intel/vol3] "Saving Non-Register State": which breakpoints were met is told with that one was
  const std::uint64_t causes = boundary.debug_causes & (kPendingBreakpoints | kPendingStep);
  const bool breakpoint = (causes & kPendingBreakpoints) != 0;
  vmcs.Set(field::kGuestPendingDebug, causes | (breakpoint ? kPendingEnabled : 0));
}

std::optional<CpuState> HypervisorState(VirtHost& host, const Vmcs& vmcs, const Controls& controls,
                                        const CpuState& state) {
  const bool wide = controls.host_64();
  CpuState next = state;
  next.cr0 = Cr0Of(vmcs.Get(field::kHostCr0), state.cr0, host.limits());
  next.cr3 = vmcs.Get(field::kHostCr3);
  next.cr4 = vmcs.Get(field::kHostCr4);
  if (wide) next.cr4 |= kCr4Pae;
  next.dr7 = kDr7Fixed;
  if (controls.HasExit(exits::kLoadEfer)) {
    next.efer = vmcs.Get(field::kHostEfer);
  } else {
    next.efer &= ~(kEferLma | kEferLme);
    if (wide) next.efer |= kEferLma | kEferLme;
  }
  if (controls.HasExit(exits::kLoadPat)) next.pat = vmcs.Get(field::kHostPat);
  if (controls.HasExit(exits::kLoadCet)) {
    next.cet.supervisor = vmcs.Get(field::kHostSupervisorCet);
    next.cet.ssp = vmcs.Get(field::kHostSsp);
    next.cet.interrupt_ssp_table = vmcs.Get(field::kHostInterruptSspTable);
  }
  next.sysenter_cs = vmcs.Get(field::kHostSysenterCs);
  next.sysenter_esp = vmcs.Get(field::kHostSysenterEsp);
  next.sysenter_eip = vmcs.Get(field::kHostSysenterEip);
  LoadHostSegments(next, vmcs, wide);
  next.gpr[kRsp] = vmcs.Get(field::kHostRsp);
  next.rip = vmcs.Get(field::kHostRip);
  next.rflags = kFlagFixed;
  next.interrupt_shadow = false;
  next.activity = Activity::kActive;
  MakePossible(next, host.limits());
  if (!LoadPdptes(host, next)) return std::nullopt;
  return next;
}

}  // namespace pagesaw::vmx
