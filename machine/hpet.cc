module;
#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>
#include <span>
module pagesaw.machine.hpet;

namespace pagesaw {
namespace {

constexpr std::array kRanges = {BusRange{BusSpace::kMmio, Hpet::kBase, 0x400}};

// [intel/hpet] "Register Overview"
constexpr std::uint64_t kCapabilityRegister = 0x00, kConfiguration = 0x10, kStatus = 0x20,
                        kMainCounter = 0xf0, kFirstTimer = 0x100;

// Bits of a timer's configuration.
constexpr std::uint64_t kLevel = 1u << 1, kEnable = 1u << 2, kPeriodic = 1u << 3,
                        kSetValue = 1u << 6, k32Bit = 1u << 8, kRoute = 0x1fu << 9;
constexpr std::uint64_t kTimerWritable = kLevel | kEnable | kPeriodic | k32Bit | kRoute;
// Can be periodic, has 64 bits, can be routed to each pin of the I/O APIC that PCs leave free.
constexpr std::uint64_t kTimerFixed = 0x00f0'0000ull << 32 | 1u << 4 | 1u << 5;

}  // namespace

Hpet::Hpet(const Clock& clock, InterruptSink& interrupts)
    : clock_(clock), interrupts_(interrupts) {}

std::span<const BusRange> Hpet::ranges() const { return kRanges; }

std::uint64_t Hpet::Counter(std::uint64_t now_ns) const {
  return enabled() ? counter_ + (now_ns - std::min(now_ns, since_ns_)) / kTickNs : counter_;
}

unsigned Hpet::LineOf(unsigned index) const {
  if (legacy() && index < 2) return index == 0 ? 0 : 8;
  return static_cast<unsigned>(timers_[index].configuration >> 9 & 31);
}

void Hpet::Arm(Timer& timer, std::uint64_t now_ns) const {
  timer.deadline_ns = kNever;
  if (!enabled()) return;
  std::uint64_t left = timer.comparator - Counter(now_ns);
  if ((timer.configuration & k32Bit) != 0) left &= 0xffff'ffff;
  // The comparator matches when the counter comes to it, however long that takes.
  timer.deadline_ns = DeadlineAfter(now_ns, Scale(left, kTickNs, 1));
}

void Hpet::ArmAll() {
  const std::uint64_t now = clock_.NowNs();
  for (Timer& timer : timers_) Arm(timer, now);
}

void Hpet::Fire(unsigned index, std::uint64_t now_ns) {
  Timer& timer = timers_[index];
  if ((timer.configuration & kPeriodic) != 0 && timer.period != 0) {
    // What is late is lost.
    const std::uint64_t missed = (Counter(now_ns) - timer.comparator) / timer.period;
    timer.comparator += timer.period * (missed + 1);
    Arm(timer, now_ns);
    timer.deadline_ns = std::max(timer.deadline_ns, DeadlineAfter(now_ns, kShortestNs));
  } else {
    timer.deadline_ns = kNever;
  }
  const bool level = (timer.configuration & kLevel) != 0;
  if (level) status_ |= std::uint64_t{1} << index;
  if ((timer.configuration & kEnable) == 0) return;
  if (!level) interrupts_.SetIrq(LineOf(index), false);
  interrupts_.SetIrq(LineOf(index), true);
}

std::uint64_t Hpet::next_deadline_ns() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t earliest = kNever;
  for (const Timer& timer : timers_) {
    if ((timer.configuration & kEnable) != 0) earliest = std::min(earliest, timer.deadline_ns);
  }
  return earliest;
}

void Hpet::Poll() {
  const std::lock_guard lock(mutex_);
  const std::uint64_t now = clock_.NowNs();
  for (unsigned i = 0; i < kTimers; ++i) {
    if (timers_[i].deadline_ns <= now) Fire(i, now);
  }
}

std::uint64_t Hpet::ReadRegister(std::uint64_t offset) const {
  switch (offset) {
    case kCapabilityRegister:
      return kCapabilities;
    case kConfiguration:
      return configuration_;
    case kStatus:
      return status_;
    case kMainCounter:
      return Counter(clock_.NowNs());
    default:
      break;
  }
  const std::uint64_t index = (offset - kFirstTimer) / 0x20;
  if (offset < kFirstTimer || index >= kTimers) return 0;
  switch (offset & 0x18) {
    case 0x00:
      return timers_[index].configuration | kTimerFixed;
    case 0x08:
      return timers_[index].comparator;
    default:
      return 0;
  }
}

void Hpet::WriteTimer(unsigned index, unsigned field, std::uint64_t value) {
  Timer& timer = timers_[index];
  if (field == 0x00) {
    timer.configuration = value & (kTimerWritable | kSetValue);
  } else if (field == 0x08) {
    if ((timer.configuration & k32Bit) != 0) value &= 0xffff'ffff;
    const bool periodic = (timer.configuration & kPeriodic) != 0;
    if (!periodic || (timer.configuration & kSetValue) != 0) timer.comparator = value;
    if (periodic) timer.period = value;
    timer.configuration &= ~kSetValue;
  }
  Arm(timer, clock_.NowNs());
}

void Hpet::WriteRegister(std::uint64_t offset, std::uint64_t value) {
  switch (offset) {
    case kConfiguration:
      counter_ = Counter(clock_.NowNs());
      since_ns_ = clock_.NowNs();
      configuration_ = value & 3;
      ArmAll();
      return;
    case kStatus:
      for (unsigned i = 0; i < kTimers; ++i) {
        if ((status_ & value & std::uint64_t{1} << i) == 0) continue;
        status_ &= ~(std::uint64_t{1} << i);
        interrupts_.SetIrq(LineOf(i), false);
      }
      return;
    case kMainCounter:
      counter_ = value;
      since_ns_ = clock_.NowNs();
      ArmAll();
      return;
    default:
      break;
  }
  const std::uint64_t index = (offset - kFirstTimer) / 0x20;
  if (offset >= kFirstTimer && index < kTimers) {
    WriteTimer(static_cast<unsigned>(index), static_cast<unsigned>(offset & 0x18), value);
  }
}

std::uint64_t Hpet::Read(BusSpace, std::uint64_t address, unsigned) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t offset = address - kBase;
  return ReadRegister(offset & ~std::uint64_t{7}) >> (8 * (offset & 7));
}

void Hpet::Write(BusSpace, std::uint64_t address, unsigned bytes, std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t offset = address - kBase;
  const std::uint64_t at = offset & ~std::uint64_t{7};
  const auto shift = static_cast<unsigned>(8 * (offset & 7));
  const std::uint64_t mask = BytesMask(bytes) << shift;
  // A status bit is cleared by a one: what is not written must not clear.
  const std::uint64_t kept = at == kStatus ? 0 : ReadRegister(at);
  WriteRegister(at, (kept & ~mask) | (value << shift & mask));
}

}  // namespace pagesaw
