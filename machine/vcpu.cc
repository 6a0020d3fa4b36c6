module;
#include <absl/strings/str_format.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
module pagesaw.machine.vcpu;

import pagesaw.machine.hypercalls;

namespace pagesaw {
namespace {

// A guess that errs to the late side only a little: instructions take a few nanoseconds each.
constexpr std::uint64_t kNsPerInstruction = 10;
// Virtual time is not skipped beyond this, 146 years, so that sums of times do not wrap.
constexpr std::uint64_t kVirtualEndNs = std::uint64_t{1} << 62;
constexpr std::uint64_t kShortestSlice = 2'000;
// What an exit counts for, as it takes time, too.
constexpr std::uint64_t kInstructionsPerExit = 50;

void CountOne(std::atomic<std::uint64_t>& counter) {
  counter.fetch_add(1, std::memory_order_relaxed);
}

// Unless the fault turns out to be a device's.
bool IsForMmu(ExitReason reason) {
  return reason == ExitReason::kTableFault || reason == ExitReason::kPagingChanged ||
         reason == ExitReason::kInvalidate || reason == ExitReason::kNestedPaging;
}

bool IsMmio(const BusAccess& access) {
  return access.kind == BusAccess::Kind::kMmioRead || access.kind == BusAccess::Kind::kMmioWrite;
}

MmuFault MmuFaultOf(const TableFault& fault) {
  return {.address = fault.address,
          .access = fault.access,
          .stage = fault.stage,
          .malformed = fault.malformed,
          .present = fault.present,
          .linear = fault.linear};
}

// What `found`, met by a walk of nested tables for `fault`, is to the hypervisor.
NestedFault NestedFaultOf(const TableFault& fault, const FaultResolution& resolution) {
  using Kind = WalkFault::Kind;
  const WalkFault& found = resolution.guest_fault;
  const bool malformed = found.kind == Kind::kMalformed;
  const bool present = malformed || found.kind == Kind::kRights;
  return {.address = Gpa(fault.address.bits()),
          .access = fault.access,
          .stage = fault.stage,
          .present = present,
          .malformed = malformed,
          .log_full = resolution.log_full,
          .rights = present ? found.rights : Rights(),
          .linear = fault.linear,
          .linear_valid = fault.linear_valid,
          .guest_rights = fault.guest_rights};
}

}  // namespace

Vcpu::Vcpu(const VcpuEnvironment& environment, std::unique_ptr<Processor> processor,
           std::unique_ptr<ShadowMmu> root_mmu, std::unique_ptr<ShadowMmu> guest_mmu,
           LocalApic& apic, MsrFile& msrs)
    : environment_(environment),
      processor_(std::move(processor)),
      root_mmu_(std::move(root_mmu)),
      guest_mmu_(std::move(guest_mmu)),
      active_mmu_(root_mmu_.get()),
      apic_(apic),
      msrs_(msrs),
      waits_for_start_up_(apic.id() != 0) {}

// -- the loop

std::optional<VmExit> Vcpu::Step(std::uint64_t wait_limit_ns) {
  const std::uint64_t now = environment_.clock->NowNs();
  // A device that is polled may use guest memory as in an exit.
  exit_epoch_.fetch_add(1);
  PollTimers(now);
  exit_epoch_.fetch_add(1);
  exit_epoch_.notify_all();
  TakeSleepRequests();
  if (Ending ending = TakeStartMessages(); ending.has_value()) return ending;
  if (asleep_ || waits_for_start_up_ || (halted_ && !ShouldWake())) {
    if (environment_.virtual_time != nullptr) {
      WaitVirtually();
    } else {
      Wait(std::min(wait_limit_ns, NextDeadline()));
    }
    return std::nullopt;
  }
  halted_ = false;
  InjectPending();
  return RunSlice(now);
}

// Exits for the shadow MMU alone change nothing that devices, timers or interrupts could see: the
// guest runs on at once. Whoever wants more than that calls Kick.
std::optional<VmExit> Vcpu::RunSlice(std::uint64_t now_ns) {
  std::uint64_t budget = SliceAt(now_ns);
  for (;;) {
    const std::uint64_t before = processor_->progress();
    const Exit exit = RunGuest(budget);
    exit_epoch_.fetch_add(1);
    Ending ending = Handle(exit);
    exit_epoch_.fetch_add(1);
    exit_epoch_.notify_all();
    if (ending.has_value()) return ending;
    const std::uint64_t used = processor_->progress() - before + kInstructionsPerExit;
    if (needs_turn_ || lent_count_ != 0 || used >= budget) return std::nullopt;
    budget -= used;
  }
}

// How many instructions the guest may execute before somebody looks up.
std::uint64_t Vcpu::SliceAt(std::uint64_t now_ns) const {
  if (lent_count_ != 0) return 1;
  // To the end of a block: an IRET that unblocks NMIs is one, and what makes INIT be heard.
  if (nmis_pending_ != 0 || init_pending_) return 1;
  const std::uint64_t deadline = NextDeadline();
  const std::uint64_t left_ns = deadline > now_ns ? deadline - now_ns : 0;
  if (environment_.virtual_time != nullptr) {
    // Exactly to the deadline.
    const std::uint64_t left = left_ns / VirtualTime::kNsPerInstruction;
    return std::clamp<std::uint64_t>(left, 1, kSliceInstructions);
  }
  return std::clamp(left_ns / kNsPerInstruction, kShortestSlice, kSliceInstructions);
}

std::uint64_t Vcpu::NextDeadline() const {
  // The first vCPU looks after the devices.
  return std::min(apic_.next_deadline_ns(),
                  apic_.id() == 0 ? environment_.bus->next_deadline_ns() : kNever);
}

void Vcpu::PollTimers(std::uint64_t now_ns) {
  if (apic_.next_deadline_ns() <= now_ns) apic_.Poll();
  if (apic_.id() == 0) environment_.bus->Poll(now_ns);
}

std::optional<VmExit> Vcpu::TakeStartMessages() {
  init_pending_ = apic_.TakeInit() || init_pending_;
  const bool takes_init = init_pending_ && processor_->CanTakeInit();
  const InitAnswer answer = takes_init ? processor_->TakeInit() : InitAnswer::kWaits;
  if (takes_init) halted_ = false;
  if (answer != InitAnswer::kWaits) init_pending_ = false;
  if (takes_init && answer == InitAnswer::kReset) {
    if (apic_.id() == 0) {
      // It would start at the reset vector, where there is no firmware.
      return VmExit{.reason = StopReason::kReset,
                    .message = "the guest sent INIT to the bootstrap processor"};
    }
    apic_.ResetForInit();
    processor_->SetState(ResetState());
    HandlePagingChange(Invalidation{});
    waits_for_start_up_ = true;
    halted_ = false;
  }
  const std::optional<std::uint8_t> vector = apic_.TakeStartUp();
  if (vector.has_value() && waits_for_start_up_) {
    StartAt(std::uint32_t{*vector} << 12);
    waits_for_start_up_ = false;
  } else if (vector.has_value() && processor_->TakeStartUp(*vector)) {
    halted_ = false;
  }
  return std::nullopt;
}

// In real mode, at an address below 1 MiB.
void Vcpu::StartAt(std::uint32_t address) {
  CpuState state = ResetState();
  state.rip = address & 15;
  state.segments[kCs].selector = static_cast<std::uint16_t>(address >> 4);
  state.segments[kCs].base = address & 0xffff0;
  processor_->SetState(state);
  HandlePagingChange(Invalidation{});
}

void Vcpu::Suspend() {
  suspend_requested_.store(true);
  Kick();
}

void Vcpu::WakeUp() {
  wake_up_requested_.store(true);
  Kick();
}

// [acpi] "Waking Using the Firmware Waking Vector"
void Vcpu::TakeSleepRequests() {
  if (suspend_requested_.exchange(false)) {
    apic_.Reset();
    processor_->SetState(ResetState());
    HandlePagingChange(Invalidation{});
    nmis_pending_ = 0;
    halted_ = false;
    asleep_ = true;
  }
  if (!wake_up_requested_.exchange(false) || !asleep_) return;
  asleep_ = false;
  waits_for_start_up_ = apic_.id() != 0;
  if (!waits_for_start_up_) {
    StartAt(environment_.waking_vector ? environment_.waking_vector() : 0);
  }
}

bool Vcpu::InterruptPending() const {
  return apic_.HasInterrupt() || (environment_.pic->HasInterrupt() && apic_.AcceptsExternal());
}

// One NMI may be handled and one wait. [intel/vol3] "Handling Multiple NMIs"
void Vcpu::TakeNmis() {
  if (!processor_->HasQueuedEvent()) nmi_queued_ = false;
  const unsigned arrived = apic_.TakeNmis();
  if (arrived == 0) return;
  const bool handling = nmi_queued_ || processor_->GetState().nmi_blocked;
  nmis_pending_ = std::min(nmis_pending_ + arrived, handling ? 1u : 2u);
}

bool Vcpu::ShouldWake() {
  TakeNmis();
  if (processor_->HasQueuedEvent()) return true;
  if (nmis_pending_ != 0 && processor_->CanTakeNmi()) return true;
  return processor_->CanTakeInterrupt() && InterruptPending();
}

// Virtual time stands still while nothing is executed: it skips to what comes next. If nothing
// does, only the outside can end the wait.
void Vcpu::WaitVirtually() {
  const std::uint64_t deadline = NextDeadline();
  if (deadline <= kVirtualEndNs) {
    environment_.virtual_time->SkipTo(deadline);
    return;
  }
  constexpr std::chrono::milliseconds kLook(50);
  std::unique_lock lock(wake_mutex_);
  wake_.wait_for(lock, kLook, [this] { return kicked_; });
  kicked_ = false;
}

void Vcpu::Wait(std::uint64_t until_ns) {
  std::unique_lock lock(wake_mutex_);
  const auto kicked = [this] { return kicked_; };
  if (until_ns == kNever) {
    wake_.wait(lock, kicked);
  } else {
    const std::uint64_t now = environment_.clock->NowNs();
    // Bounded, so that no deadline is too far away for the host's clock.
    constexpr std::uint64_t kLongestWaitNs = 3'600'000'000'000;
    const std::uint64_t wait_ns = until_ns > now ? std::min(until_ns - now, kLongestWaitNs) : 0;
    wake_.wait_for(lock, std::chrono::nanoseconds(wait_ns), kicked);
  }
  kicked_ = false;
}

void Vcpu::Kick() {
  {
    const std::lock_guard lock(wake_mutex_);
    kicked_ = true;
  }
  wake_.notify_one();
  processor_->RequestExit();
}

void Vcpu::InjectPending() {
  TakeNmis();
  if (nmis_pending_ != 0 && processor_->CanTakeNmi() && processor_->TakeNmi()) {
    nmi_queued_ = true;
    --nmis_pending_;
  }
  if (InterruptPending() && processor_->CanTakeInterrupt()) {
    processor_->TakeInterrupt([this] {
      CountOne(interrupts_);
      const std::optional<std::uint8_t> vector = apic_.AcknowledgeInterrupt();
      return vector.has_value() ? *vector : environment_.pic->Acknowledge();
    });
  }
  processor_->SetInterruptWindow(InterruptPending());
}

Exit Vcpu::RunGuest(std::uint64_t budget) {
  EnterGuest();
  const Exit exit = processor_->Run(budget);
  LeaveGuest();
  for (const Gpa page : processor_->TakeDirectWrites()) root_mmu_->GuestWrote(page, kPageBytes);
  if (lent_count_ != 0) TellOfProtectedWrites();
  return exit;
}

// Tables are asked for outside: whoever waits for this vCPU to leave the guest may hold what the
// shadow MMU needs to make them.
void Vcpu::EnterGuest() {
  for (;;) {
    if (!tables_set_ || active_mmu_->roots_obsolete()) {
      const ShadowRoot root = active_mmu_->Root();
      processor_->SetTables({.format = &active_mmu_->format(),
                             .root = root.table,
                             .level = root.level,
                             .second_stage = environment_.tdp || nested(),
                             .tables_are_written = tables_are_written_});
      tables_set_ = true;
    }
    // From here on a flush waits for this vCPU to leave; one asked for before is done now.
    guest_epoch_.fetch_add(1);
    if (flush_requested_.load() && flush_requested_.exchange(false)) processor_->FlushTlb();
    if (contents_flush_requested_.load() && contents_flush_requested_.exchange(false)) {
      processor_->FlushContents();
    }
    if (!active_mmu_->roots_obsolete()) return;
    LeaveGuest();
  }
}

void Vcpu::LeaveGuest() {
  guest_epoch_.fetch_add(1);
  guest_epoch_.notify_all();
}

void Vcpu::RequestFlush() { flush_requested_.store(true); }

void Vcpu::RequestContentsFlush() { contents_flush_requested_.store(true); }

void Vcpu::WaitOutOfGuest() {
  const std::uint32_t epoch = guest_epoch_.load();
  if ((epoch & 1) == 0) return;
  processor_->RequestExit();
  guest_epoch_.wait(epoch);
}

void Vcpu::WaitOutOfExit() {
  const std::uint32_t epoch = exit_epoch_.load();
  if ((epoch & 1) != 0) exit_epoch_.wait(epoch);
}

// -- exits

std::optional<VmExit> Vcpu::Handle(const Exit& exit) {
  CountOne(exits_);
  needs_turn_ = !IsForMmu(exit.reason);
  switch (exit.reason) {
    case ExitReason::kBudget:
    case ExitReason::kRequested:
    case ExitReason::kInterruptWindow:
      return std::nullopt;
    case ExitReason::kHalt:
      CountOne(exits_halt_);
      halted_ = true;
      return std::nullopt;
    case ExitReason::kBus: {
      CountOne(exits_bus_);
      BusAccess access = exit.bus;
      if (!environment_.tdp && !nested() && access.kind == BusAccess::Kind::kMmioRead) {
        return HandlePdpteRead(access);
      }
      Dispatch(access);
      processor_->CompleteBus(access);
      return std::nullopt;
    }
    case ExitReason::kTableFault:
      CountOne(exits_table_fault_);
      return HandleFault(exit.fault);
    case ExitReason::kShutdown:
      return VmExit{.reason = StopReason::kShutdown,
                    .message = absl::StrFormat("the guest shut down (triple fault) at rip 0x%x",
                                               processor_->GetState().rip)};
    case ExitReason::kPagingChanged:
      HandlePagingChange(exit.invalidation);
      return std::nullopt;
    case ExitReason::kInvalidate:
      root_mmu_->Invalidate(exit.invalidation);
      return std::nullopt;
    case ExitReason::kNestedPaging:
      HandleNestedPaging(exit.invalidation);
      return std::nullopt;
  }
  return std::nullopt;
}

// The one that the processor's tables are to come from now.
void Vcpu::ChooseMmu() {
  ShadowMmu* const chosen = processor_->nested_paging() != nullptr ? guest_mmu_.get() : nullptr;
  active_mmu_ = chosen != nullptr ? chosen : root_mmu_.get();
  tables_are_written_ = chosen != nullptr && processor_->nested_paging()->tables_are_written;
}

void Vcpu::HandleNestedPaging(const Invalidation& invalidation) {
  ChooseMmu();
  if (const std::optional<NestedInvalidation> gone = processor_->TakeNestedInvalidation();
      gone && guest_mmu_ != nullptr) {
    guest_mmu_->InvalidateNested(*gone);
  }
  if (nested()) {
    environment_.mmu->SetNestedPaging(apic_.id(), *processor_->nested_paging());
    guest_mmu_->NestedPagingChanged(*processor_->nested_paging());
  } else {
    HandlePagingChange(invalidation);
  }
  tables_set_ = false;
}

void Vcpu::HandlePagingChange(const Invalidation& invalidation) {
  const ShadowMmu* const before = active_mmu_;
  ChooseMmu();
  if (active_mmu_ != before) tables_set_ = false;
  if (environment_.tdp || nested()) return;
  const PagingState state = processor_->paging_snapshot();
  environment_.mmu->SetPagingState(apic_.id(), state);
  root_mmu_->PagingChanged(state, invalidation);
  tables_set_ = false;
}

std::optional<VmExit> Vcpu::HandleFault(const TableFault& fault) {
  // Protection-key registers change without an exit.
  if (!environment_.tdp && !nested()) {
    environment_.mmu->SetPagingState(apic_.id(), processor_->paging_snapshot());
  }
  const FaultResolution resolution = active_mmu_->HandleFault(MmuFaultOf(fault));
  if (resolution.violation) NoteViolation(*resolution.violation, fault);
  switch (resolution.outcome) {
    case FaultOutcome::kFixed:
    case FaultOutcome::kSpurious:
    case FaultOutcome::kRetry:
      return NoteFruitless(fault);
    case FaultOutcome::kGuestFault:
      if (nested()) {
        processor_->MeetNestedFault(NestedFaultOf(fault, resolution));
        return std::nullopt;
      }
      processor_->Inject({.kind = Event::Kind::kException,
                          .vector = 14,
                          .has_error_code = true,
                          .error_code = resolution.guest_fault.code.bits(),
                          .cr2 = fault.linear.bits()});
      return std::nullopt;
    case FaultOutcome::kMmio:
      return HandleDeviceFault(fault, resolution.gpa);
    case FaultOutcome::kOutOfMemory:
      return ErrorAt("the host has no memory for the tables that map guest address",
                     resolution.gpa.bits());
    case FaultOutcome::kWriteProtected:
      return HandleProtectedWrite(fault, resolution);
    case FaultOutcome::kAttributeViolation:
      Refuse(*resolution.violation, fault);
      return std::nullopt;
  }
  return std::nullopt;
}

void Vcpu::NoteViolation(const AttributeViolation& violation, const TableFault& fault) {
  if (!environment_.violated) return;
  Access access = violation.access;
  if (violation.stage == Stage::kFinal) access = fault.made;
  environment_.violated({.vcpu = apic_.id(),
                         .rip = processor_->GetState().rip,
                         .gpa = violation.gpa,
                         .linear = fault.linear_valid ? fault.linear : Gva(),
                         .access = access,
                         .stage = violation.stage,
                         .missing = MemoryAttribute::NeededFor(violation.access),
                         .attribute = violation.attribute});
}

// What the attribute's policy wants besides the note. Where it is to stop, whoever was told has
// asked for the pause, and the instruction starts again when the VM is let run on.
void Vcpu::Refuse(const AttributeViolation& violation, const TableFault& fault) {
  needs_turn_ = true;  // the VM may be to be held
  if (violation.attribute.policy == ViolationPolicy::kPageFault) {
    const PagingState paging = processor_->paging_snapshot();
    const bool reports_fetch =
        (paging.cr4 & kCr4Smep) != 0 || ((paging.cr4 & kCr4Pae) != 0 && paging.no_execute());
    const std::uint32_t code =
        fault.made.code_bits() & ~(reports_fetch ? 0 : PageFaultCode::kFetch);
    processor_->Inject({.kind = Event::Kind::kException,
                        .vector = 14,
                        .has_error_code = true,
                        .error_code = code | PageFaultCode::kPresent,
                        .cr2 = fault.linear.bits()});
  } else if (violation.attribute.policy == ViolationPolicy::kGeneralProtection) {
    processor_->Inject({.kind = Event::Kind::kException, .vector = 13, .has_error_code = true});
  }
}

// Not through SPTEs: a processor that runs on linear SPTEs asks for its PDPTEs by their address.
std::optional<VmExit> Vcpu::HandlePdpteRead(BusAccess access) {
  const Gpa gpa(access.address);
  MemoryAttribute attribute;
  if (environment_.attributes != nullptr) attribute = environment_.attributes->Of(GfnOf(gpa));
  const AttributeViolation violation = {.gpa = gpa, .stage = Stage::kTable, .attribute = attribute};
  const bool refused = attribute.Refuses(violation.access);
  const bool goes_on = !refused || attribute.policy == ViolationPolicy::kLog;
  if (goes_on && !ReadMemory(access)) Dispatch(access);
  if (refused) NoteViolation(violation, TableFault{});
  if (goes_on) {
    processor_->CompleteBus(access);
  } else {
    Refuse(violation, TableFault{});
  }
  return std::nullopt;
}

// The processor makes the write itself, so that it is atomic and happens once, but the shadow MMU
// hears of it before anything else is executed.
std::optional<VmExit> Vcpu::HandleProtectedWrite(const TableFault& fault,
                                                 const FaultResolution& resolution) {
  if (fault.stage == Stage::kTable) {
    BusAccess access = fault.bus;
    access.value = 1;
    processor_->CompleteBus(access);
  } else {
    processor_->LendPage(fault.linear, resolution.host);
  }
  if (lent_count_ == lent_pages_.size()) {
    std::move(lent_pages_.begin() + 1, lent_pages_.end(), lent_pages_.begin());
    --lent_count_;
  }
  lent_pages_[lent_count_++] = AlignDown(resolution.gpa, Level::kPt);
  lent_retired_ = processor_->instructions_retired();
  return NoteFruitless(fault);
}

void Vcpu::TellOfProtectedWrites() {
  for (unsigned i = 0; i < lent_count_; ++i) root_mmu_->GuestWrote(lent_pages_[i], kPageBytes);
  // Until the instruction is done it may write again.
  if (processor_->instructions_retired() != lent_retired_) lent_count_ = 0;
}

// Answers a read of guest-physical memory, if there is any.
bool Vcpu::ReadMemory(BusAccess& access) const {
  if (access.kind != BusAccess::Kind::kMmioRead || environment_.memory == nullptr) return false;
  const std::byte* host = HostRange(*environment_.memory, Gpa(access.address), access.bytes, false);
  if (host == nullptr || access.bytes != 8 || access.address % 8 != 0) return false;
  access.value = std::atomic_ref(*reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(host)))
                     .load(std::memory_order_acquire);
  return true;
}

