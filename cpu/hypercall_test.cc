#include <gtest/gtest.h>
#include <cstdint>

import pagesaw.core.processor;
import pagesaw.cpu.hypercall;
import pagesaw.cpu.test_core;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kNumber = 0x1234'0000'0000'000a;

// Makes the call and answers it with `answer`.
void CallAndAnswer(TestCore& test, std::uint64_t answer) {
  ASSERT_FALSE(test.Run(CallHypervisor, test.op()));
  ASSERT_EQ(test.core().stop, Stop::kExit);
  BusAccess asked = test.core().exit.bus;
  EXPECT_EQ(asked.kind, BusAccess::Kind::kHypercall);
  asked.value = answer;
  ASSERT_TRUE(test.core().replay.Add(asked));
  ASSERT_TRUE(test.Run(CallHypervisor, test.op()));
}

TEST(Hypercall, AnswerGoesToRax) {
  TestCore test;
  test.core().gpr[kRax] = kNumber;
  CallAndAnswer(test, ~std::uint64_t{37});
  EXPECT_EQ(test.core().exit.bus.address, kNumber);
  EXPECT_EQ(test.core().gpr[kRax], ~std::uint64_t{37});
}

TEST(Hypercall, HasHalfTheWidthOutside64BitMode) {
  TestCore test(TestCore::Mode::kProtected);
  test.core().gpr[kRax] = kNumber;
  CallAndAnswer(test, ~std::uint64_t{37});
  EXPECT_EQ(test.core().exit.bus.address, 10u);
  EXPECT_EQ(test.core().gpr[kRax], 0xffff'ffdau);
}

TEST(Hypercall, IsUndefinedForPrograms) {
  TestCore test;
  test.SetCpl(3);
  EXPECT_FALSE(test.Run(CallHypervisor, test.op()));
  EXPECT_EQ(test.core().stop, Stop::kException);
  EXPECT_EQ(test.core().exception.vector, kUd);
}

}  // namespace
}  // namespace pagesaw::cpu
