// The states of a VM and who waits for which: callers that start, pause and stop it, and the
// threads of its vCPUs. It knows nothing of what the threads do.
module;
#include <absl/status/status.h>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
export module pagesaw.machine.lifecycle;

import pagesaw.machine.clock;
import pagesaw.machine.vm_exit;

export namespace pagesaw {

enum class VmState : std::uint8_t { kCreated, kRunning, kPaused, kStopped };

class Lifecycle {
 public:
  struct Hooks {
    std::function<absl::Status()> start_threads;  // each is to call `Thread...` below
    std::function<void()> kick;     // makes every thread come back from the guest soon
    std::function<void()> stopped;  // called once, before anybody sees kStopped
  };

  // `time_limit` of running, 0 for none.
  Lifecycle(unsigned thread_count, std::chrono::milliseconds time_limit, const Clock& clock,
            Hooks hooks);

  VmState state() const;
  VmExit exit() const;

  // As Vm has them. One transition at a time; `name` is the VM's, for messages.
  absl::Status Start(const std::string& name);
  absl::Status Pause(const std::string& name);
  absl::Status Resume(const std::string& name);
  void Stop();
  // Pauses the VM if it runs, without waiting for that. Any thread, also of a vCPU.
  void RequestPause();
  bool WaitUntilStopped(std::chrono::milliseconds timeout) const;

  // Calls `action` while no thread executes and none can begin to; false if the VM is running.
  bool WhileQuiet(const std::function<void()>& action) const;

  // The VM is to end as `exit` says; the first who says so wins. Any thread, also of a vCPU.
  void RequestStop(VmExit exit);

  // For a vCPU's thread, between two turns: waits while the VM is paused. False: end the thread
  // with ThreadEnds.
  bool ThreadMayRun();
  void ThreadEnds();
  // When running must stop for the time limit, or kNever. Checked by ThreadMayRun.
  std::uint64_t time_limit_ns() const { return deadline_ns_.load(std::memory_order_relaxed); }

 private:
  void StopLocked();
  void PauseIfParkedLocked();
  void StartClockLocked();
  void StopClockLocked();

  const unsigned thread_count_;
  const Clock& clock_;
  const Hooks hooks_;
  mutable std::mutex transition_;  // held by whoever changes or needs the state; taken first
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  VmState state_ = VmState::kCreated;
  std::optional<VmExit> exit_;
  bool pause_wanted_ = false;
  unsigned live_threads_ = 0;
  unsigned parked_threads_ = 0;
  std::atomic<bool> attention_{false};  // a thread must look at what is wanted
  std::uint64_t time_left_ns_ = kNever;
  std::uint64_t resumed_ns_ = 0;
  std::atomic<std::uint64_t> deadline_ns_{kNever};
};

}  // namespace pagesaw
