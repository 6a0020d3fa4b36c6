#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

import pagesaw.core.address;
import pagesaw.machine.device;
import pagesaw.machine.test_device;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

class TestDeviceTest : public testing::Test {
 protected:
  FakeInterruptSink sink_;
  std::vector<Gfn> forgotten_;
  TestDevice device_{sink_, [this](Gfn gfn) { forgotten_.push_back(gfn); }};
};

TEST_F(TestDeviceTest, LatchesBytes) {
  device_.Write(BusSpace::kPort, 0xe0, 4, 0x1122'3344);
  device_.Write(BusSpace::kPort, 0xe1, 1, 0x55);
  EXPECT_EQ(device_.Read(BusSpace::kPort, 0xe0, 4), 0x1122'5544u);
  EXPECT_EQ(device_.Read(BusSpace::kPort, 0xe2, 2) & 0xffff, 0x1122u);
}

TEST_F(TestDeviceTest, SetsLines) {
  device_.Write(BusSpace::kPort, 0x200e, 4, 1);
  EXPECT_TRUE(sink_.levels[14]);
  device_.Write(BusSpace::kPort, 0x200e, 4, 0);
  EXPECT_FALSE(sink_.levels[14]);
}

TEST_F(TestDeviceTest, ForgetsThePageOfAnAddress) {
  device_.Write(BusSpace::kPort, 0xe4, 4, 0x12'3456);
  ASSERT_EQ(forgotten_.size(), 1u);
  EXPECT_EQ(forgotten_[0], Gfn{0x123});
}

TEST_F(TestDeviceTest, KeepsMemoryAndNothingBeyond) {
  const std::uint64_t last = TestDevice::kMemoryBase + TestDevice::kMemoryBytes - 4;
  device_.Write(BusSpace::kMmio, last, 8, 0x1122'3344'5566'7788);
  EXPECT_EQ(device_.Read(BusSpace::kMmio, last, 8), 0x5566'7788u);
  EXPECT_EQ(device_.Read(BusSpace::kMmio, last + 1, 1), 0x55'6677u & 0xff);
}

}  // namespace
}  // namespace pagesaw
