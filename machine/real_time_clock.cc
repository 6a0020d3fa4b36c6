module;
#include <time.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <utility>
module pagesaw.machine.real_time_clock;

namespace pagesaw {
namespace {

constexpr std::array kRanges = {BusRange{BusSpace::kPort, 0x70, 2}};
constexpr std::uint64_t kNsPerSecond = 1'000'000'000;

enum Index : std::uint8_t {
  kSeconds = 0,
  kSecondsAlarm = 1,
  kMinutes = 2,
  kMinutesAlarm = 3,
  kHours = 4,
  kHoursAlarm = 5,
  kWeekday = 6,
  kDay = 7,
  kMonth = 8,
  kYear = 9,
  kA = 10,
  kB = 11,
  kC = 12,
  kD = 13,
  kCentury = 0x32,  // where PCs have it
};

constexpr std::uint8_t kUpdateInProgress = 0x80;
constexpr std::uint8_t kDividerBits = 0x70, kDividerRuns = 0x20;
constexpr std::uint8_t kSet = 0x80, kBinary = 0x04, k24Hours = 0x02;
// Flags of C, and in B whether they interrupt.
constexpr std::uint8_t kPeriodic = 0x40, kAlarm = 0x20, kUpdate = 0x10;
constexpr std::uint8_t kAnyInterrupt = 0x80;
constexpr std::uint8_t kEveryValue = 0xc0;  // an alarm byte from here on matches every time
constexpr std::uint8_t kAfternoon = 0x80;
constexpr std::uint8_t kBatteryGood = 0x80;

constexpr std::uint64_t kUpdateNs = 244'000;  // how long before a second it is in progress
constexpr std::uint64_t kSecondsPerDay = 86'400;

bool IsTime(unsigned index) {
  return index == kCentury || (index <= kYear && index != kSecondsAlarm && index != kMinutesAlarm &&
                               index != kHoursAlarm);
}

tm Fields(std::int64_t time) {
  const auto seconds = static_cast<time_t>(time);
  tm fields = {};
  gmtime_r(&seconds, &fields);
  return fields;
}

}  // namespace

RealTimeClock::RealTimeClock(const Clock& clock, InterruptSink& interrupts,
                             std::uint64_t memory_bytes, std::function<void()> alarm)
    : clock_(clock),
      interrupts_(interrupts),
      alarm_(std::move(alarm)),
      start_ns_(clock.NowNs()),
      start_time_(clock.WallSeconds()),
      periods_from_ns_(start_ns_) {
  // Where firmware leaves the memory size: KiB above 1 MiB, 64 KiB units above 16 MiB.
  constexpr std::uint64_t kMib = std::uint64_t{1} << 20;
  const std::uint64_t low = std::min(memory_bytes, std::uint64_t{3} << 30);
  const std::uint64_t kib = low > kMib ? std::min<std::uint64_t>((low - kMib) >> 10, 0xfc00) : 0;
  const std::uint64_t units = low > 16 * kMib ? (low - 16 * kMib) >> 16 : 0;
  memory_[0x15] = 0x80, memory_[0x16] = 0x02;  // 640 KiB of base memory
  memory_[0x17] = memory_[0x30] = static_cast<std::uint8_t>(kib);
  memory_[0x18] = memory_[0x31] = static_cast<std::uint8_t>(kib >> 8);
  memory_[0x34] = static_cast<std::uint8_t>(units);
  memory_[0x35] = static_cast<std::uint8_t>(units >> 8);
  memory_[kA] = kDividerRuns | 6;  // 1024 Hz
  memory_[kB] = k24Hours;
}

std::span<const BusRange> RealTimeClock::ranges() const { return kRanges; }

// -- time

std::uint64_t RealTimeClock::SecondsSinceStart(std::uint64_t now_ns) const {
  return (now_ns - start_ns_) / kNsPerSecond;
}

std::int64_t RealTimeClock::Time(std::uint64_t now_ns) const {
  return held_.value_or(start_time_ + static_cast<std::int64_t>(SecondsSinceStart(now_ns)));
}

bool RealTimeClock::runs() const {
  return (memory_[kA] & kDividerBits) == kDividerRuns && (memory_[kB] & kSet) == 0;
}

bool RealTimeClock::UpdateInProgress(std::uint64_t now_ns) const {
  return runs() && (now_ns - start_ns_) % kNsPerSecond >= kNsPerSecond - kUpdateNs;
}

std::uint8_t RealTimeClock::Encode(int value) const {
  if ((memory_[kB] & kBinary) != 0) return static_cast<std::uint8_t>(value);
  return static_cast<std::uint8_t>(value / 10 % 10 << 4 | value % 10);
}

int RealTimeClock::Decode(std::uint8_t value) const {
  return (memory_[kB] & kBinary) != 0 ? value : (value >> 4) * 10 + (value & 15);
}

std::uint8_t RealTimeClock::ReadTime(unsigned index, std::int64_t time) const {
  const tm fields = Fields(time);
  switch (index) {
    case kSeconds:
      return Encode(fields.tm_sec);
    case kMinutes:
      return Encode(fields.tm_min);
    case kHours: {
      if ((memory_[kB] & k24Hours) != 0) return Encode(fields.tm_hour);
      const int hour = fields.tm_hour % 12 == 0 ? 12 : fields.tm_hour % 12;
      return static_cast<std::uint8_t>(Encode(hour) | (fields.tm_hour >= 12 ? kAfternoon : 0));
    }
    case kWeekday:
      return Encode(fields.tm_wday + 1);
    case kDay:
      return Encode(fields.tm_mday);
    case kMonth:
      return Encode(fields.tm_mon + 1);
    case kYear:
      return Encode(fields.tm_year % 100);
    default:
      return Encode((fields.tm_year + 1900) / 100);
  }
}

void RealTimeClock::WriteTime(unsigned index, std::uint8_t value, std::uint64_t now_ns) {
  const std::int64_t before = Time(now_ns);
  tm fields = Fields(before);
  const int number = Decode(value);
  switch (index) {
    case kSeconds:
      fields.tm_sec = number;
      break;
    case kMinutes:
      fields.tm_min = number;
      break;
    case kHours:
      fields.tm_hour = (memory_[kB] & k24Hours) != 0
                           ? number
                           : Decode(value & 0x7f) % 12 + ((value & kAfternoon) != 0 ? 12 : 0);
      break;
    case kWeekday:
      return;  // follows from the date
    case kDay:
      fields.tm_mday = number;
      break;
    case kMonth:
      fields.tm_mon = number - 1;
      break;
    case kYear:
      fields.tm_year = (fields.tm_year + 1900) / 100 * 100 + number - 1900;
      break;
    default:
      fields.tm_year = number * 100 + fields.tm_year % 100 - 1900;
      break;
  }
  const std::int64_t after = timegm(&fields);
  if (held_.has_value()) {
    held_ = after;
  } else {
    start_time_ += after - before;
  }
}

// -- flags and interrupts

// [motorola/mc146818a] "Rate Selection"
std::uint64_t RealTimeClock::PeriodNs() const {
  const unsigned rate = memory_[kA] & 15;
  if (rate == 0 || (memory_[kA] & kDividerBits) != kDividerRuns) return kNever;
  const unsigned shift = rate <= 2 ? rate + 6 : rate - 1;
  return (kNsPerSecond << shift) / 32768;
}

bool RealTimeClock::AlarmMatches(std::int64_t time) const {
  constexpr std::pair<Index, Index> kPairs[] = {
      {kSeconds, kSecondsAlarm}, {kMinutes, kMinutesAlarm}, {kHours, kHoursAlarm}};
  return std::all_of(std::begin(kPairs), std::end(kPairs), [&](const auto& pair) {
    const std::uint8_t wanted = memory_[pair.second];
    return wanted >= kEveryValue || wanted == ReadTime(pair.first, time);
  });
}

void RealTimeClock::RaiseFlags(std::uint8_t flags) {
  const bool alarm = (flags & kAlarm & memory_[kB]) != 0;
  memory_[kC] |= flags;
  const bool any = (memory_[kC] & memory_[kB] & (kPeriodic | kAlarm | kUpdate)) != 0;
  memory_[kC] =
      static_cast<std::uint8_t>(any ? memory_[kC] | kAnyInterrupt : memory_[kC] & ~kAnyInterrupt);
  interrupts_.SetIrq(kIrq, any);
  if (alarm && alarm_) alarm_();
}

void RealTimeClock::CatchUp(std::uint64_t now_ns) {
  std::uint8_t flags = 0;
  const std::uint64_t seconds = SecondsSinceStart(now_ns);
  if (seconds != seconds_seen_ && runs()) {
    flags |= kUpdate;
    // Each second could be the alarm's; after a day they come again.
    const std::uint64_t missed = std::min(seconds - seconds_seen_, kSecondsPerDay);
    const std::int64_t now = Time(now_ns);
    for (std::uint64_t i = 0; i < missed && (flags & kAlarm) == 0; ++i) {
      if (AlarmMatches(now - static_cast<std::int64_t>(i))) flags |= kAlarm;
    }
  }
  seconds_seen_ = seconds;
  if (const std::uint64_t period = PeriodNs(); period != kNever) {
    const std::uint64_t periods = (now_ns - periods_from_ns_) / period;
    if (periods != periods_seen_) flags |= kPeriodic;
    periods_seen_ = periods;
  }
  if (flags != 0) RaiseFlags(flags);
}

void RealTimeClock::Arm(std::uint64_t now_ns) {
  std::uint64_t deadline = kNever;
  // What has been raised and not been read interrupts no more.
  const std::uint8_t wanted = memory_[kB] & ~memory_[kC];
  if ((wanted & (kAlarm | kUpdate)) != 0 && runs()) {
    deadline = start_ns_ + (SecondsSinceStart(now_ns) + 1) * kNsPerSecond;
  }
  const std::uint64_t period = PeriodNs();
  if ((wanted & kPeriodic) != 0 && period != kNever) {
    deadline = std::min(deadline, periods_from_ns_ + (periods_seen_ + 1) * period);
  }
  deadline_ns_.store(deadline, std::memory_order_relaxed);
}

void RealTimeClock::Poll() {
  const std::lock_guard lock(mutex_);
  const std::uint64_t now = clock_.NowNs();
  CatchUp(now);
  Arm(now);
}

// -- registers

std::uint8_t RealTimeClock::ReadByte(unsigned index, std::uint64_t now_ns) {
  if (IsTime(index)) return ReadTime(index, Time(now_ns));
  switch (index) {
    case kA:
      return memory_[kA] | (UpdateInProgress(now_ns) ? kUpdateInProgress : 0);
    case kC: {
      const std::uint8_t flags = std::exchange(memory_[kC], 0);
      interrupts_.SetIrq(kIrq, false);
      return flags;
    }
    case kD:
      return kBatteryGood;
    default:
      return memory_[index];
  }
}

void RealTimeClock::WriteByte(unsigned index, std::uint8_t value, std::uint64_t now_ns) {
  if (IsTime(index)) return WriteTime(index, value, now_ns);
  switch (index) {
    case kA:
      memory_[kA] = value & ~kUpdateInProgress;
      periods_from_ns_ = now_ns;
      periods_seen_ = 0;
      return;
    case kB:
      if ((value & kSet) != 0 && !held_.has_value()) held_ = Time(now_ns);
      memory_[kB] = value;
      if ((value & kSet) == 0 && held_.has_value()) {
        start_time_ = *held_ - static_cast<std::int64_t>(SecondsSinceStart(now_ns));
        held_.reset();
      }
      RaiseFlags(0);  // flags that are up already may interrupt from now on, or no more
      return;
    case kC:
    case kD:
      return;
    default:
      memory_[index] = value;
  }
}

std::uint64_t RealTimeClock::Read(BusSpace, std::uint64_t address, unsigned) {
  const std::lock_guard lock(mutex_);
  if (address == 0x70) return index_;
  const std::uint64_t now = clock_.NowNs();
  CatchUp(now);
  const std::uint8_t value = ReadByte(index_, now);
  Arm(now);
  return value;
}

void RealTimeClock::Write(BusSpace, std::uint64_t address, unsigned, std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  if (address == 0x70) {
    index_ = value & 0x7f;  // bit 7 masks NMIs, of which there are none
    return;
  }
  const std::uint64_t now = clock_.NowNs();
  CatchUp(now);
  WriteByte(index_, static_cast<std::uint8_t>(value), now);
  Arm(now);
}

}  // namespace pagesaw
