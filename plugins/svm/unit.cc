module;
#include <cstddef>
#include <cstdint>
#include <optional>
module pagesaw.plugins.svm.unit;

import pagesaw.core.paging_state;
import pagesaw.plugins.svm.entry_checks;
import pagesaw.plugins.svm.nested_paging;
import pagesaw.plugins.svm.svm_bits;
import pagesaw.plugins.svm.world;

namespace pagesaw::svm {
namespace {

constexpr std::uint64_t kPageMask = kPageBytes - 1;

// An operand in rAX, at the width of the mode.
std::uint64_t AddressOperand(const VirtHost& host, const CpuState& state) {
  const bool wide = (state.efer & kEferLma) != 0 && state.segments[kCs].long_mode();
  const std::uint64_t value = host.gpr(kRax);
  return wide ? value : static_cast<std::uint32_t>(value);
}

std::uint64_t EventWord(const DeliveredEvent& event) {
  EventType type = EventType::kException;
  switch (event.kind) {
    case DeliveredEvent::Kind::kExternalInterrupt:
      type = EventType::kInterrupt;
      break;
    case DeliveredEvent::Kind::kNmi:
      type = EventType::kNmi;
      break;
    case DeliveredEvent::Kind::kSoftwareInterrupt:
      type = EventType::kSoftwareInterrupt;
      break;
    case DeliveredEvent::Kind::kException:
    case DeliveredEvent::Kind::kSoftwareException:
    case DeliveredEvent::Kind::kPrivilegedException:
      break;
  }
  return event.vector | std::uint64_t{static_cast<std::uint8_t>(type)} << 8 |
         (event.has_error_code ? kEventHasError : 0) | kEventValid |
         std::uint64_t{event.error_code} << 32;
}

// What EVENTINJ asks for. Software events return behind the instruction they stand for.
DeliveredEvent InjectedEvent(std::uint64_t word, std::uint64_t next_rip) {
  using Kind = DeliveredEvent::Kind;
  DeliveredEvent event = {.vector = static_cast<std::uint8_t>(word),
                          .error_code = static_cast<std::uint32_t>(word >> 32),
                          .return_rip = next_rip};
  switch (static_cast<EventType>(word >> 8 & 7)) {
    case EventType::kInterrupt:
      event.kind = Kind::kExternalInterrupt;
      break;
    case EventType::kNmi:
      event.kind = Kind::kNmi;
      event.vector = 2;
      break;
    case EventType::kSoftwareInterrupt:
      event.kind = Kind::kSoftwareInterrupt;
      break;
    case EventType::kException:
      event.kind =
          event.vector == 3 || event.vector == 4 ? Kind::kSoftwareException : Kind::kException;
      event.has_error_code = (word & kEventHasError) != 0;
      break;
  }
  return event;
}

// [amd/vol2] "IOIO Intercepts": EXITINFO1
std::uint64_t PortInfo(const PortAccess& io) {
  std::uint64_t info = std::uint64_t{io.port} << 16 | (io.in ? 1u : 0);
  info |= std::uint64_t{io.bytes} << 4;  // 1, 2 or 4
  if (io.string) {
    info |= 1u << 2 | (io.repeated ? 1u << 3 : 0) | std::uint64_t{io.segment} << 10;
    info |= std::uint64_t{io.address_bytes} / 2 << 7;  // 16, 32 or 64 bits: 1, 2 or 4
  }
  return info;
}

// [amd/vol2] "Task Switch Intercept": EXITINFO2
std::uint64_t TaskSwitchInfo(const InterceptedEvent& event) {
  std::uint64_t info = event.has_error_code ? std::uint64_t{1} << 44 | event.error_code : 0;
  switch (static_cast<TaskSwitchSource>(event.number)) {
    case TaskSwitchSource::kIret:
      return info | std::uint64_t{1} << 36;
    case TaskSwitchSource::kJump:
      return info | std::uint64_t{1} << 38;
    case TaskSwitchSource::kCall:
    case TaskSwitchSource::kGate:
      return info;
  }
  return info;
}

// EXITINFO1 and EXITINFO2.
struct ExitInfo {
  std::uint64_t first = 0, second = 0;
};
ExitInfo ExitInfoOf(const InterceptedEvent& event, std::uint64_t next_rip) {
  switch (event.what) {
    case Intercept::kException:
      return {event.has_error_code ? event.error_code : 0, event.number == 14 ? event.value : 0};
    case Intercept::kIo:
      return {PortInfo(event.io), next_rip};
    case Intercept::kWriteMsr:
      return {1, 0};
    case Intercept::kTaskSwitch:
      return {event.value & 0xffff, TaskSwitchInfo(event)};
    default:
      return {};
  }
}

// A processor reads the map when it enters the guest: one that is nowhere cannot be read.
bool MsrMapIsThere(VirtHost& host, const Intercepts& intercepts) {
  const Gpa map = intercepts.msr_map();
  return !intercepts.uses_msr_map() ||
         (host.Memory(map, kPageBytes) != nullptr &&
          host.Memory(Gpa(map.bits() + kPageBytes), kPageBytes) != nullptr);
}

}  // namespace

// -- instructions

bool SvmUnit::Execute(VirtHost& host, const InterceptedEvent& event) {
  const CpuState state = host.State();
  const bool protected_mode = (state.cr0 & kCr0Pe) != 0 && (state.rflags & kFlagVm) == 0;
  const bool intercepted = host.guest_mode() && intercepts_.Has(event.instruction);
  if (event.instruction == VirtInstruction::kVmmcall ||
      event.instruction == VirtInstruction::kVmcall) {
    return intercepted ? host.LeaveFor(event) : host.RaiseUndefined();
  }
  if ((state.efer & kEferSvme) == 0 || !protected_mode) return host.RaiseUndefined();
  if (event.instruction == VirtInstruction::kSkinit) return host.RaiseUndefined();
  if (state.cpl() != 0) return host.RaiseGeneralProtection();
  if (intercepted) return host.LeaveFor(event);
  switch (event.instruction) {
    case VirtInstruction::kStgi:
    case VirtInstruction::kClgi:
      SetGlobalInterruptFlag(host, event.instruction == VirtInstruction::kStgi);
      return true;
    case VirtInstruction::kInvlpga:
      host.FlushTranslations();
      host.InvalidateNested({.scope = NestedInvalidation::Scope::kTag,
                             .tag = static_cast<std::uint16_t>(host.gpr(kRcx))});
      return true;
    case VirtInstruction::kVmrun:
    case VirtInstruction::kVmload:
    case VirtInstruction::kVmsave:
      break;
    default:
      return host.RaiseUndefined();
  }
  const Gpa block(AddressOperand(host, state));
  const bool fits =
      (block.bits() & kPageMask) == 0 && block.bits() >> host.limits().physical_bits == 0;
  std::byte* const memory = fits ? host.Memory(block, kPageBytes) : nullptr;
  if (memory == nullptr) return host.RaiseGeneralProtection();
  Vmcb vmcb(memory);
  switch (event.instruction) {
    case VirtInstruction::kVmload:
      host.SwitchState(WithLoaded(state, vmcb, host.limits()));
      return true;
    case VirtInstruction::kVmsave:
      SaveMore(vmcb, state);
      host.Wrote(block);
      return true;
    default:
      block_ = block;
      hypervisor_ = state;
      return Run(host, vmcb);
  }
}

bool SvmUnit::Run(VirtHost& host, Vmcb vmcb) {
  intercepts_ = Intercepts(vmcb);
  std::optional<CpuState> guest;
  const RegisterLimits limits = host.limits();
  const bool nests = EnablesNestedPaging(vmcb, limits);
  if (IsConsistent(vmcb, intercepts_, limits) && NestedPagingFits(vmcb, hypervisor_, limits) &&
      MsrMapIsThere(host, intercepts_)) {
    guest = GuestState(host, vmcb, hypervisor_);
  }
  if (limits.nested_paging) ControlTlb(host, vmcb);
  if (!guest) {
    vmcb.Set(field::kExitCode, kExitInvalid);
    vmcb.Set(field::kExitInfo1, 0);
    vmcb.Set(field::kExitInfo2, 0);
    vmcb.Set(field::kExitInterrupt, 0);
    host.Wrote(block_);
    host.interrupts() = {.open = false};
    return true;
  }
  GuestEntry entry = intercepts_.Entry();
  if (nests) {
    guest->pat = vmcb.Get(field::kGuestPat);
    entry.nested = NestedPagingOf(vmcb, hypervisor_, limits, splits_execute_);
    nested_format_ = entry.nested->format;
  }
  host.SwitchState(*guest);
  entry.tsc_offset = vmcb.Get(field::kTscOffset);
  entry.structure = block_;
  host.EnterGuestMode(entry);
  LoadInterrupts(host, vmcb);
  pauses_left_ = vmcb.Get(field::kPauseFilterCount);
  const std::uint64_t event = vmcb.Get(field::kEventInjection);
  if ((event & kEventValid) != 0) {
    host.Deliver(InjectedEvent(event, vmcb.Get(field::kNextRip)));
  }
  return true;
}

// Translations of linear addresses go with every switch.
void SvmUnit::ControlTlb(VirtHost& host, const Vmcb& vmcb) {
  switch (static_cast<TlbControl>(vmcb.Get(field::kTlbControl))) {
    case TlbControl::kNothing:
      return;
    case TlbControl::kGuest:
    case TlbControl::kGuestNonGlobal:
      return host.InvalidateNested({.scope = NestedInvalidation::Scope::kTag,
                                    .tag = static_cast<std::uint16_t>(vmcb.Get(field::kAsid))});
    case TlbControl::kEverything:
      break;
  }
  host.InvalidateNested({});
}

void SvmUnit::LoadInterrupts(VirtHost& host, const Vmcb& vmcb) {
  virtual_interrupt_ = vmcb.Get(field::kVirtualInterrupt);
  const std::uint32_t word = virtual_interrupt_;
  const bool masking = (word & kVirtualMasking) != 0;
  const auto priority = static_cast<std::uint8_t>(word >> kVirtualPriorityShift & 15);
  host.interrupts() = {
      .open = true,
      .by_host_flag = masking,
      .host_flag = (hypervisor_.rflags & kFlagIf) != 0,
      .interrupt_leaves = intercepts_.intercepts_interrupt(),
      .nmi_leaves = intercepts_.intercepts_nmi(),
      .virtual_open = (word & kVirtualGifEnabled) == 0 || (word & kVirtualGif) != 0,
      .virtual_pending = (word & kVirtualIrq) != 0,
      .virtual_vector = static_cast<std::uint8_t>(vmcb.Get(field::kVirtualVector)),
      .virtual_priority = (word & kVirtualIgnoreTpr) != 0 ? std::uint8_t{0xff} : priority,
      .has_virtual_tpr = masking,
      .virtual_tpr = static_cast<std::uint8_t>(word & kVirtualTpr & 15),
  };
}

void SvmUnit::SaveInterrupts(VirtHost& host, Vmcb& vmcb) const {
  const GuestInterrupts& interrupts = host.interrupts();
  std::uint32_t word = virtual_interrupt_ & ~(kVirtualIrq | kVirtualTpr);
  word |= interrupts.virtual_tpr | (interrupts.virtual_pending ? kVirtualIrq : 0);
  if ((word & kVirtualGifEnabled) != 0) {
    word = (word & ~kVirtualGif) | (interrupts.virtual_open ? kVirtualGif : 0);
  }
  vmcb.Set(field::kVirtualInterrupt, word);
}

void SvmUnit::SetGlobalInterruptFlag(VirtHost& host, bool on) {
  const bool of_guest = host.guest_mode() && (virtual_interrupt_ & kVirtualGifEnabled) != 0;
  (of_guest ? host.interrupts().virtual_open : host.interrupts().open) = on;
}

// -- guest mode

bool SvmUnit::Leaves(VirtHost& host, const InterceptedEvent& event) {
  if (event.what == Intercept::kPause && pauses_left_ > 0) {
    --pauses_left_;
    return false;
  }
  return intercepts_.ExitCodeOf(host, event).has_value();
}

void SvmUnit::Leave(VirtHost& host, const InterceptedEvent& event) {
  const ExitInfo info = ExitInfoOf(event, host.State().rip + event.instruction_bytes);
  LeaveWith(host, {.code = intercepts_.ExitCodeOf(host, event).value_or(kExitInvalid),
                   .info1 = info.first,
                   .info2 = info.second,
                   .instruction_bytes = event.instruction_bytes});
}

void SvmUnit::MeetNestedFault(VirtHost& host, const NestedFault& fault) {
  LeaveWith(host, {.code = kExitNestedFault,
                   .info1 = NestedFaultInfo(fault, *nested_format_),
                   .info2 = fault.address.bits()});
}

void SvmUnit::LeaveWith(VirtHost& host, const ExitReport& report) {
  const CpuState state = host.State();
  const std::optional<DeliveredEvent> delivered = host.TakeDelivered();
  if (std::byte* const memory = host.Memory(block_, kPageBytes); memory != nullptr) {
    Vmcb vmcb(memory);
    const bool by_instruction = report.instruction_bytes != 0;
    SaveGuestState(vmcb, state);
    if (nested_format_) vmcb.Set(field::kGuestPat, state.pat);
    SaveInterrupts(host, vmcb);
    vmcb.Set(field::kExitCode, report.code);
    vmcb.Set(field::kExitInfo1, report.info1);
    vmcb.Set(field::kExitInfo2, report.info2);
    vmcb.Set(field::kExitInterrupt, delivered ? EventWord(*delivered) : 0);
    vmcb.Set(field::kEventInjection, vmcb.Get(field::kEventInjection) & ~kEventValid);
    vmcb.Set(field::kNextRip, by_instruction ? state.rip + report.instruction_bytes : 0);
    host.Wrote(block_);
  }
  CpuState next = HypervisorState(state, hypervisor_);
  if (nested_format_) next.pat = hypervisor_.pat;
  nested_format_.reset();
  host.LeaveGuestMode();
  host.interrupts() = {.open = false};
  host.SwitchState(next);
}

// -- MSRs

bool SvmUnit::MayBeEnabled() const { return (vm_cr_ & kVmCrDisable) == 0; }

VirtUnit::MsrAnswer SvmUnit::ReadMsr(const VirtHost&, std::uint32_t index,
                                     std::uint64_t& value) const {
  switch (index) {
    case kMsrVmCr:
      value = vm_cr_;
      return MsrAnswer::kDone;
    case kMsrHostSave:
      value = host_save_;
      return MsrAnswer::kDone;
    default:
      return MsrAnswer::kUnknown;
  }
}

VirtUnit::MsrAnswer SvmUnit::WriteMsr(VirtHost& host, std::uint32_t index, std::uint64_t value) {
  switch (index) {
    case kMsrVmCr: {
      const std::uint64_t locked = (vm_cr_ & kVmCrLock) != 0 ? kVmCrLock | kVmCrDisable : 0;
      const std::uint64_t next = (value & ~locked) | (vm_cr_ & locked);
      const bool enabled = (host.State().efer & kEferSvme) != 0;
      if ((value & ~kVmCrKnown) != 0 || ((next & kVmCrDisable) != 0 && enabled)) {
        return MsrAnswer::kRefused;
      }
      vm_cr_ = next;
      return MsrAnswer::kDone;
    }
    case kMsrHostSave:
      if ((value & kPageMask) != 0 || value >> host.limits().physical_bits != 0) {
        return MsrAnswer::kRefused;
      }
      host_save_ = value;
      return MsrAnswer::kDone;
    default:
      return MsrAnswer::kUnknown;
  }
}

}  // namespace pagesaw::svm
