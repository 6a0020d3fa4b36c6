module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
module pagesaw.plugins.vmx.unit;

import pagesaw.core.paging_state;
import pagesaw.plugins.vmx.entry_checks;
import pagesaw.plugins.vmx.exits;
import pagesaw.plugins.vmx.msr_lists;
import pagesaw.plugins.vmx.virtualization_exception;
import pagesaw.plugins.vmx.world;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t kFeatureControl = kFeatureControlLock | kFeatureControlVmx;

// Exceptions that are faults tell RF as their handler's frame would. [intel/vol3] "Saving RIP, RSP,
// RFLAGS, and SSP"
bool SetsResumeFlag(const InterceptedEvent& event) {
  constexpr unsigned kDb = 1;
  return event.what == Intercept::kException && event.kind == DeliveredEvent::Kind::kException &&
         event.number != kDb;
}

}  // namespace

// -- VM entries

bool VmxUnit::Launch(VirtHost& host, bool resumes) {
  Vmcs vmcs = operation_->current ? CurrentVmcs(host) : Vmcs();
  if (!operation_->current || vmcs.is_shadow()) {
    host.SetArithmeticFlags(kFlagCf);
    return true;
  }
  if (host.boundary().stack_shadow) return Fail(host, InstructionError::kEntryWithMovSsBlocking);
  if (vmcs.launched() != resumes) {
    return Fail(host, resumes ? InstructionError::kVmresumeNotLaunched
                              : InstructionError::kVmlaunchNotClear);
  }
  const CpuState state = host.State();
  controls_ = Controls(vmcs);
  const EntryContext context = {.host = host,
                                .vmcs = vmcs,
                                .controls = controls_,
                                .capabilities = operation_->capabilities,
                                .limits = host.limits()};
  if (!ControlsFit(context)) return Fail(host, InstructionError::kControls);
  if (!HostStateFits(context, state)) return Fail(host, InstructionError::kHostState);
  host.SetArithmeticFlags(0);
  if (const std::optional<std::uint64_t> failure = GuestStateFailure(context)) {
    return FailEntry(host, vmcs, ExitReason::kInvalidGuestState, *failure);
  }
  const std::optional<CpuState> guest = GuestState(host, vmcs, controls_, state);
  if (!guest) return FailEntry(host, vmcs, ExitReason::kInvalidGuestState, kFailedPdptes);
  return EnterGuest(host, vmcs, *guest);
}

bool VmxUnit::EnterGuest(VirtHost& host, Vmcs& vmcs, const CpuState& guest) {
  host.SwitchState(guest);
  if (controls_.HasEntry(entry::kLoadDebug)) {
    (void)host.WriteMsr(kMsrDebugctl, vmcs.Get(field::kGuestDebugctl));
  }
  const Gpa msrs = vmcs.MsrList(field::kEntryMsrLoad);
  if (const std::uint32_t failed = LoadMsrs(host, msrs, vmcs.Get32(field::kEntryMsrLoadCount))) {
    return FailEntry(host, vmcs, ExitReason::kMsrLoading, failed);
  }
  vmcs.set_launched(true);
  host.Wrote(*operation_->current);
  intercepts_ = Intercepts(vmcs, controls_);
  virtual_apic_ = VirtualApic(vmcs, controls_);
  if (controls_.HasSecondary(secondary::kPauseLoop)) {
    pauses_ = PauseLoop(vmcs.Get32(field::kPauseGap), vmcs.Get32(field::kPauseWindow));
  }
  entry_ = intercepts_.Entry();
  GuestEntry& entry = entry_;
  entry.structure = *operation_->current;
  entry.apic_page = virtual_apic_.access_page();
  if (controls_.ept()) entry.nested = EptOfGuest(host, vmcs.Get(field::kEptPointer));
  if (controls_.HasPin(pin::kPreemptionTimer)) {
    const std::uint64_t now = host.Tsc() >> kPreemptionTimerShift;
    entry.deadline = (now + vmcs.Get(field::kPreemptionTimer)) << kPreemptionTimerShift;
  }
  const std::uint32_t blocking = vmcs.Get32(field::kInterruptibility);
  BoundaryState boundary = {.stack_shadow = (blocking & kBlockedByMovSs) != 0};
  const std::uint32_t event = vmcs.Get32(field::kEntryInterruption);
  if ((event & kEventValid) == 0) {
    boundary.debug_causes =
        vmcs.Get(field::kGuestPendingDebug) & (kPendingBreakpoints | kPendingStep);
  } else if (TypeOf(event) == EventType::kOther) {
    entry.step_pending = true;
  }
  host.SetBoundary(boundary);
  LoadInterrupts(host);
  const FixedBits cr0 = controls_.unrestricted() ? operation_->capabilities.unrestricted_cr0()
                                                 : operation_->capabilities.cr0();
  host.SetFixedControls(cr0.required, operation_->capabilities.cr4().required);
  host.EnterGuestMode(entry);
  if ((event & kEventValid) != 0 && !entry.step_pending) {
    host.Deliver(InjectedEvent(event, vmcs.Get32(field::kEntryErrorCode), guest.rip,
                               vmcs.Get32(field::kEntryInstructionLength)));
  }
  return true;
}

