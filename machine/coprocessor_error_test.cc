#include <gtest/gtest.h>

import pagesaw.machine.coprocessor_error;
import pagesaw.machine.device;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

TEST(CoprocessorError, InterruptsUntilItIsToldToIgnoreTheError) {
  FakeInterruptSink lines;
  CoprocessorError device(lines);
  EXPECT_FALSE(device.Report(true));
  EXPECT_FALSE(device.Report(false));
  EXPECT_TRUE(lines.levels[13]);
  EXPECT_EQ(lines.rises[13], 1u);
  device.Write(BusSpace::kPort, 0xf0, 1, 0);
  EXPECT_FALSE(lines.levels[13]);
  EXPECT_TRUE(device.Report(false));
  EXPECT_FALSE(lines.levels[13]);
}

TEST(CoprocessorError, TheNextErrorInterruptsAgain) {
  FakeInterruptSink lines;
  CoprocessorError device(lines);
  EXPECT_FALSE(device.Report(true));
  device.Write(BusSpace::kPort, 0xf0, 1, 0);
  EXPECT_FALSE(device.Report(true));
  EXPECT_EQ(lines.rises[13], 2u);
}

TEST(CoprocessorError, AWriteWithoutAnErrorIgnoresNothing) {
  FakeInterruptSink lines;
  CoprocessorError device(lines);
  device.Write(BusSpace::kPort, 0xf0, 1, 0);
  EXPECT_FALSE(device.Report(false));
  EXPECT_TRUE(lines.levels[13]);
}

}  // namespace
}  // namespace pagesaw
