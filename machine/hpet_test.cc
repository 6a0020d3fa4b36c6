#include <gtest/gtest.h>

#include <cstdint>

import pagesaw.machine.clock;
import pagesaw.machine.device;
import pagesaw.machine.hpet;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

class HpetTest : public testing::Test {
 protected:
  std::uint64_t Get(std::uint64_t offset) {
    return hpet_.Read(BusSpace::kMmio, Hpet::kBase + offset, 8);
  }
  void Set(std::uint64_t offset, std::uint64_t value) {
    hpet_.Write(BusSpace::kMmio, Hpet::kBase + offset, 8, value);
  }
  FakeClock clock_;
  FakeInterruptSink sink_;
  Hpet hpet_{clock_, sink_};
};

TEST_F(HpetTest, CountsWhileEnabled) {
  EXPECT_EQ(Get(0x00) >> 32, 10'000'000u);
  clock_.Advance(1000);
  EXPECT_EQ(Get(0xf0), 0u);
  Set(0x10, 1);
  clock_.Advance(1000);
  EXPECT_EQ(Get(0xf0), 100u);
  EXPECT_EQ(hpet_.Read(BusSpace::kMmio, Hpet::kBase + 0xf0, 4) & 0xffff'ffff, 100u);
  Set(0x10, 0);
  clock_.Advance(1000);
  EXPECT_EQ(Get(0xf0), 100u);
}

TEST_F(HpetTest, FiresOnceAtItsComparator) {
  Set(0x10, 1);
  Set(0x108, 50);
  Set(0x100, 1u << 2 | 10u << 9);
  EXPECT_EQ(hpet_.next_deadline_ns(), clock_.NowNs() + 500);
  clock_.Advance(500);
  hpet_.Poll();
  EXPECT_EQ(sink_.rises[10], 1u);
  EXPECT_EQ(hpet_.next_deadline_ns(), kNever);
}

TEST_F(HpetTest, FiresPeriodicallyThroughLegacyRouting) {
  Set(0x100, 1u << 2 | 1u << 3 | 1u << 6);
  Set(0x108, 10'000);
  Set(0x10, 3);
  for (unsigned i = 1; i <= 3; ++i) {
    clock_.Advance(100'000);
    hpet_.Poll();
    EXPECT_EQ(sink_.rises[0], i);
  }
}

TEST_F(HpetTest, LevelsStayUntilTheirStatusIsCleared) {
  Set(0x10, 1);
  Set(0x108, 50);
  Set(0x100, 1u << 1 | 1u << 2 | 11u << 9);
  clock_.Advance(500);
  hpet_.Poll();
  EXPECT_TRUE(sink_.levels[11]);
  EXPECT_EQ(Get(0x20), 1u);
  Set(0x20, 2);
  EXPECT_TRUE(sink_.levels[11]);
  Set(0x20, 1);
  EXPECT_FALSE(sink_.levels[11]);
  EXPECT_EQ(Get(0x20), 0u);
}

}  // namespace
}  // namespace pagesaw