NestedPaging VmxUnit::EptOfGuest(const VirtHost& host, std::uint64_t pointer) const {
  NestedPaging nested =
      EptOf(pointer, host.limits().physical_bits, controls_.splits_execute() ? split_ : nullptr);
  nested.logs_dirty = controls_.HasSecondary(secondary::kPageModificationLog);
  return nested;
}

void VmxUnit::LoadInterrupts(VirtHost& host) {
  const bool interrupts = controls_.HasPin(pin::kInterruptExiting);
  const bool nmis = controls_.HasPin(pin::kNmiExiting);
  const bool virtual_nmis = controls_.HasPin(pin::kVirtualNmis);
  GuestInterrupts& to = host.interrupts();
  to = {.by_host_flag = interrupts,
        .host_flag = true,
        .interrupt_leaves = interrupts,
        .nmi_leaves = nmis,
        .taken_on_leaving = controls_.HasExit(exits::kAcknowledge),
        .nmi_taken_on_leaving = true,
        .init_taken_on_leaving = true,
        .virtual_nmis = virtual_nmis,
        .iret_keeps_nmi_blocked = nmis && !virtual_nmis};
  virtual_apic_.Enter(host);
}

// [intel/vol3] "VM-Entry Failures During or After Loading Guest State"
bool VmxUnit::FailEntry(VirtHost& host, Vmcs& vmcs, ExitReason reason,
                        std::uint64_t qualification) {
  vmcs.Set(field::kExitReason, static_cast<std::uint32_t>(reason) | kEntryFailure);
  vmcs.Set(field::kQualification, qualification);
  host.Wrote(*operation_->current);
  LoadHost(host, vmcs, host.State().nmi_blocked);
  return true;
}

// -- VM exits

bool PauseLoop::Ends(std::uint64_t tsc) {
  if (!first_ || tsc - last_ > gap_) first_ = tsc;
  last_ = tsc;
  return tsc - *first_ > window_;
}

bool VmxUnit::Leaves(VirtHost& host, const InterceptedEvent& event) {
  switch (event.what) {
    case Intercept::kVirtualApic:
      apic_exit_ = virtual_apic_.Emulate(host);
      return apic_exit_.has_value();
    case Intercept::kInterrupt:
      return !controls_.HasPin(pin::kPostedInterrupts) ||
             !virtual_apic_.TakePosted(host, event.number);
    case Intercept::kPause:
      return controls_.HasPrimary(primary::kPause) ||
             (host.mode().cpl == 0 && pauses_.Ends(host.Tsc()));
    default:
      return intercepts_.Leaves(host, event);
  }
}

