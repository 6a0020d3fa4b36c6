#include <gtest/gtest.h>

#include <cstdint>

import pagesaw.machine.device;
import pagesaw.machine.power_management;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

class PowerManagementTest : public testing::Test {
 protected:
  FakeClock clock_;
  FakeSystemControl system_;
  FakeInterruptSink sink_;
  PowerManagement device_{clock_, system_, sink_};
};

TEST_F(PowerManagementTest, TimerCountsAt3579545Hz) {
  const std::uint64_t begin = device_.Read(BusSpace::kPort, PowerManagement::kTimer, 4);
  clock_.Advance(1'000'000'000);
  const std::uint64_t end = device_.Read(BusSpace::kPort, PowerManagement::kTimer, 4);
  EXPECT_NEAR(static_cast<double>((end - begin) & 0xff'ffff), 3'579'545, 1);
}

TEST_F(PowerManagementTest, SwitchesOffForTheRightSleepOnly) {
  device_.Write(BusSpace::kPort, PowerManagement::kControl, 2, 1u << 13 | 3u << 10);
  device_.Write(BusSpace::kPort, PowerManagement::kControl, 2, 5u << 10);
  EXPECT_EQ(system_.power_offs, 0u);
  device_.Write(BusSpace::kPort, PowerManagement::kControl, 2, 1u << 13 | 5u << 10);
  EXPECT_EQ(system_.power_offs, 1u);
}

TEST_F(PowerManagementTest, SleepsUntilAnAlarmThatIsEnabled) {
  const auto sleep = [this] {
    device_.Write(BusSpace::kPort, PowerManagement::kControl, 2, 1u << 13 | 1u << 10);
  };
  sleep();
  EXPECT_EQ(system_.suspends, 1u);
  device_.RtcAlarm();
  EXPECT_EQ(system_.wake_ups, 0u);
  device_.Write(BusSpace::kPort, PowerManagement::kEvents, 2, 0xffff);
  device_.Write(BusSpace::kPort, PowerManagement::kEvents + 2, 2, 0x400);
  device_.RtcAlarm();
  EXPECT_EQ(system_.wake_ups, 1u);
  EXPECT_EQ(device_.Read(BusSpace::kPort, PowerManagement::kEvents, 2) & 0xffff, 0x8400u);
  device_.RtcAlarm();  // awake already
  EXPECT_EQ(system_.wake_ups, 1u);
  EXPECT_EQ(system_.power_offs, 0u);
}

TEST_F(PowerManagementTest, InterruptsWhileAnEnabledEventIsUp) {
  device_.RtcAlarm();
  EXPECT_FALSE(sink_.levels[9]);
  device_.Write(BusSpace::kPort, PowerManagement::kEvents + 2, 2, 0x400);
  EXPECT_TRUE(sink_.levels[9]);
  device_.Write(BusSpace::kPort, PowerManagement::kEvents, 2, 0x400);
  EXPECT_FALSE(sink_.levels[9]);
}

TEST_F(PowerManagementTest, SaysThatAcpiIsOn) {
  EXPECT_EQ(device_.Read(BusSpace::kPort, PowerManagement::kControl, 2) & 1, 1u);
}

TEST_F(PowerManagementTest, KeepsEventEnables) {
  device_.Write(BusSpace::kPort, PowerManagement::kEvents, 4, 0x0120'ffff);
  EXPECT_EQ(device_.Read(BusSpace::kPort, PowerManagement::kEvents, 4), 0x0120'0000u);
}

}  // namespace
}  // namespace pagesaw