// No memory takes the access. Where data moves, a device or the empty bus answers; that includes
// entries of guest tables that do not lie in RAM. Where none moves (the processor asks whether it
// could write, or an entry of a table in read-only memory wants its A bit), the answer is that
// nothing happens.
std::optional<VmExit> Vcpu::HandleDeviceFault(const TableFault& fault, Gpa gpa) {
  if (fault.access.is_fetch()) {
    return ErrorAt("the guest executes where there is no memory, at guest address", gpa.bits());
  }
  BusAccess access = fault.bus;
  access.address = gpa.bits();
  if (access.bytes != 0) Dispatch(access);
  access.address = fault.bus.address;  // as the processor asked: it may know a linear address only
  processor_->CompleteBus(access);
  return NoteFruitless(fault);
}

std::optional<VmExit> Vcpu::NoteFruitless(const TableFault& fault) {
  const std::uint64_t progress = processor_->progress();
  const std::uint64_t page = fault.address.bits() >> kPageShift;
  if (progress != fruitless_progress_ || page != fruitless_page_) {
    fruitless_progress_ = progress;
    fruitless_page_ = page;
    fruitless_count_ = 0;
    return std::nullopt;
  }
  if (++fruitless_count_ < kMaxFruitlessFaults) return std::nullopt;
  return ErrorAt("internal: the same fault came back without end at guest address",
                 fault.address.bits());
}