// [intel/vol3] "Exit Qualification for APIC-Access VM Exits from Linear Accesses and Guest-Physical
// Accesses"
std::byte* VmxUnit::AccessApicPage(VirtHost& host, const PageAccess& access) {
  enum AccessType : std::uint64_t { kRead, kWrite, kFetch, kInDelivery };
  std::byte* const at = virtual_apic_.Access(host, access);
  if (at != nullptr) return at;
  std::uint64_t type = kRead;
  if (access.kind == PageAccess::Kind::kWrite) type = kWrite;
  if (access.kind == PageAccess::Kind::kFetch) type = kFetch;
  if (access.in_delivery) type = kInDelivery;
  host.LeaveFor({.what = Intercept::kApicAccess, .value = access.offset | type << 12});
  return nullptr;
}

void VmxUnit::Leave(VirtHost& host, const InterceptedEvent& event) {
  exit_tsc_ = host.Tsc();
  CpuState state = host.State();
  const bool nmi_blocked = event.what == Intercept::kNmi || NmisStayBlocked(state);
  if (event.what == Intercept::kShutdown) state.activity = Activity::kActive;
  state.rflags = SetsResumeFlag(event) ? state.rflags | kFlagRf : state.rflags & ~kFlagRf;
  Vmcs vmcs = CurrentVmcs(host);
  SaveGuest(host, vmcs, state);
  InterceptedEvent told = event;
  if (event.what == Intercept::kVirtualApic && apic_exit_) {
    told.number = static_cast<std::uint32_t>(apic_exit_->reason);
    told.value = apic_exit_->qualification;
  }
  RecordExit(vmcs, told, state, host.TakeDelivered(), controls_.HasExit(exits::kAcknowledge));
  EndExit(host, vmcs, nmi_blocked);
}

bool VmxUnit::ConvertsToException(VirtHost& host, const NestedFault& fault) {
  if (!controls_.HasSecondary(secondary::kViolationException) || fault.malformed ||
      fault.log_full || (host.State().cr0 & kCr0Pe) == 0 ||
      !IsConvertible(host, *entry_.nested, fault.address)) {
    return false;
  }
  const Vmcs vmcs = CurrentVmcs(host);
  const ViolationReport report = {
      .qualification = ViolationQualification(fault, entry_.nested->format),
      .linear = fault.linear.bits(),
      .physical = fault.address.bits(),
      .pointer_index = static_cast<std::uint16_t>(vmcs.Get(field::kEptPointerIndex))};
  if (!WriteReport(host, vmcs.Page(field::kViolationInformation), report)) return false;
  if ((entry_.exceptions >> kVirtualizationException & 1) != 0) {
    Leave(host, {.what = Intercept::kException, .number = kVirtualizationException});
  } else {
    host.Deliver({.kind = DeliveredEvent::Kind::kException, .vector = kVirtualizationException});
  }
  return true;
}

void VmxUnit::MeetNestedFault(VirtHost& host, const NestedFault& fault) {
  const std::optional<DeliveredEvent> delivered = host.TakeDelivered();
  if (!delivered && ConvertsToException(host, fault)) return;
  exit_tsc_ = host.Tsc();
  CpuState state = host.State();
  state.rflags |= kFlagRf;
  Vmcs vmcs = CurrentVmcs(host);
  SaveGuest(host, vmcs, state);
  RecordNestedFault(vmcs, fault, entry_.nested->format, state, delivered);
  EndExit(host, vmcs, NmisStayBlocked(state));
}

// [intel/vol3] "Page-Modification Logging"
bool VmxUnit::LogDirty(VirtHost& host, Gpa address) {
  constexpr std::uint64_t kEntries = 512;
  Vmcs vmcs = CurrentVmcs(host);
  const std::uint64_t index = vmcs.Get(field::kLogIndex);
  if (index >= kEntries) return false;
  const Gpa at = vmcs.Page(field::kLogAddress, 8 * index);
  if (std::byte* const memory = host.Memory(at, 8); memory != nullptr) {
    std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory))
        .store(address.bits() & ~(kPageBytes - 1), std::memory_order_relaxed);
    host.Wrote(at);
  }
  vmcs.Set(field::kLogIndex, index - 1);
  host.Wrote(*operation_->current);
  return true;
}

