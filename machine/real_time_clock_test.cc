#include <gtest/gtest.h>
#include <cstdint>

import pagesaw.machine.clock;
import pagesaw.machine.device;
import pagesaw.machine.real_time_clock;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::int64_t kLeapDay = 951'827'696;  // 2000-02-29 12:34:56 UTC, a Tuesday

class RealTimeClockTest : public testing::Test {
 protected:
  static const Clock& At(FakeClock& clock) {
    clock.wall_seconds = kLeapDay;
    return clock;
  }
  std::uint8_t Get(unsigned index) {
    rtc_.Write(BusSpace::kPort, 0x70, 1, index);
    return static_cast<std::uint8_t>(rtc_.Read(BusSpace::kPort, 0x71, 1));
  }
  void Set(unsigned index, std::uint8_t value) {
    rtc_.Write(BusSpace::kPort, 0x70, 1, index);
    rtc_.Write(BusSpace::kPort, 0x71, 1, value);
  }
  // Lets `ns` pass as a vCPU that polls at every deadline does.
  void Pass(std::uint64_t ns) {
    const std::uint64_t end = clock_.NowNs() + ns;
    while (rtc_.next_deadline_ns() <= end) {
      clock_.Advance(rtc_.next_deadline_ns() - clock_.NowNs());
      rtc_.Poll();
      if (rtc_.next_deadline_ns() <= clock_.NowNs()) FAIL() << "a deadline that never passes";
    }
    clock_.Advance(end - clock_.NowNs());
  }
  void SetAlarm(std::uint8_t hours, std::uint8_t minutes, std::uint8_t seconds) {
    Set(5, hours);
    Set(3, minutes);
    Set(1, seconds);
  }

  FakeClock clock_;
  FakeInterruptSink sink_;
  int alarms_ = 0;
  RealTimeClock rtc_{At(clock_), sink_, 128u << 20, [this] { ++alarms_; }};
};

TEST_F(RealTimeClockTest, TellsTheTimeInBcd) {
  EXPECT_EQ(Get(0), 0x56);
  EXPECT_EQ(Get(2), 0x34);
  EXPECT_EQ(Get(4), 0x12);
  EXPECT_EQ(Get(6), 3);
  EXPECT_EQ(Get(7), 0x29);
  EXPECT_EQ(Get(8), 0x02);
  EXPECT_EQ(Get(9), 0x00);
  EXPECT_EQ(Get(0x32), 0x20);
  EXPECT_EQ(Get(0x0d), 0x80);
  clock_.Advance(5 * kSecond);
  EXPECT_EQ(Get(0), 0x01);
  EXPECT_EQ(Get(2), 0x35);
}

TEST_F(RealTimeClockTest, TellsTheTimeInBinaryAndInTwelveHours) {
  Set(0x0b, 0x06);
  EXPECT_EQ(Get(0), 56);
  EXPECT_EQ(Get(4), 12);
  Set(0x0b, 0x00);
  EXPECT_EQ(Get(4), 0x92);  // 12 noon
  clock_.Advance(3600 * kSecond);
  EXPECT_EQ(Get(4), 0x81);
  clock_.Advance(11 * 3600 * kSecond);
  EXPECT_EQ(Get(4), 0x12);  // midnight
}

TEST_F(RealTimeClockTest, KeepsMemory) {
  Set(0x8f, 0x5a);  // bit 7 is not part of the index
  EXPECT_EQ(Get(0x0f), 0x5a);
  EXPECT_EQ(Get(0x34) | Get(0x35) << 8, (112u << 20) >> 16);
}

TEST_F(RealTimeClockTest, IsSetWhileItStandsStill) {
  Set(0x0b, 0x82);
  clock_.Advance(10 * kSecond);
  EXPECT_EQ(Get(0), 0x56);
  Set(0x32, 0x19);
  Set(9, 0x99);
  Set(8, 0x12);
  Set(7, 0x31);
  Set(4, 0x23);
  Set(2, 0x59);
  Set(0, 0x58);
  clock_.Advance(10 * kSecond);
  EXPECT_EQ(Get(0), 0x58);
  Set(0x0b, 0x02);
  EXPECT_EQ(Get(9), 0x99);
  EXPECT_EQ(Get(6), 6);  // a Friday
  clock_.Advance(2 * kSecond);
  EXPECT_EQ(Get(9), 0x00);
  EXPECT_EQ(Get(0x32), 0x20);
  EXPECT_EQ(Get(7), 0x01);
}

