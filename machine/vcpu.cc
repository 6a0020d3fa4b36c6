module;
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

namespace pagesaw {
namespace {

// A guess that errs to the late side only a little: instructions take a few nanoseconds each.
constexpr std::uint64_t kNsPerInstruction = 10;
// Virtual time is not skipped beyond this, 146 years, so that sums of times do not wrap.
constexpr std::uint64_t kVirtualEndNs = std::uint64_t{1} << 62;
constexpr std::uint64_t kShortestSlice = 2'000;
// What an exit counts for, as it takes time, too.
constexpr std::uint64_t kInstructionsPerExit = 50;

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
    if (needs_turn_ || lends() || used >= budget) return std::nullopt;
    budget -= used;
  }
}

// How many instructions the guest may execute before somebody looks up.
std::uint64_t Vcpu::SliceAt(std::uint64_t now_ns) const {
  if (lends()) return 1;
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
    processor_->Reset();
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
    const bool over = processor_->TakeInterrupt([this] {
      interrupts_.fetch_add(1, std::memory_order_relaxed);
      const std::optional<std::uint8_t> vector = apic_.AcknowledgeInterrupt();
      return vector.has_value() ? *vector : environment_.pic->Acknowledge();
    });
    if (over) apic_.EndInterrupt();
  }
  processor_->SetInterruptWindow(InterruptPending());
}

Exit Vcpu::RunGuest(std::uint64_t budget) {
  EnterGuest();
  const Exit exit = processor_->Run(budget);
  LeaveGuest();
  for (const Gpa page : processor_->TakeDirectWrites()) root_mmu_->GuestWrote(page, kPageBytes);
  if (lends()) TellOfProtectedWrites();
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