bool VmxUnit::NmisStayBlocked(const CpuState& state) const {
  return state.nmi_blocked && !controls_.HasPin(pin::kVirtualNmis);
}

void VmxUnit::SaveGuest(VirtHost& host, Vmcs& vmcs, const CpuState& state) {
  SaveGuestState(vmcs, controls_, state, host.boundary());
  SaveTimer(vmcs);
  if (controls_.HasExit(exits::kSaveDebug)) {
    std::uint64_t debugctl = 0;
    (void)host.ReadMsr(kMsrDebugctl, debugctl);
    vmcs.Set(field::kGuestDebugctl, debugctl);
  }
  virtual_apic_.Save(host, vmcs);
}

void VmxUnit::EndExit(VirtHost& host, Vmcs& vmcs, bool nmi_blocked) {
  vmcs.Set(field::kEntryInterruption, vmcs.Get(field::kEntryInterruption) & ~kEventValid);
  host.Wrote(*operation_->current);
  host.LeaveGuestMode();
  host.interrupts() = {.init_open = false};
  host.SetFixedControls(operation_->capabilities.cr0().required,
                        operation_->capabilities.cr4().required);
  const Gpa msrs = vmcs.MsrList(field::kExitMsrStore);
  const bool stored = StoreMsrs(host, msrs, vmcs.Get32(field::kExitMsrStoreCount), exit_tsc_) == 0;
  LoadHost(host, vmcs, nmi_blocked);
  if (!stored) Abort(host);
}

void VmxUnit::SaveTimer(Vmcs& vmcs) const {
  if (!controls_.HasExit(exits::kSavePreemptionTimer)) return;
  const std::uint64_t now = exit_tsc_ >> kPreemptionTimerShift;
  const std::uint64_t end = entry_.deadline.value_or(0) >> kPreemptionTimerShift;
  vmcs.Set(field::kPreemptionTimer, end > now ? end - now : 0);
}

void VmxUnit::LoadHost(VirtHost& host, Vmcs& vmcs, bool nmi_blocked) {
  std::optional<CpuState> next = HypervisorState(host, vmcs, controls_, host.State());
  if (!next) return Abort(host);
  next->nmi_blocked = nmi_blocked;
  host.SwitchState(*next);
  (void)host.WriteMsr(kMsrDebugctl, 0);
  const Gpa msrs = vmcs.MsrList(field::kExitMsrLoad);
  if (LoadMsrs(host, msrs, vmcs.Get32(field::kExitMsrLoadCount)) != 0) Abort(host);
}

// [intel/vol3] "VMX Aborts"
void VmxUnit::Abort(VirtHost& host) {
  CpuState state = host.State();
  state.activity = Activity::kShutdown;
  host.SwitchState(state);
}

// -- MSRs

// Firmware has enabled VMX and locked that.
VirtUnit::MsrAnswer VmxUnit::ReadMsr(VirtHost& host, std::uint32_t index,
                                     std::uint64_t& value) const {
  if (index == kMsrFeatureControl) {
    value = kFeatureControl;
    return MsrAnswer::kDone;
  }
  if (index < kMsrBasic || index > kMsrVmfunc) {
    return host.guest_mode() ? virtual_apic_.ReadMsr(host, index, value) : MsrAnswer::kUnknown;
  }
  const std::optional<std::uint64_t> capability = Capabilities(host, split_ != nullptr).Msr(index);
  value = capability.value_or(0);
  return capability ? MsrAnswer::kDone : MsrAnswer::kRefused;
}

VirtUnit::MsrAnswer VmxUnit::WriteMsr(VirtHost& host, std::uint32_t index, std::uint64_t value) {
  const bool ours = index == kMsrFeatureControl || (index >= kMsrBasic && index <= kMsrVmfunc);
  if (ours) return MsrAnswer::kRefused;
  return host.guest_mode() ? virtual_apic_.WriteMsr(host, index, value) : MsrAnswer::kUnknown;
}

}  // namespace pagesaw::vmx