TEST_F(RealTimeClockTest, SurvivesAnyTime) {
  for (const std::uint8_t value : {0x00, 0x60, 0x99, 0xff}) {
    for (const unsigned mode : {0x00u, 0x02u, 0x04u, 0x80u}) {
      Set(0x0b, static_cast<std::uint8_t>(mode));
      for (unsigned index = 0; index < 128; ++index) {
        Set(index, value);
        (void)Get(index);
      }
    }
  }
}

TEST_F(RealTimeClockTest, SaysWhenAnUpdateIsInProgress) {
  EXPECT_EQ(Get(0x0a), 0x26);
  clock_.Advance(kSecond - 100'000);
  EXPECT_EQ(Get(0x0a), 0xa6);
  clock_.Advance(100'000);
  EXPECT_EQ(Get(0x0a), 0x26);
}

TEST_F(RealTimeClockTest, RaisesFlagsWithoutInterrupts) {
  EXPECT_EQ(rtc_.next_deadline_ns(), kNever);
  clock_.Advance(kSecond);
  EXPECT_EQ(Get(0x0c), 0x50);  // periodic and update
  EXPECT_EQ(Get(0x0c), 0x00);
  EXPECT_EQ(sink_.rises[8], 0u);
}

TEST_F(RealTimeClockTest, InterruptsAtEachSecond) {
  Get(0x0c);
  Set(0x0b, 0x12);
  for (unsigned second = 1; second <= 3; ++second) {
    Pass(kSecond);
    EXPECT_EQ(sink_.rises[8], second);
    EXPECT_TRUE(sink_.levels[8]);
    EXPECT_EQ(Get(0x0c) & 0x90, 0x90);
    EXPECT_FALSE(sink_.levels[8]);
  }
  Pass(5 * kSecond);  // nobody reads C: one interrupt
  EXPECT_EQ(sink_.rises[8], 4u);
}

TEST_F(RealTimeClockTest, InterruptsPeriodically) {
  struct Row {
    std::uint8_t rate;
    std::uint64_t hertz;
  };
  for (const Row& row : {Row{1, 256}, {2, 128}, {3, 8192}, {6, 1024}, {15, 2}}) {
    Set(0x0a, 0x20 | row.rate);
    Get(0x0c);
    Set(0x0b, 0x42);
    const unsigned before = sink_.rises[8];
    const std::uint64_t period = kSecond / row.hertz;
    Pass(period - 1000);
    EXPECT_EQ(sink_.rises[8], before) << row.hertz;
    Pass(2000);
    EXPECT_EQ(sink_.rises[8], before + 1) << row.hertz;
    EXPECT_EQ(Get(0x0c) & 0xc0, 0xc0);
    Set(0x0b, 0x02);
  }
  Set(0x0a, 0x20);  // no rate
  Set(0x0b, 0x42);
  EXPECT_EQ(rtc_.next_deadline_ns(), kNever);
}

TEST_F(RealTimeClockTest, AlarmGoesOffAtItsTime) {
  SetAlarm(0x12, 0x35, 0x02);
  Get(0x0c);
  Set(0x0b, 0x22);
  Pass(5 * kSecond);
  EXPECT_EQ(sink_.rises[8], 0u);
  Pass(kSecond);
  EXPECT_EQ(sink_.rises[8], 1u);
  EXPECT_EQ(alarms_, 1);
  EXPECT_EQ(Get(0x0c) & 0xa0, 0xa0);
}

TEST_F(RealTimeClockTest, AlarmBytesFromC0MatchEverything) {
  SetAlarm(0xc0, 0xff, 0xc0);
  Get(0x0c);
  Set(0x0b, 0x22);
  Pass(kSecond);
  EXPECT_EQ(alarms_, 1);
}

TEST_F(RealTimeClockTest, AlarmThatWasMissedIsNotForgotten) {
  SetAlarm(0x12, 0x34, 0x58);
  Get(0x0c);
  clock_.Advance(100 * kSecond);
  EXPECT_EQ(Get(0x0c) & 0x20, 0x20);
  EXPECT_EQ(alarms_, 0);  // its interrupt was off
}

}  // namespace
}  // namespace pagesaw
