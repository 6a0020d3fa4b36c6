// What the processor does between instructions: events that wait, and the ways out of guest mode.
module;
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
module pagesaw.cpu.software_processor;

import pagesaw.cpu.control_bits;
import pagesaw.cpu.exceptions;

namespace pagesaw::cpu {
namespace {

Pending PendingOf(const Event& event, std::uint64_t rip) {
  Pending pending = {.vector = event.vector,
                     .has_error_code = event.has_error_code,
                     .error_code = event.error_code,
                     .cr2 = event.cr2,
                     .return_rip = rip};
  switch (event.kind) {
    case Event::Kind::kExternalInterrupt:
      pending.event_class = EventClass::kInterrupt;
      break;
    case Event::Kind::kNmi:
      pending.event_class = EventClass::kInterrupt;
      pending.vector = kNmiVector;
      break;
    case Event::Kind::kException:
      pending.event_class = EventClass::kFault;
      break;
  }
  return pending;
}

}  // namespace

bool SoftwareProcessor::TakeQueued() {
  Core& core = *core_;
  const Pending queued = PendingOf(core.event, core.rip);
  core.event_queued = false;
  core.activity = Activity::kActive;
  if (!core.pending) {
    core.pending = queued;
    return false;
  }
  // The outside has found that the event on its way cannot be delivered: as often as it likes.
  core.delivering = core.pending;
  if (core.guest.active && ExceptionLeaves(core, queued)) return LeaveGuestMode(core.guest.met);
  core.pending = DuringDelivery(core, *core.pending, queued);
  if (!core.pending && ShutdownLeaves(core)) return LeaveGuestMode(core.guest.met);
  return false;
}

std::optional<Intercept> SoftwareProcessor::DueInGuestMode() const {
  const Core& core = *core_;
  const GuestMode& guest = core.guest;
  // What the instruction just done leads to comes before its debug traps.
  // [intel/vol3] "Priority Among Concurrent Events"
  if (!core.pending || core.pending->event_class == EventClass::kTrap) {
    if (guest.tpr_fell && guest.intercepts.Has(Intercept::kTprBelowThreshold)) {
      return Intercept::kTprBelowThreshold;
    }
    if (guest.step_due) return Intercept::kStep;
  }
  if (core.pending || !core.replay.empty() || core.activity == Activity::kWaitForSipi) {
    return std::nullopt;
  }
  if (guest.deadline && unit_host_.Tsc() >= *guest.deadline) return Intercept::kDeadline;
  if (core.interrupt_shadow) return std::nullopt;
  if (guest.intercepts.Has(Intercept::kNmiWindow) && !core.nmi_blocked) {
    return Intercept::kNmiWindow;
  }
  const bool open = (core.rflags & kFlagIf) != 0 && core.activity != Activity::kShutdown;
  if (open && guest.intercepts.Has(Intercept::kInterruptWindow)) return Intercept::kInterruptWindow;
  return std::nullopt;
}

bool SoftwareProcessor::TakeVirtualInterrupt() {
  Core& core = *core_;
  const InterceptedEvent event = {.what = Intercept::kVirtualInterrupt};
  if (core.guest.intercepts.Has(event.what) && core.unit->Leaves(unit_host_, event)) {
    return LeaveGuestMode(event);
  }
  core.pending = Pending{.vector = core.unit->TakeVirtualInterrupt(unit_host_),
                         .event_class = EventClass::kInterrupt};
  core.activity = Activity::kActive;
  return false;
}

bool SoftwareProcessor::MeetsVirtualEvents() {
  Core& core = *core_;
  GuestInterrupts& interrupts = core.guest.interrupts;
  const InterceptedEvent event = {.what = Intercept::kVirtualApic};
  if (std::exchange(interrupts.asks_at_boundary, false) && core.unit->Leaves(unit_host_, event)) {
    return LeaveGuestMode(event);
  }
  if (interrupts.virtual_nmi_pending && VirtualNmiDue(core)) {
    interrupts.virtual_nmi_pending = false;
    core.pending = Pending{.vector = kNmiVector, .event_class = EventClass::kInterrupt};
    core.activity = Activity::kActive;
  }
  return interrupts.virtual_pending && VirtualInterruptDue(core) && TakeVirtualInterrupt();
}

// Nothing of the guest is on its way any more. TF in the flags loaded makes a trap behind the
// instruction that entered guest mode.
template <typename Leave>
bool SoftwareProcessor::LeaveGuestModeBy(Leave leave) {
  Core& core = *core_;
  core.stop = Stop::kNone;
  core.exit = Exit{};
  leave();
  core.delivering.reset();
  if (!core.guest.active && (core.rflags & kFlagTf) != 0) TellDebugCauses(kDr6Bs);
  return LeavesBehindSwitch();
}

bool SoftwareProcessor::LeaveGuestMode(const InterceptedEvent& event) {
  return LeaveGuestModeBy([&] { core_->unit->Leave(unit_host_, event); });
}

// What met it has not happened. If it was the delivery of an event, that waits as `pending`.
void SoftwareProcessor::MeetNestedFault(const NestedFault& fault) {
  Core& core = *core_;
  core.delivering = std::exchange(core.pending, std::nullopt);
  core.replay.Clear();
  exits_now_ = LeaveGuestModeBy([&] { core.unit->MeetNestedFault(unit_host_, fault); });
}

bool SoftwareProcessor::LogNestedDirty(Gpa address) {
  return core_->unit->LogDirty(unit_host_, address);
}

std::optional<NestedInvalidation> SoftwareProcessor::TakeNestedInvalidation() {
  return std::exchange(core_->guest.nested_invalidation, std::nullopt);
}

// The tables that translate may have to be others now, and memory was written.
bool SoftwareProcessor::LeavesBehindSwitch() {
  return core_->stop == Stop::kExit || !unit_host_.HasRoomForWrites();
}

bool SoftwareProcessor::DeliverPending() {
  Core& core = *core_;
  core.stop = Stop::kNone;
  core.alone = true;
  switch (Deliver(core, *core.pending)) {
    case Delivery::kDone:
      core.pending.reset();
      TellDebugCauses(0);
      core.guest.step_due = core.guest.intercepts.Has(Intercept::kStep);
      ++delivered_;
      core.link = nullptr;  // the handler is not the branch's target
      core.replay.Clear();
      // The way through a task gate may have loaded CR3, and whoever shadows the tables must know.
      if (core.stop == Stop::kExit) return true;
      core.stop = Stop::kNone;
      return false;
    case Delivery::kLeave:
      core.pending = core.delivering;  // what has become of it
      return true;
    case Delivery::kIntercepted:
      core.pending.reset();  // whoever hears of it hears of it once
      return LeaveGuestMode(core.guest.met);
    case Delivery::kShutdown:
      core.pending.reset();
      core.activity = Activity::kShutdown;
      return LeaveFor(ExitReason::kShutdown);
  }
  return LeaveFor(ExitReason::kShutdown);
}

void SoftwareProcessor::TellDebugCauses(std::uint64_t more) {
  Core& core = *core_;
  const std::uint64_t causes = core.debug_causes | more;
  if (causes == 0) return;
  core.debug_causes = 0;
  core.pending = Pending{
      .vector = kDb, .event_class = EventClass::kTrap, .dr6 = causes, .return_rip = core.rip};
}

void SoftwareProcessor::Inject(const Event& event) {
  core_->event = event;
  core_->event_queued = true;
}

bool SoftwareProcessor::HasQueuedEvent() const {
  return core_->event_queued || core_->pending.has_value();
}

bool SoftwareProcessor::CanTakeInterrupt() const {
  const Core& core = *core_;
  const GuestInterrupts& interrupts = core.guest.interrupts;
  if (!interrupts.open || HasQueuedEvent() || !core.replay.empty() ||
      core.activity == Activity::kShutdown || core.activity == Activity::kWaitForSipi) {
    return false;
  }
  const bool by_host_flag = core.guest.active && interrupts.by_host_flag;
  const bool leaves = core.guest.active && interrupts.interrupt_leaves;
  const bool flag = by_host_flag ? interrupts.host_flag : (core.rflags & kFlagIf) != 0;
  return flag && (leaves || !core.interrupt_shadow);
}

bool SoftwareProcessor::CanTakeNmi() const {
  const Core& core = *core_;
  const GuestInterrupts& interrupts = core.guest.interrupts;
  const bool leaves = core.guest.active && interrupts.nmi_leaves;
  const bool blocked =
      core.guest.active && interrupts.virtual_nmis ? interrupts.real_nmi_blocked : core.nmi_blocked;
  return interrupts.open && !blocked && (leaves || !core.interrupt_shadow) && !HasQueuedEvent() &&
         core.replay.empty() && core.activity != Activity::kWaitForSipi;
}

bool SoftwareProcessor::TakeInterrupt(const std::function<std::uint8_t()>& acknowledge) {
  const GuestMode& guest = core_->guest;
  if (!guest.active || !guest.interrupts.interrupt_leaves) {
    Inject({.kind = Event::Kind::kExternalInterrupt, .vector = acknowledge()});
    return false;
  }
  InterceptedEvent event = {.what = Intercept::kInterrupt};
  if (guest.interrupts.taken_on_leaving) {
    event.number = acknowledge();
    const bool asks = guest.interrupts.asks_about_interrupts;
    if (asks && !core_->unit->Leaves(unit_host_, event)) return true;
  }
  exits_now_ = LeaveGuestMode(event);
  return false;
}

bool SoftwareProcessor::TakeNmi() {
  const GuestMode& guest = core_->guest;
  if (!guest.active || !guest.interrupts.nmi_leaves) {
    Inject({.kind = Event::Kind::kNmi, .vector = 2});
    return true;
  }
  const bool taken = guest.interrupts.nmi_taken_on_leaving;
  exits_now_ = LeaveGuestMode({.what = Intercept::kNmi});
  return taken;
}

InitAnswer SoftwareProcessor::TakeInit() {
  const GuestMode& guest = core_->guest;
  if (!guest.intercepts.Has(Intercept::kInit)) {
    unit_host_.LeaveGuestMode();
    core_->guest.interrupts = {};
    return InitAnswer::kReset;
  }
  const bool taken = guest.interrupts.init_taken_on_leaving;
  exits_now_ = LeaveGuestMode({.what = Intercept::kInit});
  return taken ? InitAnswer::kTaken : InitAnswer::kWaits;
}

bool SoftwareProcessor::TakeStartUp(std::uint8_t vector) {
  if (!core_->guest.active || core_->activity != Activity::kWaitForSipi) return false;
  exits_now_ = LeaveGuestMode({.what = Intercept::kStartUp, .number = vector});
  return true;
}

void SoftwareProcessor::SetInterruptWindow(bool wanted) { window_wanted_ = wanted; }

}  // namespace pagesaw::cpu
