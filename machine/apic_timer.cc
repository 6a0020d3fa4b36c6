module;
#include <algorithm>
#include <cstdint>
module pagesaw.machine.apic_timer;

namespace pagesaw {

// [intel/vol3] "Divide Configuration Register": bits 3, 1 and 0; 111b divides by 1.
std::uint32_t ApicTimer::divisor() const {
  const std::uint32_t code = (divide_ & 3) | (divide_ >> 1 & 4);
  return code == 7 ? 1 : 2u << code;
}

void ApicTimer::Reset() {
  mode_ = Mode::kOneShot;
  divide_ = 0;
  initial_ = 0;
  tsc_deadline_ = 0;
  deadline_ns_ = kNever;
}

void ApicTimer::SetMode(Mode mode) {
  if (mode == mode_) return;
  if (mode == Mode::kTscDeadline || mode_ == Mode::kTscDeadline) {
    initial_ = 0;
    tsc_deadline_ = 0;
    deadline_ns_ = kNever;
    mode_ = mode;
    return;
  }
  const std::uint32_t count = CurrentCount();
  mode_ = mode;
  if (deadline_ns_ != kNever) GoOnFrom(count);
}

void ApicTimer::GoOnFrom(std::uint32_t count) {
  const std::uint64_t now = clock_.NowNs();
  deadline_ns_ = now + std::uint64_t{count} * divisor() * kTickNs;
  start_ns_ = deadline_ns_ - std::min(deadline_ns_, period_ns());
}

void ApicTimer::SetDivide(std::uint32_t value) {
  const std::uint32_t count = CurrentCount();
  divide_ = value & 0xb;
  if (deadline_ns_ != kNever && mode_ != Mode::kTscDeadline) GoOnFrom(count);
}

void ApicTimer::SetInitialCount(std::uint32_t count) {
  if (mode_ == Mode::kTscDeadline) return;
  initial_ = count;
  start_ns_ = clock_.NowNs();
  deadline_ns_ = count == 0 ? kNever : DeadlineAfter(start_ns_, period_ns());
}

std::uint32_t ApicTimer::CurrentCount() const {
  if (deadline_ns_ == kNever || mode_ == Mode::kTscDeadline) return 0;
  const std::uint64_t now = clock_.NowNs();
  const std::uint64_t elapsed = now > start_ns_ ? (now - start_ns_) / (divisor() * kTickNs) : 0;
  if (mode_ == Mode::kPeriodic) return static_cast<std::uint32_t>(initial_ - elapsed % initial_);
  return elapsed >= initial_ ? 0 : static_cast<std::uint32_t>(initial_ - elapsed);
}

void ApicTimer::SetTscDeadline(std::uint64_t tsc) {
  if (mode_ != Mode::kTscDeadline) return;
  tsc_deadline_ = tsc;
  if (tsc == 0) {
    deadline_ns_ = kNever;
    return;
  }
  const std::uint64_t now = Tsc();
  const std::uint64_t left_ns = tsc > now ? clock_.TscTicksToNs(tsc - now) : 0;
  deadline_ns_ = DeadlineAfter(clock_.NowNs(), left_ns);
}

void ApicTimer::SetTscOffset(std::uint64_t offset) {
  tsc_offset_ = offset;
  if (deadline_ns_ != kNever) SetTscDeadline(tsc_deadline_);
}

bool ApicTimer::TakeExpired() {
  const std::uint64_t now = clock_.NowNs();
  if (now < deadline_ns_ || deadline_ns_ == kNever) return false;
  if (mode_ == Mode::kTscDeadline) {
    if (Tsc() < tsc_deadline_) {  // the two clocks do not quite agree
      SetTscDeadline(tsc_deadline_);
      return false;
    }
    tsc_deadline_ = 0;
    deadline_ns_ = kNever;
    return true;
  }
  if (mode_ == Mode::kOneShot) {
    deadline_ns_ = kNever;
    return true;
  }
  const std::uint64_t periods = (now - start_ns_) / period_ns() + 1;
  deadline_ns_ = std::max(DeadlineAfter(start_ns_, Scale(period_ns(), periods, 1)),
                          DeadlineAfter(now, kShortestPeriodNs));
  return true;
}

}  // namespace pagesaw
