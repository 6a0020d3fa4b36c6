module;
#include <time.h>
#include <x86intrin.h>
#include <algorithm>
#include <cstdint>
module pagesaw.machine.clock;

namespace pagesaw {
namespace {

constexpr std::uint64_t kNsPerSecond = 1'000'000'000;
constexpr std::uint64_t kNsPerMs = 1'000'000;

std::uint64_t MonotonicNs() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * kNsPerSecond +
         static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t MeasureTicksPerMs() {
  const std::uint64_t start_ns = MonotonicNs();
  const std::uint64_t start_ticks = __rdtsc();
  std::uint64_t now_ns = start_ns;
  while (now_ns - start_ns < 2 * kNsPerMs) now_ns = MonotonicNs();
  const std::uint64_t ticks = __rdtsc() - start_ticks;
  return std::max<std::uint64_t>(1, Scale(ticks, kNsPerMs, now_ns - start_ns));
}

}  // namespace

HostClock::HostClock() {
  static const std::uint64_t measured = MeasureTicksPerMs();
  ticks_per_ms_ = measured;
}

std::uint64_t HostClock::NowNs() const { return MonotonicNs(); }

std::int64_t HostClock::WallSeconds() const { return static_cast<std::int64_t>(time(nullptr)); }

std::uint64_t HostClock::Tsc() const { return __rdtsc(); }

std::uint64_t HostClock::TscTicksToNs(std::uint64_t ticks) const {
  return Scale(ticks, kNsPerMs, ticks_per_ms_);
}

}  // namespace pagesaw
