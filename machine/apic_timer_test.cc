#include <gtest/gtest.h>
#include <cstdint>

import pagesaw.machine.apic_timer;
import pagesaw.machine.clock;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

class ApicTimerTest : public testing::Test {
 protected:
  ApicTimerTest() { timer_.SetDivide(0xb); }  // by 1
  FakeClock clock_;
  ApicTimer timer_{clock_};
};

TEST_F(ApicTimerTest, CountsDownOnce) {
  timer_.SetInitialCount(100'000);
  clock_.Advance(40'000);
  EXPECT_EQ(timer_.CurrentCount(), 60'000u);
  EXPECT_FALSE(timer_.TakeExpired());
  clock_.Advance(60'000);
  EXPECT_TRUE(timer_.TakeExpired());
  EXPECT_FALSE(timer_.TakeExpired());
  EXPECT_EQ(timer_.CurrentCount(), 0u);
  EXPECT_EQ(timer_.deadline_ns(), kNever);
}

TEST_F(ApicTimerTest, DividesItsClock) {
  for (const auto& [code, divisor] : {std::pair<std::uint32_t, std::uint32_t>{0, 2},
                                      {1, 4},
                                      {2, 8},
                                      {3, 16},
                                      {8, 32},
                                      {9, 64},
                                      {10, 128},
                                      {11, 1}}) {
    timer_.SetDivide(code);
    timer_.SetInitialCount(1'000'000);
    clock_.Advance(divisor * 1000);
    EXPECT_EQ(timer_.CurrentCount(), 999'000u) << code;
  }
}

TEST_F(ApicTimerTest, KeepsTheCountWhenTheDivisorChanges) {
  timer_.SetInitialCount(100'000);
  clock_.Advance(50'000);
  timer_.SetDivide(0);
  EXPECT_EQ(timer_.CurrentCount(), 50'000u);
  clock_.Advance(100'000);
  EXPECT_TRUE(timer_.TakeExpired());
}

TEST_F(ApicTimerTest, KeepsTheCountWhenTheModeChanges) {
  timer_.SetMode(ApicTimer::Mode::kPeriodic);
  timer_.SetInitialCount(100'000);
  clock_.Advance(330'000);
  EXPECT_TRUE(timer_.TakeExpired());
  timer_.SetMode(ApicTimer::Mode::kOneShot);
  EXPECT_EQ(timer_.CurrentCount(), 70'000u);
  EXPECT_EQ(timer_.deadline_ns(), clock_.NowNs() + 70'000);
  clock_.Advance(20'000);
  timer_.SetMode(ApicTimer::Mode::kPeriodic);
  EXPECT_EQ(timer_.CurrentCount(), 50'000u);
  clock_.Advance(60'000);
  EXPECT_TRUE(timer_.TakeExpired());
  EXPECT_EQ(timer_.CurrentCount(), 90'000u);
}

TEST_F(ApicTimerTest, DoesNotStartAgainWhenTheModeChanges) {
  timer_.SetInitialCount(100'000);
  clock_.Advance(110'000);
  EXPECT_TRUE(timer_.TakeExpired());
  timer_.SetMode(ApicTimer::Mode::kPeriodic);
  EXPECT_EQ(timer_.CurrentCount(), 0u);
  EXPECT_EQ(timer_.initial_count(), 100'000u);
  EXPECT_EQ(timer_.deadline_ns(), kNever);
}

TEST_F(ApicTimerTest, RepeatsAndMergesWhatIsLate) {
  timer_.SetMode(ApicTimer::Mode::kPeriodic);
  timer_.SetInitialCount(100'000);
  clock_.Advance(350'000);
  EXPECT_TRUE(timer_.TakeExpired());
  EXPECT_FALSE(timer_.TakeExpired());
  EXPECT_EQ(timer_.deadline_ns(), clock_.NowNs() + 50'000);
  EXPECT_EQ(timer_.CurrentCount(), 50'000u);
}

TEST_F(ApicTimerTest, TheShortestPeriodDoesNotFloodTheHost) {
  timer_.SetMode(ApicTimer::Mode::kPeriodic);
  timer_.SetInitialCount(1);
  clock_.Advance(1);
  EXPECT_TRUE(timer_.TakeExpired());
  EXPECT_EQ(timer_.deadline_ns(), clock_.NowNs() + ApicTimer::kShortestPeriodNs);
}

TEST_F(ApicTimerTest, AZeroCountStops) {
  timer_.SetMode(ApicTimer::Mode::kPeriodic);
  timer_.SetInitialCount(1000);
  timer_.SetInitialCount(0);
  clock_.Advance(1'000'000);
  EXPECT_FALSE(timer_.TakeExpired());
}

TEST_F(ApicTimerTest, WaitsForTheTimeStampCounter) {
  timer_.SetTscDeadline(clock_.Tsc() + 10);
  EXPECT_EQ(timer_.tsc_deadline(), 0u);  // not in that mode
  timer_.SetMode(ApicTimer::Mode::kTscDeadline);
  timer_.SetTscDeadline(clock_.Tsc() + 10);
  timer_.SetInitialCount(5);
  EXPECT_FALSE(timer_.TakeExpired());
  clock_.Advance(10);
  EXPECT_TRUE(timer_.TakeExpired());
  EXPECT_EQ(timer_.tsc_deadline(), 0u);
  timer_.SetTscDeadline(1);  // long past
  EXPECT_TRUE(timer_.TakeExpired());
  timer_.SetTscDeadline(~0ull);
  EXPECT_FALSE(timer_.TakeExpired());
}

}  // namespace
}  // namespace pagesaw
