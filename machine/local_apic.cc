module;
#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
module pagesaw.machine.local_apic;

namespace pagesaw {
namespace {

using namespace apic;

// An integrated APIC with six LVT entries, which can keep EOIs to itself.
constexpr std::uint32_t kVersionValue = 0x0105'0014;
constexpr std::uint32_t kBroadcast = 0xffff'ffff;
constexpr std::uint32_t kIcrWritable = 0x000c'cfff;

constexpr std::uint32_t kSpuriousWritable = 0xff | kSpuriousEnable | kSpuriousNoBroadcast;

// Bits that software can write in each LVT entry, in the order of LocalApic::Lvt.
constexpr std::array<std::uint32_t, 6> kLvtWritable = {0x0007'00ff, 0x0001'07ff, 0x0001'07ff,
                                                       0x0001'a7ff, 0x0001'a7ff, 0x0001'00ff};

// What x2APIC mode lets software do with a register. [intel/vol3] "x2APIC Register Address Space"
enum : std::uint8_t { kNone = 0, kRead = 1, kWrite = 2 };

std::uint8_t X2apicRights(std::uint32_t offset) {
  if (offset >= kIsr && offset < kEsr) return kRead;
  switch (offset) {
    case kId:
    case kVersion:
    case kPpr:
    case kLdr:
    case kCurrentCount:
      return kRead;
    case kEoi:
    case kSelfIpi:
      return kWrite;
    case kTpr:
    case kSpurious:
    case kEsr:
    case kIcrLow:
    case kLvtTimer:
    case kLvtThermal:
    case kLvtPerformance:
    case kLvtLint0:
    case kLvtLint1:
    case kLvtError:
    case kInitialCount:
    case kDivide:
      return kRead | kWrite;
    default:
      return kNone;
  }
}

// Bits of a register that x2APIC mode lets software write as ones.
std::uint64_t X2apicWritable(std::uint32_t offset) {
  switch (offset) {
    case kTpr:
    case kSelfIpi:
      return 0xff;
    case kSpurious:
      return kSpuriousWritable;
    case kEoi:
    case kEsr:
      return 0;
    case kIcrLow:
      return std::uint64_t{kBroadcast} << 32 | kIcrWritable;
    case kDivide:
      return 0xb;
    case kInitialCount:
      return 0xffff'ffff;
    default:
      return kLvtWritable[(offset - kLvtTimer) >> 4];
  }
}

std::uint32_t X2apicLdr(std::uint32_t id) { return id >> 4 << 16 | 1u << (id & 15); }

}  // namespace

LocalApic::LocalApic(const LocalApicOptions& options, const Clock& clock, const ApicBus& bus,
                     std::function<void()> wake)
    : options_(options), bus_(bus), wake_(std::move(wake)), timer_(clock) {
  Reset();
}

void LocalApic::Reset() {
  const std::lock_guard lock(mutex_);
  base_ = kBaseDefault | kBaseEnable | (options_.bootstrap ? kBaseBootstrap : 0);
  xapic_id_ = options_.id << 24;
  ResetLocked();
  nmis_ = 0;
  init_ = false;
  start_up_.reset();
  // As firmware leaves it: the PICs reach the bootstrap processor through LINT0.
  if (options_.bootstrap) {
    lvt_[kLint0] = static_cast<std::uint32_t>(DeliveryMode::kExternal) << 8;
    lvt_[kLint1] = static_cast<std::uint32_t>(DeliveryMode::kNmi) << 8;
  }
}

void LocalApic::ResetForInit() {
  const std::lock_guard lock(mutex_);
  ResetLocked();
}

void LocalApic::ResetLocked() {
  tpr_ = 0;
  ldr_ = 0;
  dfr_ = ~0u;
  spurious_ = 0xff;
  irr_ = isr_ = tmr_ = {};
  errors_ = esr_ = 0;
  icr_low_ = icr_high_ = 0;
  lvt_.fill(kLvtMasked);
  timer_.Reset();
}

// -- IA32_APIC_BASE

std::uint64_t LocalApic::base() const {
  const std::lock_guard lock(mutex_);
  return base_;
}

bool LocalApic::WriteBase(std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t address = ((std::uint64_t{1} << options_.physical_bits) - 1) & ~0xfffull;
  const std::uint64_t allowed =
      address | kBaseBootstrap | kBaseEnable | (options_.x2apic ? kBaseX2apic : 0);
  if ((value & ~allowed) != 0) return false;
  // [intel/vol3] "x2APIC State Transitions"
  const bool enable = (value & kBaseEnable) != 0;
  const bool extended = (value & kBaseX2apic) != 0;
  if (extended && !enable) return false;
  if (extended && !enabled()) return false;
  if (x2apic() && enable && !extended) return false;
  if (enabled() != enable) {
    ResetLocked();
    xapic_id_ = options_.id << 24;
  }
  base_ = (value & ~kBaseBootstrap) | (options_.bootstrap ? kBaseBootstrap : 0);
  return true;
}

// -- registers

bool LocalApic::ClaimsMmio(Gpa gpa) const {
  const std::lock_guard lock(mutex_);
  return enabled() && !x2apic() && (gpa.bits() & ~0xfffull) == (base_ & ~0xfffull);
}

std::uint32_t LocalApic::ReadMmio(std::uint32_t offset) {
  const std::lock_guard lock(mutex_);
  return ReadLocked(offset & 0xff0);
}

void LocalApic::WriteMmio(std::uint32_t offset, std::uint32_t value) {
  Outgoing outgoing;
  {
    const std::lock_guard lock(mutex_);
    outgoing = WriteLocked(offset & 0xff0, value);
  }
  Send(outgoing);
}

std::optional<std::uint64_t> LocalApic::ReadMsr(std::uint32_t index) {
  const std::lock_guard lock(mutex_);
  const std::uint32_t offset = (index - kX2apicFirstMsr) << 4;
  if (!x2apic() || (X2apicRights(offset) & kRead) == 0) return std::nullopt;
  if (offset == kId) return options_.id;
  if (offset == kIcrLow) return std::uint64_t{icr_high_} << 32 | icr_low_;
  return ReadLocked(offset);
}

bool LocalApic::WriteMsr(std::uint32_t index, std::uint64_t value) {
  Outgoing outgoing;
  {
    const std::lock_guard lock(mutex_);
    const std::uint32_t offset = (index - kX2apicFirstMsr) << 4;
    if (!x2apic() || (X2apicRights(offset) & kWrite) == 0) return false;
    if ((value & ~X2apicWritable(offset)) != 0) return false;
    if (offset == kIcrLow) icr_high_ = static_cast<std::uint32_t>(value >> 32);
    outgoing = WriteLocked(offset, static_cast<std::uint32_t>(value));
  }
  Send(outgoing);
  return true;
}

void LocalApic::EndInterrupt() { WriteMmio(kEoi, 0); }

void LocalApic::Send(const Outgoing& outgoing) {
  if (outgoing.message.has_value()) bus_.Send(*outgoing.message, this);
  if (outgoing.end_of_interrupt.has_value()) bus_.BroadcastEoi(*outgoing.end_of_interrupt);
}

std::uint32_t LocalApic::LdrLocked() const { return x2apic() ? X2apicLdr(options_.id) : ldr_; }

std::uint32_t LocalApic::ReadLocked(std::uint32_t offset) {
  if (offset >= kIsr && offset < kTmr) return isr_.word((offset - kIsr) >> 4);
  if (offset >= kTmr && offset < kIrr) return tmr_.word((offset - kTmr) >> 4);
  if (offset >= kIrr && offset < kEsr) return irr_.word((offset - kIrr) >> 4);
  if (offset >= kLvtTimer && offset <= kLvtError) return lvt_[(offset - kLvtTimer) >> 4];
  switch (offset) {
    case kId:
      return xapic_id_;
    case kVersion:
      return kVersionValue;
    case kTpr:
      return tpr_;
    case kArbitration:
    case kPpr:
      return PriorityLocked();
    case kEoi:
    case kRemoteRead:
      return 0;
    case kLdr:
      return LdrLocked();
    case kDfr:
      return dfr_;
    case kSpurious:
      return spurious_;
    case kEsr:
      return esr_;
    case kIcrLow:
      return icr_low_;
    case kIcrHigh:
      return icr_high_;
    case kInitialCount:
      return timer_.initial_count();
    case kCurrentCount:
      return timer_.CurrentCount();
    case kDivide:
      return timer_.divide();
    default:
      ReportErrorLocked(kEsrIllegalRegister);
      return 0;
  }
}

LocalApic::Outgoing LocalApic::WriteLocked(std::uint32_t offset, std::uint32_t value) {
  if (offset >= kLvtTimer && offset <= kLvtError) {
    WriteLvtLocked(static_cast<Lvt>((offset - kLvtTimer) >> 4), value);
    return {};
  }
  switch (offset) {
    case kId:
      xapic_id_ = value & 0xff00'0000;
      break;
    case kTpr:
      tpr_ = static_cast<std::uint8_t>(value);
      break;
    case kEoi:
      return {.message = std::nullopt, .end_of_interrupt = EndOfInterruptLocked()};
    case kLdr:
      ldr_ = value & 0xff00'0000;
      break;
    case kDfr:
      dfr_ = value | 0x0fff'ffff;
      break;
    case kSpurious:
      WriteSpuriousLocked(value);
      break;
    case kEsr:
      esr_ = std::exchange(errors_, 0);
      break;
    case kIcrHigh:
      icr_high_ = value & 0xff00'0000;
      break;
    case kIcrLow:
      icr_low_ = value & kIcrWritable;
      return {.message = CommandLocked(), .end_of_interrupt = std::nullopt};
    case kInitialCount:
      PollTimerLocked();
      timer_.SetInitialCount(value);
      break;
    case kDivide:
      PollTimerLocked();
      timer_.SetDivide(value);
      break;
    case kSelfIpi:
      if (x2apic()) {
        return {.message = ApicMessage{.vector = static_cast<std::uint8_t>(value),
                                       .shorthand = Shorthand::kSelf},
                .end_of_interrupt = std::nullopt};
      }
      ReportErrorLocked(kEsrIllegalRegister);
      break;
    case kVersion:
    case kArbitration:
    case kPpr:
    case kRemoteRead:
    case kCurrentCount:
      break;
    default:
      if (offset < kIsr || offset >= kEsr) ReportErrorLocked(kEsrIllegalRegister);
  }
  return {};
}

void LocalApic::WriteLvtLocked(Lvt lvt, std::uint32_t value) {
  value &= kLvtWritable[lvt];
  if (!software_enabled()) value |= kLvtMasked;
  if (lvt == kTimer) {
    PollTimerLocked();
    // Without the feature bit 18 is reserved; mode 3 is reserved always.
    if (!options_.tsc_deadline) value &= ~kLvtTimerTscDeadline;
    const std::uint32_t mode = value & kLvtTimerMode;
    timer_.SetMode(mode == kLvtTimerTscDeadline ? ApicTimer::Mode::kTscDeadline
                   : mode == kLvtTimerPeriodic  ? ApicTimer::Mode::kPeriodic
                                                : ApicTimer::Mode::kOneShot);
  }
  lvt_[lvt] = value;
}

void LocalApic::WriteSpuriousLocked(std::uint32_t value) {
  PollTimerLocked();
  spurious_ = value & kSpuriousWritable;
  if (software_enabled()) return;
  for (std::uint32_t& entry : lvt_) entry |= kLvtMasked;
}

std::optional<ApicMessage> LocalApic::CommandLocked() {
  const auto mode = static_cast<DeliveryMode>(icr_low_ >> 8 & 7);
  const auto shorthand = static_cast<Shorthand>(icr_low_ >> 18 & 3);
  const auto vector = static_cast<std::uint8_t>(icr_low_);
  const bool level_triggered = (icr_low_ & kIcrTriggerLevel) != 0;
  const bool fixed = mode == DeliveryMode::kFixed || mode == DeliveryMode::kLowestPriority;
  // INIT level de-assert only synchronises arbitration IDs, which do not exist here.
  if (mode == DeliveryMode::kInit && level_triggered && (icr_low_ & kIcrLevelAssert) == 0) {
    return std::nullopt;
  }
  if (mode == DeliveryMode::kSmi || mode == DeliveryMode::kExternal || mode == DeliveryMode{3}) {
    return std::nullopt;
  }
  if (fixed && vector < 16) {
    ReportErrorLocked(kEsrSendIllegalVector);
    return std::nullopt;
  }
  // The manuals promise no more than fixed ones to oneself; processors deliver these as well.
  const bool to_oneself = fixed || mode == DeliveryMode::kNmi || mode == DeliveryMode::kInit;
  if (shorthand == Shorthand::kSelf && !to_oneself) return std::nullopt;
  return ApicMessage{.mode = mode,
                     .vector = vector,
                     .logical = (icr_low_ & 1u << 11) != 0,
                     .level = false,  // IPIs are edge triggered, whatever they say
                     .shorthand = shorthand,
                     .destination = x2apic() ? icr_high_ : icr_high_ >> 24,
                     .wide = x2apic()};
}

// -- priorities and delivery to the vCPU

std::uint8_t LocalApic::PriorityLocked() const {
  const int in_service = isr_.Highest();
  const auto serviced = static_cast<std::uint8_t>(in_service < 0 ? 0 : in_service & 0xf0);
  return (tpr_ & 0xf0) >= serviced ? tpr_ : serviced;
}

int LocalApic::DeliverableLocked() const {
  if (!enabled() || !software_enabled()) return -1;
  const int vector = irr_.Highest();
  return vector >= 0 && (vector & 0xf0) > (PriorityLocked() & 0xf0) ? vector : -1;
}

bool LocalApic::HasInterrupt() const {
  const std::lock_guard lock(mutex_);
  return DeliverableLocked() >= 0;
}

std::optional<std::uint8_t> LocalApic::AcknowledgeInterrupt() {
  const std::lock_guard lock(mutex_);
  const int vector = DeliverableLocked();
  if (vector < 0) return std::nullopt;
  irr_.Clear(static_cast<std::uint8_t>(vector));
  isr_.Set(static_cast<std::uint8_t>(vector));
  return static_cast<std::uint8_t>(vector);
}

std::optional<std::uint8_t> LocalApic::EndOfInterruptLocked() {
  const int highest = isr_.Highest();
  if (highest < 0) return std::nullopt;
  const auto vector = static_cast<std::uint8_t>(highest);
  isr_.Clear(vector);
  const bool told = tmr_.Has(vector) && (spurious_ & kSpuriousNoBroadcast) == 0;
  return told ? std::optional(vector) : std::nullopt;
}

bool LocalApic::AcceptsExternal() const {
  const std::lock_guard lock(mutex_);
  if (!enabled()) return options_.bootstrap;
  const std::uint32_t lint0 = lvt_[kLint0];
  return (lint0 & kLvtMasked) == 0 &&
         static_cast<DeliveryMode>(lint0 >> 8 & 7) == DeliveryMode::kExternal;
}

void LocalApic::SetLint(unsigned pin, bool level) {
  bool wakes = false;
  {
    const std::lock_guard lock(mutex_);
    const auto bit = static_cast<std::uint8_t>(1u << pin);
    const bool rises = level && (lint_levels_ & bit) == 0;
    lint_levels_ = static_cast<std::uint8_t>(level ? lint_levels_ | bit : lint_levels_ & ~bit);
    const std::uint32_t entry = lvt_[pin == 0 ? kLint0 : kLint1];
    const auto mode = static_cast<DeliveryMode>(entry >> 8 & 7);
    if (!rises) return;
    if (!enabled()) {
      // The pins are the processor's own: INTR and NMI.
      wakes = options_.bootstrap;
      if (wakes && pin == 1) AcceptNmiLocked();
    } else if ((entry & kLvtMasked) == 0) {
      wakes = true;
      if (mode == DeliveryMode::kNmi) AcceptNmiLocked();
      if (mode == DeliveryMode::kInit) init_ = true;
      if (mode == DeliveryMode::kFixed) {
        AcceptFixedLocked(static_cast<std::uint8_t>(entry), (entry & kLvtLevelTriggered) != 0);
      }
    }
  }
  if (wakes) wake_();
}

unsigned LocalApic::TakeNmis() {
  const std::lock_guard lock(mutex_);
  return std::exchange(nmis_, 0);
}

// One NMI waits for the end of another; more are lost. [intel/vol3] "Handling Multiple NMIs"
void LocalApic::AcceptNmiLocked() {
  if (nmis_ < 2) ++nmis_;
}

bool LocalApic::TakeInit() {
  const std::lock_guard lock(mutex_);
  return std::exchange(init_, false);
}

std::optional<std::uint8_t> LocalApic::TakeStartUp() {
  const std::lock_guard lock(mutex_);
  return std::exchange(start_up_, std::nullopt);
}

std::uint8_t LocalApic::cr8() const {
  const std::lock_guard lock(mutex_);
  return tpr_ >> 4;
}

void LocalApic::WriteCr8(std::uint8_t value) {
  const std::lock_guard lock(mutex_);
  tpr_ = static_cast<std::uint8_t>(value << 4);
}

// -- messages

bool LocalApic::MatchesLogicalLocked(const ApicMessage& message) const {
  const std::uint32_t destination = message.destination;
  if (x2apic()) {
    const std::uint32_t own = X2apicLdr(options_.id);
    return message.wide ? destination >> 16 == own >> 16 && (destination & own & 0xffff) != 0
                        : (destination & own & 0xff) != 0 && own >> 16 == 0;
  }
  const std::uint32_t own = ldr_ >> 24;
  const bool flat = dfr_ >> 28 == 0xf;
  if (flat) return (destination & own & 0xff) != 0;
  return (destination >> 4 & 0xf) == own >> 4 && (destination & own & 0xf) != 0;
}

bool LocalApic::IsDestination(const ApicMessage& message) const {
  const std::lock_guard lock(mutex_);
  if (!enabled()) return false;
  if (message.destination == (message.wide ? kBroadcast : 0xff)) return true;
  if (message.logical) return MatchesLogicalLocked(message);
  return message.destination == (x2apic() ? options_.id : xapic_id_ >> 24);
}

std::uint8_t LocalApic::arbitration_priority() const {
  const std::lock_guard lock(mutex_);
  return PriorityLocked();
}

void LocalApic::Accept(const ApicMessage& message) {
  {
    const std::lock_guard lock(mutex_);
    if (!enabled()) return;
    switch (message.mode) {
      case DeliveryMode::kFixed:
      case DeliveryMode::kLowestPriority:
        AcceptFixedLocked(message.vector, message.level);
        break;
      case DeliveryMode::kNmi:
        AcceptNmiLocked();
        break;
      case DeliveryMode::kInit:
        init_ = true;
        start_up_.reset();
        break;
      case DeliveryMode::kStartUp:
        start_up_ = message.vector;
        break;
      default:
        return;
    }
  }
  wake_();
}

void LocalApic::AcceptFixedLocked(std::uint8_t vector, bool level) {
  if (!software_enabled()) return;
  if (vector < 16) {
    ReportErrorLocked(kEsrReceiveIllegalVector);
    return;
  }
  irr_.Set(vector);
  if (level) {
    tmr_.Set(vector);
  } else {
    tmr_.Clear(vector);
  }
}

void LocalApic::ReportErrorLocked(std::uint32_t bit) {
  const bool known = (errors_ & bit) != 0;
  errors_ |= bit;
  const std::uint32_t entry = lvt_[kError];
  // An illegal vector in the error entry itself must not report for ever.
  if (known || (entry & kLvtMasked) != 0 || (entry & 0xff) < 16) return;
  AcceptFixedLocked(static_cast<std::uint8_t>(entry), false);
}

// -- timer

void LocalApic::PollTimerLocked() {
  if (!timer_.TakeExpired() || (lvt_[kTimer] & kLvtMasked) != 0) return;
  AcceptFixedLocked(static_cast<std::uint8_t>(lvt_[kTimer]), false);
}

std::uint64_t LocalApic::next_deadline_ns() const {
  const std::lock_guard lock(mutex_);
  return (lvt_[kTimer] & kLvtMasked) != 0 ? kNever : timer_.deadline_ns();
}

void LocalApic::Poll() {
  const std::lock_guard lock(mutex_);
  PollTimerLocked();
}

std::uint64_t LocalApic::tsc_deadline() const {
  const std::lock_guard lock(mutex_);
  return timer_.tsc_deadline();
}

std::uint64_t LocalApic::tsc() const {
  const std::lock_guard lock(mutex_);
  return timer_.Tsc();
}

std::uint64_t LocalApic::tsc_adjust() const {
  const std::lock_guard lock(mutex_);
  return timer_.tsc_offset();
}

void LocalApic::WriteTsc(std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  timer_.SetTscOffset(timer_.tsc_offset() + (value - timer_.Tsc()));
}

void LocalApic::WriteTscAdjust(std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  timer_.SetTscOffset(value);
}

void LocalApic::WriteTscDeadline(std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  PollTimerLocked();
  timer_.SetTscDeadline(value);
}

}  // namespace pagesaw
