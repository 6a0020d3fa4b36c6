// Time as the devices of a VM see it, so that a test can bring its own.
module;
#include <cstdint>
#include <memory>
#include <utility>
export module pagesaw.machine.clock;

import pagesaw.core.virtual_time;

export namespace pagesaw {

// A point of `Clock::NowNs` that never comes.
inline constexpr std::uint64_t kNever = ~std::uint64_t{0};

// Any thread.
class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic, from some point in the past.
  virtual std::uint64_t NowNs() const = 0;
  // Seconds since 1970 in UTC, for the real-time clock.
  virtual std::int64_t WallSeconds() const = 0;
  // The time-stamp counter that the guest reads, and how many nanoseconds `ticks` of it last.
  virtual std::uint64_t Tsc() const = 0;
  virtual std::uint64_t TscTicksToNs(std::uint64_t ticks) const = 0;
};

// The host's. The time-stamp counter counts nanoseconds, as the software processor's does.
class HostClock final : public Clock {
 public:
  std::uint64_t NowNs() const override;
  std::int64_t WallSeconds() const override;
  std::uint64_t Tsc() const override { return NowNs(); }
  std::uint64_t TscTicksToNs(std::uint64_t ticks) const override { return ticks; }
};

// Virtual time, which begins at the same second whenever it does.
class VirtualClock final : public Clock {
 public:
  static constexpr std::int64_t kFirstSecond = 1'767'225'600;  // 2026-01-01

  explicit VirtualClock(std::shared_ptr<const VirtualTime> time) : time_(std::move(time)) {}
  std::uint64_t NowNs() const override { return time_->NowNs(); }
  std::int64_t WallSeconds() const override {
    return kFirstSecond + static_cast<std::int64_t>(NowNs() / 1'000'000'000);
  }
  std::uint64_t Tsc() const override { return NowNs(); }
  std::uint64_t TscTicksToNs(std::uint64_t ticks) const override { return ticks; }

 private:
  const std::shared_ptr<const VirtualTime> time_;
};

// `start` + `duration`, or kNever if that wraps.
constexpr std::uint64_t DeadlineAfter(std::uint64_t start, std::uint64_t duration) {
  return duration > kNever - start ? kNever : start + duration;
}

// value * multiplier / divisor without overflow on the way; all ones if the result does not fit.
constexpr std::uint64_t Scale(std::uint64_t value, std::uint64_t multiplier,
                              std::uint64_t divisor) {
  const auto wide = static_cast<unsigned __int128>(value) * multiplier / divisor;
  return wide > ~std::uint64_t{0} ? ~std::uint64_t{0} : static_cast<std::uint64_t>(wide);
}

static_assert(Scale(~std::uint64_t{0}, 1'000'000'000, 1'193'182) == ~std::uint64_t{0});
static_assert(Scale(1'193'182, 1'000'000'000, 1'193'182) == 1'000'000'000);

}  // namespace pagesaw
