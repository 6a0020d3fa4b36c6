#include <gtest/gtest.h>
#include <cstdint>

import pagesaw.machine.clock;
import pagesaw.machine.device;
import pagesaw.machine.pit;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

class PitTest : public testing::Test {
 protected:
  void Out(std::uint16_t port, std::uint8_t value) { pit_.Write(BusSpace::kPort, port, 1, value); }
  unsigned In(std::uint16_t port) {
    return static_cast<unsigned>(pit_.Read(BusSpace::kPort, port, 1));
  }
  unsigned Count(std::uint16_t port) {
    const unsigned low = In(port);
    return low | In(port) << 8;
  }

  FakeClock clock_;
  FakeInterruptSink interrupts_;
  Pit pit_{clock_, interrupts_};
};

TEST_F(PitTest, Channel0TicksPeriodically) {
  EXPECT_EQ(pit_.next_deadline_ns(), kNever);
  Out(0x43, 0x34);
  Out(0x40, 11932 & 0xff);
  Out(0x40, 11932 >> 8);  // 10 ms
  const std::uint64_t first = pit_.next_deadline_ns() - clock_.NowNs();
  EXPECT_NEAR(static_cast<double>(first), 1e7, 1e3);
  pit_.Poll();
  EXPECT_EQ(interrupts_.rises[0], 0u);
  clock_.Advance(10'001'000);
  pit_.Poll();
  pit_.Poll();
  EXPECT_EQ(interrupts_.rises[0], 1u);
  clock_.Advance(10'000'000);
  pit_.Poll();
  EXPECT_EQ(interrupts_.rises[0], 2u);
}

TEST_F(PitTest, OneShotFiresOnce) {
  Out(0x43, 0x30);
  Out(0x40, 0x00);
  Out(0x40, 0x10);
  clock_.Advance(100'000'000);
  pit_.Poll();
  EXPECT_EQ(interrupts_.rises[0], 1u);
  EXPECT_EQ(pit_.next_deadline_ns(), kNever);
}

TEST_F(PitTest, TheShortestPeriodDoesNotFloodTheHost) {
  Out(0x43, 0x14);
  Out(0x40, 1);
  EXPECT_GE(pit_.next_deadline_ns(), clock_.NowNs() + 100'000);
  EXPECT_NE(pit_.next_deadline_ns(), kNever);
}

TEST_F(PitTest, Channel2ShowsItsOutputAtPort61) {
  Out(0x61, 0x00);
  Out(0x43, 0xb0);
  Out(0x42, 0xff);
  Out(0x42, 0xff);
  Out(0x61, 0x01);
  EXPECT_EQ(In(0x61) & 0x21, 0x01u);
  clock_.Advance(54'000'000);
  EXPECT_EQ(In(0x61) & 0x20, 0x00u);
  clock_.Advance(2'000'000);
  EXPECT_EQ(In(0x61) & 0x20, 0x20u);
}

TEST_F(PitTest, CountsDownAndLatches) {
  Out(0x43, 0x34);
  Out(0x40, 0x00);
  Out(0x40, 0x80);
  clock_.Advance(1'000'000);  // 1193 ticks
  Out(0x43, 0x00);
  clock_.Advance(1'000'000);
  EXPECT_EQ(Count(0x40), 0x8000u - 1193);
  EXPECT_EQ(Count(0x40), 0x8000u - 2386);
}

TEST_F(PitTest, ReadBackGivesStatus) {
  Out(0x43, 0x34);
  Out(0x43, 0xe2);
  EXPECT_EQ(In(0x40) & 0x7f, 0x74u);  // no count yet, low then high, mode 2
}

}  // namespace
}  // namespace pagesaw
