#include <absl/status/status.h>
#include <gtest/gtest.h>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

import pagesaw.machine.clock;
import pagesaw.machine.lifecycle;
import pagesaw.machine.vm_exit;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;

// Threads that count while they may run.
class LifecycleTest : public testing::Test {
 protected:
  explicit LifecycleTest(milliseconds limit = milliseconds(0)) {
    lifecycle_ = std::make_unique<Lifecycle>(
        2, limit, clock_,
        Lifecycle::Hooks{.start_threads = [this] { return StartThreads(); },
                         .kick = [] {},
                         .stopped = [this] { ++stopped_; }});
  }
  ~LifecycleTest() override {
    lifecycle_->Stop();
    for (std::thread& thread : threads_) thread.join();
  }
  absl::Status StartThreads() {
    for (int i = 0; i < 2; ++i) {
      threads_.emplace_back([this] {
        while (lifecycle_->ThreadMayRun()) {
          ++turns_;
          std::this_thread::yield();
        }
        lifecycle_->ThreadEnds();
      });
    }
    return absl::OkStatus();
  }

  HostClock clock_;
  std::atomic<int> turns_{0};
  std::atomic<int> stopped_{0};
  std::vector<std::thread> threads_;
  std::unique_ptr<Lifecycle> lifecycle_;
};

TEST_F(LifecycleTest, GoesThroughItsStates) {
  EXPECT_EQ(lifecycle_->state(), VmState::kCreated);
  EXPECT_EQ(lifecycle_->Pause("v").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(lifecycle_->Resume("v").code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(lifecycle_->Start("v").ok());
  EXPECT_EQ(lifecycle_->Start("v").message(), "VM 'v': cannot start while it is running");
  ASSERT_TRUE(lifecycle_->Pause("v").ok());
  EXPECT_TRUE(lifecycle_->Pause("v").ok());
  EXPECT_EQ(lifecycle_->state(), VmState::kPaused);
  const int turns = turns_;
  std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(turns_, turns);
  ASSERT_TRUE(lifecycle_->Resume("v").ok());
  while (turns_ == turns) std::this_thread::yield();
  lifecycle_->Stop();
  EXPECT_EQ(lifecycle_->state(), VmState::kStopped);
  EXPECT_EQ(lifecycle_->exit().reason, StopReason::kRequested);
  lifecycle_->Stop();
  EXPECT_EQ(stopped_, 1);
  EXPECT_EQ(lifecycle_->Resume("v").code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(LifecycleTest, StopsWhatIsPausedOrNeverStarted) {
  lifecycle_->Stop();
  EXPECT_EQ(lifecycle_->state(), VmState::kStopped);
  EXPECT_EQ(lifecycle_->Start("v").code(), absl::StatusCode::kFailedPrecondition);
}

// A request may come before the threads have noticed that they may run again.
TEST_F(LifecycleTest, PausesOnRequestWithoutWaiting) {
  lifecycle_->RequestPause();
  EXPECT_EQ(lifecycle_->state(), VmState::kCreated);
  ASSERT_TRUE(lifecycle_->Start("v").ok());
  for (int round = 0; round < 300; ++round) {
    lifecycle_->RequestPause();
    while (lifecycle_->state() != VmState::kPaused) std::this_thread::yield();
    EXPECT_TRUE(lifecycle_->Pause("v").ok());
    const int turns = turns_;
    std::this_thread::yield();
    EXPECT_EQ(turns_, turns);
    ASSERT_TRUE(lifecycle_->Resume("v").ok());
    if (round % 3 == 0) {
      EXPECT_TRUE(lifecycle_->Pause("v").ok());
      ASSERT_TRUE(lifecycle_->Resume("v").ok());
    }
    if (round % 2 == 0) continue;
    while (turns_ == turns) std::this_thread::yield();
  }
}

TEST_F(LifecycleTest, StopsWhilePaused) {
  ASSERT_TRUE(lifecycle_->Start("v").ok());
  ASSERT_TRUE(lifecycle_->Pause("v").ok());
  lifecycle_->Stop();
  EXPECT_EQ(lifecycle_->state(), VmState::kStopped);
}

TEST_F(LifecycleTest, TheFirstReasonToStopWins) {
  ASSERT_TRUE(lifecycle_->Start("v").ok());
  lifecycle_->RequestStop(
      {.reason = StopReason::kDebugExit, .debug_exit_value = 7, .message = "x"});
  lifecycle_->RequestStop({.reason = StopReason::kError, .message = "y"});
  ASSERT_TRUE(lifecycle_->WaitUntilStopped(milliseconds(10'000)));
  EXPECT_EQ(lifecycle_->exit().debug_exit_value, 7u);
}

TEST_F(LifecycleTest, QuietMeansNotRunning) {
  int calls = 0;
  EXPECT_TRUE(lifecycle_->WhileQuiet([&] { ++calls; }));
  ASSERT_TRUE(lifecycle_->Start("v").ok());
  EXPECT_FALSE(lifecycle_->WhileQuiet([&] { ++calls; }));
  ASSERT_TRUE(lifecycle_->Pause("v").ok());
  EXPECT_TRUE(lifecycle_->WhileQuiet([&] { ++calls; }));
  EXPECT_EQ(calls, 2);
}

TEST_F(LifecycleTest, SurvivesManyTransitionsAtOnce) {
  ASSERT_TRUE(lifecycle_->Start("v").ok());
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([this] {
      for (int round = 0; round < 200; ++round) {
        (void)lifecycle_->Pause("v");
        (void)lifecycle_->Resume("v");
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

class LifecycleLimit : public LifecycleTest {
 protected:
  LifecycleLimit() : LifecycleTest(milliseconds(60)) {}
};

TEST_F(LifecycleLimit, CountsRunningTimeOnly) {
  ASSERT_TRUE(lifecycle_->Start("v").ok());
  ASSERT_TRUE(lifecycle_->Pause("v").ok());
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(lifecycle_->state(), VmState::kPaused);
  ASSERT_TRUE(lifecycle_->Resume("v").ok());
  ASSERT_TRUE(lifecycle_->WaitUntilStopped(milliseconds(10'000)));
  EXPECT_EQ(lifecycle_->exit().reason, StopReason::kTimeLimit);
}

TEST(ProcessStatus, FollowsTheReason) {
  EXPECT_EQ(ProcessStatus({.reason = StopReason::kDebugExit, .debug_exit_value = 0, .message = ""}),
            1);
  EXPECT_EQ(
      ProcessStatus({.reason = StopReason::kDebugExit, .debug_exit_value = 63, .message = ""}),
      127);
  EXPECT_EQ(ProcessStatus({.reason = StopReason::kTimeLimit, .message = ""}), 124);
  EXPECT_EQ(ProcessStatus({.reason = StopReason::kRequested, .message = ""}), 0);
  EXPECT_EQ(ProcessStatus({.reason = StopReason::kShutdown, .message = ""}), 1);
}

}  // namespace
}  // namespace pagesaw
