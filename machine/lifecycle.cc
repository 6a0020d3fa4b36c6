module;
#include <absl/status/status.h>
#include <absl/strings/str_cat.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
module pagesaw.machine.lifecycle;

namespace pagesaw {
namespace {

const char* NameOf(VmState state) {
  switch (state) {
    case VmState::kCreated:
      return "created";
    case VmState::kRunning:
      return "running";
    case VmState::kPaused:
      return "paused";
    case VmState::kStopped:
      return "stopped";
  }
  return "unknown";
}

absl::Status WrongState(const std::string& name, const char* what, VmState state) {
  return absl::FailedPreconditionError(
      absl::StrCat("VM '", name, "': cannot ", what, " while it is ", NameOf(state)));
}

}  // namespace

Lifecycle::Lifecycle(unsigned thread_count, std::chrono::milliseconds time_limit,
                     const Clock& clock, Hooks hooks)
    : thread_count_(thread_count), clock_(clock), hooks_(std::move(hooks)) {
  if (time_limit.count() > 0) {
    time_left_ns_ = Scale(static_cast<std::uint64_t>(time_limit.count()), 1'000'000, 1);
  }
}

VmState Lifecycle::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

VmExit Lifecycle::exit() const {
  const std::lock_guard lock(mutex_);
  return state_ == VmState::kStopped && exit_.has_value() ? *exit_ : VmExit{};
}

void Lifecycle::StartClockLocked() {
  resumed_ns_ = clock_.NowNs();
  deadline_ns_ = DeadlineAfter(resumed_ns_, time_left_ns_);
}

void Lifecycle::StopClockLocked() {
  if (time_left_ns_ == kNever) return;
  time_left_ns_ -= std::min(time_left_ns_, clock_.NowNs() - resumed_ns_);
  deadline_ns_ = kNever;
}

// -- transitions

absl::Status Lifecycle::Start(const std::string& name) {
  const std::lock_guard transition(transition_);
  {
    const std::lock_guard lock(mutex_);
    if (state_ != VmState::kCreated) return WrongState(name, "start", state_);
    state_ = VmState::kRunning;
    live_threads_ = thread_count_;
    StartClockLocked();
  }
  absl::Status status = hooks_.start_threads();
  if (status.ok()) return status;
  const std::lock_guard lock(mutex_);
  live_threads_ = 0;
  exit_ = VmExit{.reason = StopReason::kError, .message = std::string(status.message())};
  attention_ = true;  // for threads that did start
  StopLocked();
  return status;
}

absl::Status Lifecycle::Pause(const std::string& name) {
  const std::lock_guard transition(transition_);
  std::unique_lock lock(mutex_);
  if (state_ == VmState::kPaused) return absl::OkStatus();
  if (state_ != VmState::kRunning) return WrongState(name, "pause", state_);
  pause_wanted_ = true;
  attention_ = true;
  PauseIfParkedLocked();
  lock.unlock();
  hooks_.kick();
  lock.lock();
  changed_.wait(lock, [this] { return state_ != VmState::kRunning; });
  if (state_ == VmState::kStopped) return WrongState(name, "pause", state_);
  return absl::OkStatus();
}

void Lifecycle::RequestPause() {
  {
    const std::lock_guard lock(mutex_);
    if (state_ != VmState::kRunning || exit_.has_value()) return;
    pause_wanted_ = true;
    attention_ = true;
    PauseIfParkedLocked();
  }
  hooks_.kick();
}

// Threads that were told to run on may not have noticed yet: they are still parked.
void Lifecycle::PauseIfParkedLocked() {
  if (state_ != VmState::kRunning || !pause_wanted_ || parked_threads_ != thread_count_) return;
  state_ = VmState::kPaused;
  StopClockLocked();
  changed_.notify_all();
}

absl::Status Lifecycle::Resume(const std::string& name) {
  const std::lock_guard transition(transition_);
  const std::lock_guard lock(mutex_);
  if (state_ == VmState::kRunning) return absl::OkStatus();
  if (state_ != VmState::kPaused) return WrongState(name, "resume", state_);
  state_ = VmState::kRunning;
  pause_wanted_ = false;
  attention_ = exit_.has_value();
  StartClockLocked();
  changed_.notify_all();
  return absl::OkStatus();
}

void Lifecycle::Stop() {
  const std::lock_guard transition(transition_);
  RequestStop({.reason = StopReason::kRequested, .message = "stopped on request"});
  std::unique_lock lock(mutex_);
  if (state_ == VmState::kCreated) StopLocked();
  changed_.wait(lock, [this] { return state_ == VmState::kStopped; });
}

bool Lifecycle::WaitUntilStopped(std::chrono::milliseconds timeout) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [this] { return state_ == VmState::kStopped; });
}

bool Lifecycle::WhileQuiet(const std::function<void()>& action) const {
  const std::lock_guard transition(transition_);
  {
    const std::lock_guard lock(mutex_);
    if (state_ == VmState::kRunning) return false;
  }
  action();
  return true;
}

void Lifecycle::RequestStop(VmExit exit) {
  {
    const std::lock_guard lock(mutex_);
    if (exit_.has_value() || state_ == VmState::kStopped) return;
    exit_ = std::move(exit);
    attention_ = true;
    changed_.notify_all();
  }
  hooks_.kick();
}

void Lifecycle::StopLocked() {
  hooks_.stopped();
  state_ = VmState::kStopped;
  deadline_ns_ = kNever;
  changed_.notify_all();
}

// -- threads

bool Lifecycle::ThreadMayRun() {
  if (deadline_ns_.load(std::memory_order_relaxed) <= clock_.NowNs()) {
    RequestStop({.reason = StopReason::kTimeLimit, .message = "the time limit has passed"});
  }
  if (!attention_.load()) return true;
  std::unique_lock lock(mutex_);
  while (pause_wanted_ && !exit_.has_value()) {
    ++parked_threads_;
    PauseIfParkedLocked();
    changed_.wait(lock, [this] { return !pause_wanted_ || exit_.has_value(); });
    --parked_threads_;
  }
  return !exit_.has_value();
}

void Lifecycle::ThreadEnds() {
  const std::lock_guard lock(mutex_);
  if (--live_threads_ == 0) StopLocked();
}

}  // namespace pagesaw