void Vcpu::Dispatch(BusAccess& access) {
  needs_turn_ = true;
  switch (access.kind) {
    case BusAccess::Kind::kMsrRead:
    case BusAccess::Kind::kMsrWrite:
      msrs_.Dispatch(access);
      if (access.kind == BusAccess::Kind::kMsrWrite) {
        processor_->SetTscOffset(apic_.tsc_adjust());
      }
      return;
    case BusAccess::Kind::kTprRead:
      access.value = apic_.cr8();
      return;
    case BusAccess::Kind::kTprWrite:
      apic_.WriteCr8(static_cast<std::uint8_t>(access.value & 15));
      return;
    case BusAccess::Kind::kHypercall:
      access.value = AnswerHypercall(HypercallOf(processor_->GetState()), *environment_.apic_bus);
      return;
    case BusAccess::Kind::kX87Error:
      access.value = environment_.coprocessor_error != nullptr &&
                     environment_.coprocessor_error->Report(access.address != 0);
      return;
    default:
      break;
  }
  if (IsMmio(access) && apic_.ClaimsMmio(Gpa(access.address))) {
    DispatchApicPage(access);
  } else {
    DispatchDevice(access);
  }
}

void Vcpu::DispatchDevice(BusAccess& access) {
  const Bus& bus = *environment_.bus;
  if (apic_.id() == 0 || !environment_.deadline_changed) return bus.Dispatch(access);
  const std::uint64_t before = bus.next_deadline_ns();
  bus.Dispatch(access);
  if (bus.next_deadline_ns() < before) environment_.deadline_changed();
}

