module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
module pagesaw.plugins.svm.unit;

import pagesaw.core.access;
import pagesaw.core.paging_state;
import pagesaw.plugins.svm.entry_checks;
import pagesaw.plugins.svm.exits;
import pagesaw.plugins.svm.nested_paging;
import pagesaw.plugins.svm.svm_bits;
import pagesaw.plugins.svm.world;

namespace pagesaw::svm {
namespace {

constexpr std::uint64_t kPageMask = kPageBytes - 1;

// An operand in rAX, at the width of the mode.
std::uint64_t AddressOperand(const VirtHost& host, const CpuMode& mode) {
  const std::uint64_t value = host.gpr(kRax);
  return mode.code_64 ? value : static_cast<std::uint32_t>(value);
}

// Whether an exit with this code and EXITINFO1 tells the code that a data access is made by.
// [amd/vol2] "Guest Instruction Bytes"
bool TellsCode(std::uint64_t code, std::uint64_t info) {
  constexpr std::uint64_t kPageFaultCode = kExitException + 14;
  return (code == kPageFaultCode || code == kExitNestedFault) &&
         (info & PageFaultCode::kFetch) == 0;
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
  const CpuMode mode = host.mode();
  const bool intercepted = host.guest_mode() && intercepts_.Has(event.instruction);
  if (event.instruction == VirtInstruction::kVmmcall ||
      event.instruction == VirtInstruction::kVmcall) {
    return intercepted ? host.LeaveFor(event) : host.RaiseUndefined();
  }
  if ((mode.efer & kEferSvme) == 0 || !mode.protected_mode()) return host.RaiseUndefined();
  if (event.instruction == VirtInstruction::kSkinit) return host.RaiseUndefined();
  if (mode.cpl != 0) return host.RaiseGeneralProtection();
  if (intercepted) {
    InterceptedEvent met = event;
    met.value = AddressOperand(host, mode);
    return host.LeaveFor(met);
  }
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
  const Gpa block(AddressOperand(host, mode));
  const bool fits =
      (block.bits() & kPageMask) == 0 && block.bits() >> host.limits().physical_bits == 0;
  if (!fits) return host.RaiseGeneralProtection();
  const bool of_guest = host.guest_mode() && virtual_load_and_save_;
  if (of_guest && event.instruction != VirtInstruction::kVmrun) {
    return LoadOrSaveVirtually(host, event.instruction, block);
  }
  std::byte* const memory = host.Memory(block, kPageBytes);
  if (memory == nullptr) return host.RaiseGeneralProtection();
  if (event.instruction == VirtInstruction::kVmrun) {
    block_ = block;
    hypervisor_ = host.State();
    return Run(host, Vmcb(memory));
  }
  LoadOrSave(host, event.instruction, memory);
  if (event.instruction == VirtInstruction::kVmsave) host.Wrote(block);
  return true;
}

void SvmUnit::LoadOrSave(VirtHost& host, VirtInstruction instruction, std::byte* block) {
  Vmcb vmcb(block);
  if (instruction == VirtInstruction::kVmload) {
    host.LoadSystemRegisters(WithLoaded(host.State(), vmcb, host.limits()));
  } else {
    SaveMore(vmcb, host.State());
  }
}

// The block lies in the guest's own physical space. [amd/vol2] "VMSAVE and VMLOAD Virtualization"
bool SvmUnit::LoadOrSaveVirtually(VirtHost& host, VirtInstruction instruction, Gpa block) {
  std::byte* memory = nullptr;
  if (!host.LocateNested(block, instruction == VirtInstruction::kVmsave, memory)) return false;
  if (memory == nullptr) return host.RaiseGeneralProtection();
  LoadOrSave(host, instruction, memory);
  return true;
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
  virtual_interrupt_ = vmcb.Get(field::kVirtualInterrupt);
  if ((virtual_interrupt_ & kVirtualNmiEnabled) != 0) {
    guest->nmi_blocked = (virtual_interrupt_ & kVirtualNmiMask) != 0;
  }
  host.SwitchState(*guest);
  entry.tsc = {.multiplier = tsc_ratio_,
               .fraction_bits = kTscRatioFractionBits,
               .offset = vmcb.Get(field::kTscOffset)};
  entry.structure = block_;
  host.EnterGuestMode(entry);
  LoadInterrupts(host, vmcb);
  LoadExtensions(host, vmcb, nests);
  pauses_.Start(vmcb.Get(field::kPauseFilterCount), vmcb.Get(field::kPauseFilterThreshold),
                host.Tsc());
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

// [amd/vol2] "LBR Virtualization"
void SvmUnit::LoadExtensions(VirtHost& host, const Vmcb& vmcb, bool nests) {
  const std::uint64_t word = vmcb.Get(field::kVirtualExtensions);
  virtual_load_and_save_ = nests && (word & kVirtualLoadAndSave) != 0;
  hypervisor_records_.reset();
  if ((word & kVirtualRecords) == 0) return;
  hypervisor_records_ = host.records();
  host.SetRecords({.debugctl = vmcb.Get(field::kDebugctl) & kDebugctlKnown,
                   .from = vmcb.Get(field::kBranchFrom),
                   .to = vmcb.Get(field::kBranchTo),
                   .event_from = vmcb.Get(field::kExceptionFrom),
                   .event_to = vmcb.Get(field::kExceptionTo)});
}

void SvmUnit::SaveRecords(const BranchRecords& records, Vmcb& vmcb) {
  vmcb.Set(field::kDebugctl, records.debugctl);
  vmcb.Set(field::kBranchFrom, records.from);
  vmcb.Set(field::kBranchTo, records.to);
  vmcb.Set(field::kExceptionFrom, records.event_from);
  vmcb.Set(field::kExceptionTo, records.event_to);
}

void SvmUnit::LoadInterrupts(VirtHost& host, const Vmcb& vmcb) {
  const std::uint32_t word = virtual_interrupt_;
  const bool virtual_nmis = (word & kVirtualNmiEnabled) != 0;
  const bool masking = (word & kVirtualMasking) != 0;
  const auto priority = static_cast<std::uint8_t>(word >> kVirtualPriorityShift & 15);
  host.interrupts() = {
      .open = true,
      .by_host_flag = masking,
      .host_flag = (hypervisor_.rflags & kFlagIf) != 0,
      .interrupt_leaves = intercepts_.intercepts_interrupt(),
      .nmi_leaves = intercepts_.intercepts_nmi(),
      .virtual_nmis = virtual_nmis,
      .real_nmi_blocked = hypervisor_.nmi_blocked,
      .virtual_nmi_pending = virtual_nmis && (word & kVirtualNmi) != 0,
      .virtual_open = (word & kVirtualGifEnabled) == 0 || (word & kVirtualGif) != 0,
      .virtual_pending = (word & kVirtualIrq) != 0,
      .virtual_vector = static_cast<std::uint8_t>(vmcb.Get(field::kVirtualVector)),
      .virtual_priority = (word & kVirtualIgnoreTpr) != 0 ? std::uint8_t{0xff} : priority,
      .has_virtual_tpr = masking,
      .virtual_tpr = static_cast<std::uint8_t>(word & kVirtualTpr & 15),
  };
}

void SvmUnit::SaveInterrupts(VirtHost& host, const CpuState& state, Vmcb& vmcb) const {
  const GuestInterrupts& interrupts = host.interrupts();
  std::uint32_t word = virtual_interrupt_ & ~(kVirtualIrq | kVirtualTpr);
  word |= interrupts.virtual_tpr | (interrupts.virtual_pending ? kVirtualIrq : 0);
  if ((word & kVirtualGifEnabled) != 0) {
    word = (word & ~kVirtualGif) | (interrupts.virtual_open ? kVirtualGif : 0);
  }
  if ((word & kVirtualNmiEnabled) != 0) {
    word &= ~(kVirtualNmi | kVirtualNmiMask);
    word |= (interrupts.virtual_nmi_pending ? kVirtualNmi : 0) |
            (state.nmi_blocked ? kVirtualNmiMask : 0);
  }
  vmcb.Set(field::kVirtualInterrupt, word);
}

void SvmUnit::SetGlobalInterruptFlag(VirtHost& host, bool on) {
  const bool of_guest = host.guest_mode() && (virtual_interrupt_ & kVirtualGifEnabled) != 0;
  (of_guest ? host.interrupts().virtual_open : host.interrupts().open) = on;
}

// -- guest mode

void PauseFilter::Start(std::uint32_t count, std::uint32_t threshold, std::uint64_t tsc) {
  count_ = left_ = count;
  threshold_ = threshold;
  last_ = tsc;
}

bool PauseFilter::LetsPass(std::uint64_t tsc) {
  if (threshold_ != 0 && tsc - last_ > threshold_) left_ = count_;
  last_ = tsc;
  if (left_ == 0) return false;
  --left_;
  return true;
}

bool SvmUnit::Leaves(VirtHost& host, const InterceptedEvent& event) {
  if (event.what == Intercept::kPause && pauses_.LetsPass(host.Tsc())) return false;
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
  std::array<std::byte, kCodeBytes> code;
  const bool tells_code = !delivered && TellsCode(report.code, report.info1);
  const std::size_t code_count = tells_code ? host.CopyCode(code) : 0;
  if (std::byte* const memory = host.Memory(block_, kPageBytes); memory != nullptr) {
    Vmcb vmcb(memory);
    const bool by_instruction = report.instruction_bytes != 0;
    SaveGuestState(vmcb, state);
    if (nested_format_) vmcb.Set(field::kGuestPat, state.pat);
    SaveInterrupts(host, state, vmcb);
    if (hypervisor_records_) SaveRecords(host.records(), vmcb);
    vmcb.SetCode(code.data(), code_count);
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
  if ((virtual_interrupt_ & kVirtualNmiEnabled) != 0) next.nmi_blocked = hypervisor_.nmi_blocked;
  if (hypervisor_records_) host.SetRecords(*hypervisor_records_);
  host.LeaveGuestMode();
  host.interrupts() = {.open = false};
  host.SwitchState(next);
}

// -- MSRs

bool SvmUnit::MayBeEnabled() const { return (vm_cr_ & kVmCrDisable) == 0; }

VirtUnit::MsrAnswer SvmUnit::ReadMsr(VirtHost&, std::uint32_t index, std::uint64_t& value) const {
  switch (index) {
    case kMsrVmCr:
      value = vm_cr_;
      return MsrAnswer::kDone;
    case kMsrHostSave:
      value = host_save_;
      return MsrAnswer::kDone;
    case kMsrTscRatio:
      value = tsc_ratio_;
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
    case kMsrTscRatio:
      if ((value & ~kTscRatioKnown) != 0) return MsrAnswer::kRefused;
      tsc_ratio_ = value;
      return MsrAnswer::kDone;
    default:
      return MsrAnswer::kUnknown;
  }
}

}  // namespace pagesaw::svm
