// The timer of a local APIC: counts down once, again and again, or waits for a value of the
// time-stamp counter. It says when it is due; who asks delivers the interrupt. Not thread safe.
module;
#include <cstdint>
export module pagesaw.machine.apic_timer;

import pagesaw.machine.clock;

export namespace pagesaw {

class ApicTimer {
 public:
  enum class Mode : std::uint8_t { kOneShot, kPeriodic, kTscDeadline };

  // One count of the undivided clock.
  static constexpr std::uint64_t kTickNs = 1;
  // A guest may ask for more interrupts than a host can deliver; it gets them this far apart.
  static constexpr std::uint64_t kShortestPeriodNs = 20'000;

  explicit ApicTimer(const Clock& clock) : clock_(clock) {}

  void Reset();
  // A change of mode into or out of TSC-deadline disarms the timer; another one leaves the count as
  // it is: what is left goes on, and what is over stays so.
  void SetMode(Mode mode);
  void SetDivide(std::uint32_t value);
  std::uint32_t divide() const { return divide_; }

  // Starts to count; 0 stops. Ignored in TSC-deadline mode.
  void SetInitialCount(std::uint32_t count);
  std::uint32_t initial_count() const { return initial_; }
  std::uint32_t CurrentCount() const;

  // Ignored (and reads as 0) in other modes. 0 disarms.
  void SetTscDeadline(std::uint64_t tsc);
  std::uint64_t tsc_deadline() const { return tsc_deadline_; }

  // The guest's time-stamp counter, by which deadlines are judged: `offset` ahead of the clock's.
  void SetTscOffset(std::uint64_t offset);
  std::uint64_t tsc_offset() const { return tsc_offset_; }
  std::uint64_t Tsc() const { return clock_.Tsc() + tsc_offset_; }

  // When TakeExpired is wanted next, or kNever.
  std::uint64_t deadline_ns() const { return deadline_ns_; }
  // Whether the timer expired since it was asked last; several expiries are one.
  bool TakeExpired();

 private:
  std::uint64_t period_ns() const { return std::uint64_t{initial_} * divisor() * kTickNs; }
  std::uint32_t divisor() const;
  void GoOnFrom(std::uint32_t count);

  const Clock& clock_;
  Mode mode_ = Mode::kOneShot;
  std::uint32_t divide_ = 0;
  std::uint32_t initial_ = 0;
  std::uint64_t start_ns_ = 0;
  std::uint64_t tsc_deadline_ = 0;
  std::uint64_t tsc_offset_ = 0;
  std::uint64_t deadline_ns_ = kNever;
};

}  // namespace pagesaw
