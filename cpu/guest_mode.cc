module;
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
module pagesaw.cpu.guest_mode;

import pagesaw.cpu.control_registers;
import pagesaw.cpu.core_state;
import pagesaw.cpu.intercept;

namespace pagesaw::cpu {
namespace {

// The outside gives other tables before anything more is executed.
void TellOfNestedPaging(Core& core) {
  core.replay.Clear();
  core.LeaveWith(ExitReason::kNestedPaging);
}

}  // namespace

CpuState CoreHost::State() const { return StateOf(core_); }

void CoreHost::SwitchState(const CpuState& state) {
  LoadState(core_, state);
  core_.link = nullptr;
  core_.event_queued = false;
  core_.pending.reset();
  core_.replay.Clear();
  core_.stack_shadow = core_.in_repeat = false;
  core_.debug_causes = 0;
  core_.UpdateMode();
  core_.UpdateBreakpoints();
  PagingChanged(core_, Invalidation::Scope::kEverything);
  core_.guest.switched = true;
}

RegisterLimits CoreHost::limits() const {
  const CpuModel& model = *core_.model;
  return {.cr0 = AllowedCr0(),
          .cr3 = AllowedCr3(model),
          .cr4 = AllowedCr4(model),
          .efer = AllowedEfer(model),
          .physical_bits = model.physical_bits(),
          .linear_bits = model.linear_bits(),
          .paging = core_.paging.features};
}

void CoreHost::EnterGuestMode(const GuestEntry& entry) {
  core_.guest.active = true;
  core_.guest.intercepts = entry.intercepts;
  core_.guest.exceptions = entry.exceptions;
  core_.guest.tsc_offset = entry.tsc_offset;
  core_.guest.nested = entry.nested;
  if (entry.nested) TellOfNestedPaging(core_);
}

void CoreHost::LeaveGuestMode() {
  core_.guest.active = false;
  core_.guest.intercepts = {};
  core_.guest.exceptions = 0;
  core_.guest.tsc_offset = 0;
  if (!core_.guest.nested) return;
  core_.guest.nested.reset();
  TellOfNestedPaging(core_);
}

void CoreHost::Deliver(const DeliveredEvent& event) {
  Pending pending = PendingOf(event);
  pending.injected = true;
  core_.pending = pending;
}

std::optional<DeliveredEvent> CoreHost::TakeDelivered() {
  const std::optional<Pending> pending = core_.delivering;
  core_.delivering.reset();
  if (!pending) return std::nullopt;
  return DeliveredOf(*pending);
}

bool CoreHost::LeaveFor(const InterceptedEvent& event) {
  core_.guest.met = event;
  core_.stop = Stop::kLeave;
  return false;
}

void CoreHost::FlushTranslations() { PagingChanged(core_, Invalidation::Scope::kEverything); }

// Two of different scope, before the outside has heard of the first, are as good as everything.
void CoreHost::InvalidateNested(const NestedInvalidation& invalidation) {
  std::optional<NestedInvalidation>& told = core_.guest.nested_invalidation;
  told = !told || *told == invalidation ? invalidation : NestedInvalidation{};
  TellOfNestedPaging(core_);
}

std::byte* CoreHost::Memory(Gpa gpa, std::uint64_t bytes) {
  return memory_ == nullptr ? nullptr : HostRange(*memory_, gpa, bytes, false);
}

void CoreHost::Wrote(Gpa gpa) {
  const Gpa page = AlignDown(gpa, Level::kPt);
  const auto known = writes_.begin() + write_count_;
  if (std::find(writes_.begin(), known, page) != known) return;
  if (write_count_ < writes_.size()) writes_[write_count_++] = page;
}

std::span<const Gpa> CoreHost::TakeWrites() {
  taken_ = writes_;
  const unsigned count = write_count_;
  write_count_ = 0;
  return {taken_.data(), count};
}

bool VirtualInterruptDue(const Core& core) {
  const GuestInterrupts& interrupts = core.guest.interrupts;
  return core.guest.active && interrupts.virtual_pending && interrupts.open &&
         interrupts.virtual_open && interrupts.virtual_priority > interrupts.virtual_tpr &&
         (core.rflags & kFlagIf) != 0 && !core.interrupt_shadow && !core.pending &&
         !core.event_queued && core.replay.empty() && core.activity != Activity::kShutdown;
}

}  // namespace pagesaw::cpu
