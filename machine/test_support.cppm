// Stand-ins for tests of devices: a clock that is moved by hand, sinks that remember.
module;
#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>
export module pagesaw.machine.test_support;

import pagesaw.machine.clock;
import pagesaw.machine.device;

export namespace pagesaw {

class FakeClock final : public Clock {
 public:
  std::uint64_t NowNs() const override { return now_ns_; }
  std::int64_t WallSeconds() const override { return wall_seconds; }
  // One tick each nanosecond.
  std::uint64_t Tsc() const override { return now_ns_; }
  std::uint64_t TscTicksToNs(std::uint64_t ticks) const override { return ticks; }

  void Advance(std::uint64_t ns) { now_ns_ += ns; }
  std::int64_t wall_seconds = 0;

 private:
  std::atomic<std::uint64_t> now_ns_{1'000'000};
};

class FakeInterruptSink final : public InterruptSink {
 public:
  void SetIrq(unsigned irq, bool level) override {
    if (level && !levels[irq]) ++rises[irq];
    levels[irq] = level;
  }
  std::array<bool, 24> levels = {};
  std::array<unsigned, 24> rises = {};
};

class FakeSystemControl final : public SystemControl {
 public:
  void DebugExit(std::uint32_t value) override { debug_exit = value; }
  void Reset() override { ++resets; }
  void PowerOff() override { ++power_offs; }
  void Suspend() override { ++suspends; }
  void WakeUp() override { ++wake_ups; }
  std::optional<std::uint32_t> debug_exit;
  unsigned resets = 0;
  unsigned power_offs = 0;
  unsigned suspends = 0;
  unsigned wake_ups = 0;
};

}  // namespace pagesaw