// Registers are 32 bits at multiples of 16; what is between them reads as 0.
// [intel/vol3] "Local APIC Register Address Map"
void Vcpu::DispatchApicPage(BusAccess& access) {
  const auto offset = static_cast<std::uint32_t>(access.address & 0xfff);
  const unsigned in_register = offset & 15;
  if (access.kind == BusAccess::Kind::kMmioRead) {
    access.value = in_register < 4 ? std::uint64_t{apic_.ReadMmio(offset)} >> (8 * in_register) : 0;
    if (access.bytes < 8) access.value &= (std::uint64_t{1} << (8 * access.bytes)) - 1;
  } else if (in_register == 0 && access.bytes >= 4) {
    apic_.WriteMmio(offset, static_cast<std::uint32_t>(access.value));
  }
}

VmExit Vcpu::ErrorAt(const char* what, std::uint64_t address) const {
  return {
      .reason = StopReason::kError,
      .message = absl::StrFormat("%s 0x%x (rip 0x%x)", what, address, processor_->GetState().rip)};
}

// -- state

CpuState Vcpu::GetState() const {
  CpuState state = processor_->GetState();
  if (waits_for_start_up_) {
    state.activity = Activity::kWaitForSipi;
  } else if (halted_ || asleep_) {
    state.activity = Activity::kHalted;
  }
  return state;
}

void Vcpu::SetState(const CpuState& state) {
  halted_ = state.activity == Activity::kHalted;
  waits_for_start_up_ = state.activity == Activity::kWaitForSipi;
  processor_->SetState(state);
  HandlePagingChange(Invalidation{});
}

VcpuStatistics Vcpu::statistics() const {
  return {.instructions = processor_->instructions_retired(),
          .exits = exits_.load(std::memory_order_relaxed),
          .exits_table_fault = exits_table_fault_.load(std::memory_order_relaxed),
          .exits_bus = exits_bus_.load(std::memory_order_relaxed),
          .exits_halt = exits_halt_.load(std::memory_order_relaxed),
          .interrupts = interrupts_.load(std::memory_order_relaxed)};
}

}  // namespace pagesaw
