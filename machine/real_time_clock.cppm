// The real-time clock and its battery-backed memory, at ports 70h and 71h: the time, an alarm, and
// interrupts at the alarm, at each second and at a chosen rate, on IRQ 8.
// [motorola/mc146818a] "MC146818A Real-Time Clock Plus RAM"
module;
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
export module pagesaw.machine.real_time_clock;

import pagesaw.machine.clock;
import pagesaw.machine.device;

export namespace pagesaw {

class RealTimeClock final : public Device {
 public:
  static constexpr unsigned kIrq = 8;

  // `memory_bytes` is what firmware would have left in the memory. `alarm` is called when the alarm
  // with its interrupt enabled goes off, with a lock held; may be empty.
  RealTimeClock(const Clock& clock, InterruptSink& interrupts, std::uint64_t memory_bytes,
                std::function<void()> alarm = {});

  std::string_view name() const override { return "rtc"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;
  std::uint64_t next_deadline_ns() const override {
    return deadline_ns_.load(std::memory_order_relaxed);
  }
  void Poll() override;

 private:
  std::uint64_t SecondsSinceStart(std::uint64_t now_ns) const;
  std::int64_t Time(std::uint64_t now_ns) const;
  bool runs() const;
  bool UpdateInProgress(std::uint64_t now_ns) const;
  std::uint64_t PeriodNs() const;
  bool AlarmMatches(std::int64_t time) const;
  std::uint8_t Encode(int value) const;
  int Decode(std::uint8_t value) const;
  std::uint8_t ReadByte(unsigned index, std::uint64_t now_ns);
  std::uint8_t ReadTime(unsigned index, std::int64_t time) const;
  void WriteByte(unsigned index, std::uint8_t value, std::uint64_t now_ns);
  void WriteTime(unsigned index, std::uint8_t value, std::uint64_t now_ns);
  // Raises the flags of what has passed since it was called last.
  void CatchUp(std::uint64_t now_ns);
  void RaiseFlags(std::uint8_t flags);
  void Arm(std::uint64_t now_ns);

  const Clock& clock_;
  InterruptSink& interrupts_;
  const std::function<void()> alarm_;
  std::mutex mutex_;
  std::uint8_t index_ = 0;
  std::array<std::uint8_t, 128> memory_ = {};
  const std::uint64_t start_ns_;
  std::int64_t start_time_;            // since 1970, at start_ns_
  std::optional<std::int64_t> held_;   // the time while it is being set
  std::uint64_t seconds_seen_ = 0;     // since start_ns_
  std::uint64_t periods_from_ns_ = 0;  // where the periodic interrupt counts from
  std::uint64_t periods_seen_ = 0;
  std::atomic<std::uint64_t> deadline_ns_{kNever};
};

}  // namespace pagesaw
