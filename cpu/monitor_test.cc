#include <gtest/gtest.h>

#include <cstdint>

import pagesaw.core.cpu_state;
import pagesaw.core.processor;
import pagesaw.cpu.monitor;
import pagesaw.cpu.test_core;

namespace pagesaw::cpu {
namespace {

class MonitorTest : public testing::Test {
 protected:
  MonitorTest() {
    test_.model().Set(Feature::kMonitor, true);
    test_.core().gpr[kRax] = 0x5000;
    test_.core().gpr[kRcx] = 0;
  }
  Op op() const {
    Op op = test_.op();
    op.segment = kDs;
    return op;
  }
  TestCore test_;
};

TEST_F(MonitorTest, WaitingEndsBehindTheInstruction) {
  ASSERT_TRUE(test_.Run(Monitor, op()));
  EXPECT_TRUE(test_.core().monitor_armed);
  ASSERT_TRUE(test_.Run(Mwait, op()));
  EXPECT_FALSE(test_.core().monitor_armed);
  EXPECT_EQ(test_.core().exit.reason, ExitReason::kRequested);
  EXPECT_EQ(test_.core().rip, TestCore::kRip + 2 * TestCore::kLength);
}

TEST_F(MonitorTest, TheLineMustBeReadable) {
  test_.Unmap(0x5000);
  EXPECT_FALSE(test_.Run(Monitor, op()));
  EXPECT_FALSE(test_.core().monitor_armed);
  test_.core().gpr[kRax] = std::uint64_t{1} << 62;
  EXPECT_FALSE(test_.Run(Monitor, op()));
  EXPECT_EQ(test_.core().exception.vector, kGp);
}

TEST_F(MonitorTest, UnknownExtensionsAreGeneralProtection) {
  test_.core().gpr[kRcx] = 1;
  EXPECT_FALSE(test_.Run(Monitor, op()));
  EXPECT_EQ(test_.core().exception.vector, kGp);
  EXPECT_TRUE(test_.Run(Mwait, op()));
  test_.core().gpr[kRcx] = 2;
  EXPECT_FALSE(test_.Run(Mwait, op()));
  EXPECT_EQ(test_.core().exception.vector, kGp);
}

TEST_F(MonitorTest, IsUndefinedForProgramsAndWhileItIsOff) {
  test_.SetCpl(3);
  EXPECT_FALSE(test_.Run(Monitor, op()));
  EXPECT_EQ(test_.core().exception.vector, kUd);
  test_.SetCpl(0);
  ASSERT_TRUE(test_.core().plain_msrs.Write(kMsrMiscEnable, 0));
  EXPECT_FALSE(test_.Run(Mwait, op()));
  EXPECT_EQ(test_.core().exception.vector, kUd);
}

class MonitorxTest : public MonitorTest {
 protected:
  MonitorxTest() {
    test_.model().Set(Feature::kMonitor, false);
    test_.model().Set(Feature::kMonitorx, true);
  }
};

TEST_F(MonitorxTest, WorksForPrograms) {
  test_.SetCpl(3);
  ASSERT_TRUE(test_.Run(Monitorx, op()));
  EXPECT_TRUE(test_.core().monitor_armed);
  ASSERT_TRUE(test_.Run(Mwaitx, op()));
  EXPECT_FALSE(test_.core().monitor_armed);
  EXPECT_EQ(test_.core().exit.reason, ExitReason::kRequested);
}

TEST_F(MonitorxTest, HasATimer) {
  test_.core().gpr[kRcx] = 3;
  test_.core().gpr[kRbx] = 1;
  EXPECT_TRUE(test_.Run(Mwaitx, op()));
  test_.core().gpr[kRcx] = 4;
  EXPECT_FALSE(test_.Run(Mwaitx, op()));
  EXPECT_EQ(test_.core().exception.vector, kGp);
}

TEST_F(MonitorxTest, IsUndefinedWithoutTheFeature) {
  test_.model().Set(Feature::kMonitorx, false);
  test_.model().Set(Feature::kMonitor, true);
  EXPECT_FALSE(test_.Run(Monitorx, op()));
  EXPECT_EQ(test_.core().exception.vector, kUd);
  EXPECT_FALSE(test_.Run(Mwaitx, op()));
  EXPECT_EQ(test_.core().exception.vector, kUd);
}

}  // namespace
}  // namespace pagesaw::cpu
