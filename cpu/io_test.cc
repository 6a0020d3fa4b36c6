#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.core;
import pagesaw.cpu.test_core;
import pagesaw.cpu.flags_register;
import pagesaw.cpu.io;

namespace pagesaw::cpu {
namespace {

using Mode = TestCore::Mode;
using T = TestCore;

bool Answer(TestCore& test, std::uint64_t value) {
  if (test.core().stop != Stop::kExit || test.core().exit.reason != ExitReason::kBus) return false;
  BusAccess answer = test.core().exit.bus;
  answer.value = value;
  return test.core().replay.Add(answer);
}

TEST(CheckPort, ConsultsTheBitmapBelowIopl) {
  TestCore test;
  Core& core = test.core();
  test.SetCpl(3);
  core.segments[kTr].limit = 0x88 + 0x10;
  test.Write<std::uint16_t>(T::kTss + 0x66, 0x88);
  test.Write<std::uint16_t>(T::kTss + 0x88 + 0x0c, 0x0100);  // port 68h is refused
  EXPECT_TRUE(CheckPort(core, 0x67, 1));
  EXPECT_FALSE(CheckPort(core, 0x68, 1));
  EXPECT_EQ(core.exception.vector, kGp);
  EXPECT_FALSE(CheckPort(core, 0x67, 2));
  EXPECT_FALSE(CheckPort(core, 0x80, 1));  // its second byte is beyond the limit
  core.rflags |= kFlagIopl;
  EXPECT_TRUE(CheckPort(core, 0x68, 1));
}

TEST(In, WritesAsMuchAsItReads) {
  TestCore test;
  Op op = test.op();
  op.operand_bytes = 2;
  op.immediate = 0x71;
  test.core().gpr[kRax] = ~std::uint64_t{0};
  EXPECT_FALSE(test.Run(InImmediate, op));
  ASSERT_TRUE(Answer(test, 0x1234));
  ASSERT_TRUE(test.Run(InImmediate, op));
  EXPECT_EQ(test.core().gpr[kRax], 0xffff'ffff'ffff'1234u);
}

TEST(Outs, RepeatsWithAnAnswerForEachIteration) {
  TestCore test;
  Core& core = test.core();
  Op op = test.op();
  op.operand_bytes = 1;
  op.address_bytes = 8;
  op.repeat = 1;
  core.budget = 100;
  core.gpr[kRcx] = 3;
  core.gpr[kRsi] = 0x5000;
  core.gpr[kRdx] = 0x3f8;
  test.Write<std::uint32_t>(0x5000, 0x636261);
  std::string sent;
  while (!test.Run(Outs, op)) {
    ASSERT_EQ(core.rip, T::kRip);
    sent += static_cast<char>(core.exit.bus.value);
    ASSERT_TRUE(Answer(test, core.exit.bus.value));
  }
  EXPECT_EQ(sent, "abc");
  EXPECT_EQ(core.gpr[kRcx], 0u);
  EXPECT_EQ(core.gpr[kRsi], 0x5003u);
  EXPECT_EQ(core.rip, T::kRip + T::kLength);
}

TEST(Ins, LooksAtMemoryBeforeThePort) {
  TestCore test;
  Op op = test.op();
  op.operand_bytes = 1;
  test.core().gpr[kRdi] = 0x5000;
  test.Unmap(0x5000);
  EXPECT_FALSE(test.Run(Ins, op));
  EXPECT_EQ(test.core().exit.reason, ExitReason::kTableFault);
  test.Map(0x5000);
  EXPECT_FALSE(test.Run(Ins, op));
  ASSERT_TRUE(Answer(test, 0x42));
  ASSERT_TRUE(test.Run(Ins, op));
  EXPECT_EQ(test.Read<std::uint8_t>(0x5000), 0x42);
  EXPECT_EQ(test.core().gpr[kRdi], 0x5001u);
}

TEST(Hlt, HaltsTheKernelOnly) {
  TestCore test;
  ASSERT_TRUE(test.Run(Hlt, test.op()));
  EXPECT_EQ(test.core().activity, Activity::kHalted);
  test.SetCpl(3);
  EXPECT_FALSE(test.Run(Hlt, test.op()));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(Sti, ShadowsOneInstructionIfInterruptsWereOff) {
  TestCore test;
  ASSERT_TRUE(test.Run(Sti, test.op()));
  EXPECT_TRUE(test.core().interrupt_shadow);
  test.core().interrupt_shadow = false;
  ASSERT_TRUE(test.Run(Sti, test.op()));
  EXPECT_FALSE(test.core().interrupt_shadow);
  ASSERT_TRUE(test.Run(Cli, test.op()));
  EXPECT_EQ(test.core().rflags & kFlagIf, 0u);
  test.SetCpl(3);
  EXPECT_FALSE(test.Run(Sti, test.op()));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

struct PopfCase {
  const char* name;
  unsigned cpl;
  std::uint64_t flags;
  std::uint64_t popped;
  std::uint64_t want;
};
class PopfPrivilege : public testing::TestWithParam<PopfCase> {};
TEST_P(PopfPrivilege, DecidesWhatChanges) {
  TestCore test;
  test.SetCpl(GetParam().cpl);
  test.core().SetRflags(GetParam().flags);
  test.Write(T::kStackTop, GetParam().popped);
  ASSERT_TRUE(test.Run(Popf, test.op()));
  EXPECT_EQ(test.core().Rflags(), GetParam().want | kFlagFixed);
  EXPECT_EQ(test.core().gpr[kRsp], T::kStackTop + 8);
}
constexpr std::uint64_t kEverything = 0xffff'ffff;
INSTANTIATE_TEST_SUITE_P(Levels, PopfPrivilege,
                         testing::Values(PopfCase{"Kernel", 0, 0, kEverything, 0x247fd7},
                                         PopfCase{"User", 3, 0, kEverything, 0x244dd7},
                                         PopfCase{"UserWithIopl", 3, kFlagIopl, kEverything,
                                                  0x247fd7},
                                         PopfCase{"UserKeepsInterrupts", 3, kFlagIf, 0, kFlagIf}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Pushf, HidesResumeAndVirtual8086) {
  TestCore test;
  test.core().rflags |= kFlagRf;
  ASSERT_TRUE(test.Run(Pushf, test.op()));
  EXPECT_EQ(test.Read<std::uint64_t>(T::kStackTop - 8), kFlagFixed);
}

TEST(Stac, IsTheKernelsAndChangesTheBank) {
  TestCore test;
  Core& core = test.core();
  core.cr4 |= kCr4Smap;
  ASSERT_TRUE(test.Run(Stac, test.op()));
  EXPECT_EQ(core.bank, &core.tlb.bank(BankName::kSupervisorSmapWaived));
  ASSERT_TRUE(test.Run(Clac, test.op()));
  EXPECT_EQ(core.bank, &core.tlb.bank(BankName::kSupervisor));
  test.SetCpl(3);
  EXPECT_FALSE(test.Run(Stac, test.op()));
  EXPECT_EQ(core.exception.vector, kUd);
}

}  // namespace
}  // namespace pagesaw::cpu
