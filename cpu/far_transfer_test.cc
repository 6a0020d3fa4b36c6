#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>

import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.cpu.core;
import pagesaw.cpu.test_core;
import pagesaw.cpu.far_transfer;
import pagesaw.cpu.exceptions;

namespace pagesaw::cpu {
namespace {

using Mode = TestCore::Mode;
using T = TestCore;

Op PointerOp(const TestCore& test, std::uint16_t selector, std::uint32_t offset) {
  Op op = test.op();
  op.operand_bytes = 4;
  op.immediate = std::uint64_t{selector} << 32 | offset;
  return op;
}

struct JumpCase {
  const char* name;
  std::uint16_t selector;
  std::uint32_t offset;
  int want_vector;
  std::uint32_t want_error;
};
class FarJumpLong : public testing::TestWithParam<JumpCase> {};
TEST_P(FarJumpLong, ChecksItsTarget) {
  TestCore test;
  Core& core = test.core();
  const bool done = test.Run(FarJump, PointerOp(test, GetParam().selector, GetParam().offset));
  EXPECT_EQ(done ? -1 : core.exception.vector, GetParam().want_vector);
  EXPECT_EQ(done ? 0 : core.exception.error_code, GetParam().want_error);
  EXPECT_EQ(core.rip, done ? GetParam().offset : T::kRip);
  EXPECT_EQ(core.cpl, 0);
}
INSTANTIATE_TEST_SUITE_P(
    Targets, FarJumpLong,
    testing::Values(JumpCase{"Code64", T::kCode64, 0x5000, -1, 0},
                    JumpCase{"Code32", T::kCode32, 0x5000, -1, 0},
                    JumpCase{"Conforming", T::kConforming | 3, 0x5000, -1, 0},
                    JumpCase{"Null", 2, 0x5000, kGp, 0},
                    JumpCase{"Data", T::kData, 0x5000, kGp, T::kData},
                    JumpCase{"UserCode", T::kUserCode64, 0x5000, kGp, T::kUserCode64 & ~3u},
                    JumpCase{"HighRpl", T::kCode64 | 3, 0x5000, kGp, T::kCode64},
                    JumpCase{"Absent", T::kAbsentCode, 0x5000, kNp, T::kAbsentCode},
                    JumpCase{"Tss", T::kTssSelector, 0x5000, kGp, T::kTssSelector},
                    JumpCase{"Outside", 0x200, 0x5000, kGp, 0x200}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(FarJumpIndirect, Takes64BitOffsets) {
  TestCore test;
  test.Write<std::uint64_t>(0x5000, 0xffff'8000'0000'1000);
  test.Write<std::uint16_t>(0x5008, T::kCode64);
  ASSERT_TRUE(test.Run(FarJumpIndirect, test.MemoryOp(0x5000)));
  EXPECT_EQ(test.core().rip, 0xffff'8000'0000'1000u);
  test.Write<std::uint64_t>(0x5000, 0x8000'0000'1000);
  EXPECT_FALSE(test.Run(FarJumpIndirect, test.MemoryOp(0x5000)));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(FarCall, AndReturnAtTheSameLevel) {
  TestCore test;
  Core& core = test.core();
  ASSERT_TRUE(test.Run(FarCall, PointerOp(test, T::kCode32, 0x5000)));
  EXPECT_EQ(core.code_size, CodeSize::k32);
  EXPECT_EQ(core.gpr[kRsp], T::kStackTop - 8);
  Op back = test.op();
  back.operand_bytes = 4;
  back.immediate = 16;
  ASSERT_TRUE(test.Run(FarReturn, back));
  EXPECT_TRUE(core.code_64());
  EXPECT_EQ(core.rip, T::kRip + T::kLength);
  EXPECT_EQ(core.gpr[kRsp], T::kStackTop + 16);
}

TEST(FarCall, ThroughAGateOfLongModeAndBack) {
  TestCore test;
  Core& core = test.core();
  test.SetCpl(3);
  test.SetDescriptor(T::kFree, 0x0000'ec00'0008'5000, 0x1);  // to kCode64, offset 1'0000'5000h
  ASSERT_TRUE(test.Run(FarCall, PointerOp(test, T::kFree | 3, 0)));
  EXPECT_EQ(core.cpl, 0);
  EXPECT_EQ(core.rip, 0x1'0000'5000u);
  EXPECT_EQ(core.gpr[kRsp], T::kInnerStackTop - 32);
  EXPECT_EQ(core.segments[kSs].selector, 0);
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp] + 24), T::kUserData);
  ASSERT_TRUE(test.Run(FarReturn, test.op()));
  EXPECT_EQ(core.cpl, 3);
  EXPECT_EQ(core.rip, T::kRip + T::kLength);
  EXPECT_EQ(core.gpr[kRsp], T::kStackTop);
}

TEST(FarCall, CopiesParametersThroughALegacyGate) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  test.SetCpl(3);
  test.SetDescriptor(T::kFree, 0x0000'ec02'0028'5000);  // to kCode32, two parameters
  test.Write<std::uint32_t>(T::kStackTop, 0xaaaa);
  test.Write<std::uint32_t>(T::kStackTop + 4, 0xbbbb);
  ASSERT_TRUE(test.Run(FarCall, PointerOp(test, T::kFree | 3, 0)));
  EXPECT_EQ(core.cpl, 0);
  EXPECT_EQ(core.gpr[kRsp], T::kInnerStackTop - 24);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp]), T::kRip + T::kLength);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp] + 8), 0xaaaau);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp] + 12), 0xbbbbu);
  Op back = test.op();
  back.immediate = 8;
  ASSERT_TRUE(test.Run(FarReturn, back));
  EXPECT_EQ(core.cpl, 3);
  EXPECT_EQ(core.gpr[kRsp], T::kStackTop + 8);
}

TEST(FarJump, RealModeMultipliesTheSelector) {
  TestCore test(Mode::kReal);
  ASSERT_TRUE(test.Run(FarJump, PointerOp(test, 0x1000, 0x20)));
  EXPECT_EQ(test.core().segments[kCs].base, 0x10000u);
  EXPECT_EQ(test.core().rip, 0x20u);
}

TEST(Syscall, AndSysret) {
  TestCore test;
  Core& core = test.core();
  test.SetCpl(3);
  core.star = std::uint64_t{0x1b} << 48 | std::uint64_t{0x08} << 32;
  core.lstar = 0x5000;
  core.sfmask = kFlagIf;
  core.SetRflags(kFlagIf | kFlagCf);
  ASSERT_TRUE(test.Run(Syscall, test.op()));
  EXPECT_EQ(core.rip, 0x5000u);
  EXPECT_EQ(core.cpl, 0);
  EXPECT_EQ(core.gpr[kRcx], T::kRip + T::kLength);
  EXPECT_EQ(core.gpr[kR11], kFlagIf | kFlagCf | kFlagFixed);
  EXPECT_EQ(core.rflags & kFlagIf, 0u);
  EXPECT_EQ(core.segments[kSs].selector, 0x10);
  ASSERT_TRUE(test.Run(Sysret, test.op()));
  EXPECT_EQ(core.cpl, 3);
  EXPECT_EQ(core.rip, T::kRip + T::kLength);
  EXPECT_EQ(core.segments[kCs].selector, 0x2b);
  EXPECT_EQ(core.segments[kSs].selector, 0x23);
  EXPECT_NE(core.rflags & kFlagIf, 0u);
}

TEST(Syscall, IsUndefinedWithoutSceAndInCompatibilityMode) {
  TestCore test;
  test.core().efer &= ~kEferSce;
  EXPECT_FALSE(test.Run(Syscall, test.op()));
  EXPECT_EQ(test.core().exception.vector, kUd);
  test.core().efer |= kEferSce;
  test.core().segments[kCs].attributes = 0xc09b;
  test.core().UpdateMode();
  EXPECT_FALSE(test.Run(Syscall, test.op()));
  EXPECT_EQ(test.core().exception.vector, kUd);
}

TEST(Sysret, NonCanonicalTargetFaultsInTheKernel) {
  TestCore test;
  test.core().gpr[kRcx] = 0x8000'0000'0000;
  EXPECT_FALSE(test.Run(Sysret, test.op()));
  EXPECT_EQ(test.core().exception.vector, kGp);
  EXPECT_EQ(test.core().cpl, 0);
}

TEST(Sysenter, AndSysexit) {
  TestCore test;
  Core& core = test.core();
  test.SetCpl(3);
  EXPECT_FALSE(test.Run(Sysenter, test.op()));
  EXPECT_EQ(core.exception.vector, kGp);
  core.sysenter_cs = 8;
  core.sysenter_eip = 0x5000;
  core.sysenter_esp = 0x7000;
  ASSERT_TRUE(test.Run(Sysenter, test.op()));
  EXPECT_EQ(core.cpl, 0);
  EXPECT_EQ(core.rip, 0x5000u);
  EXPECT_EQ(core.gpr[kRsp], 0x7000u);
  core.gpr[kRdx] = 0x4444;
  core.gpr[kRcx] = 0x8888;
  ASSERT_TRUE(test.Run(Sysexit, test.op()));
  EXPECT_EQ(core.cpl, 3);
  EXPECT_EQ(core.rip, 0x4444u);
  EXPECT_EQ(core.segments[kCs].selector, 0x2b);
  EXPECT_EQ(core.gpr[kRsp], 0x8888u);
}

// A second task: its TSS at 5000h, described by kFree.
void MakeTask(TestCore& test) {
  test.SetDescriptor(T::kFree, 0x0000'8900'5000'0067);
  test.SetDescriptor(T::kTssSelector, 0x0000'8b00'3000'0067);
  test.Write<std::uint32_t>(0x5020, 0x6000);                // EIP
  test.Write<std::uint32_t>(0x5024, kFlagFixed | kFlagIf);  // EFLAGS
  test.Write<std::uint32_t>(0x5028, 0xabcd);                // EAX
  test.Write<std::uint32_t>(0x5038, 0x7000);                // ESP
  const std::array<std::uint16_t, 6> selectors = {T::kData, T::kCode32, T::kData, T::kData, 0, 0};
  for (unsigned i = 0; i < 6; ++i) test.Write(0x5048 + 4 * i, selectors[i]);
}

TEST(TaskSwitch, CallNestsAndIretReturns) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  MakeTask(test);
  core.gpr[kRbx] = 0x1111;
  ASSERT_TRUE(test.Run(FarCall, PointerOp(test, T::kFree, 0)));
  EXPECT_EQ(core.rip, 0x6000u);
  EXPECT_EQ(core.gpr[kRax], 0xabcdu);
  EXPECT_EQ(core.gpr[kRsp], 0x7000u);
  EXPECT_NE(core.rflags & kFlagNt, 0u);
  EXPECT_NE(core.cr0 & 8, 0u);
  EXPECT_EQ(core.segments[kTr].selector, T::kFree);
  EXPECT_EQ(test.Read<std::uint8_t>(T::kGdt + T::kFree + 5), 0x8b);
  EXPECT_EQ(test.Read<std::uint16_t>(0x5000), T::kTssSelector);
  EXPECT_EQ(test.Read<std::uint32_t>(T::kTss + 0x20), T::kRip + T::kLength);
  ASSERT_TRUE(test.Run(Iret, test.op()));
  EXPECT_EQ(core.rip, T::kRip + T::kLength);
  EXPECT_EQ(core.gpr[kRbx], 0x1111u);
  EXPECT_EQ(core.segments[kTr].selector, T::kTssSelector);
  EXPECT_EQ(test.Read<std::uint8_t>(T::kGdt + T::kFree + 5), 0x89);
  EXPECT_EQ(core.rflags & kFlagNt, 0u);
}

TEST(TaskSwitch, BadSegmentChangesNothing) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  MakeTask(test);
  test.Write<std::uint16_t>(0x5050, T::kReadOnly);  // SS
  EXPECT_FALSE(test.Run(FarJump, PointerOp(test, T::kFree, 0)));
  EXPECT_EQ(core.exception.vector, kTs);
  EXPECT_EQ(core.exception.error_code, T::kReadOnly);
  EXPECT_EQ(core.segments[kTr].selector, T::kTssSelector);
  EXPECT_EQ(test.Read<std::uint8_t>(T::kGdt + T::kFree + 5), 0x89);
}

TEST(TaskSwitch, InterruptThroughATaskGatePushesTheErrorCode) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  MakeTask(test);
  test.SetGate(kGp, T::kFree, 0, 5, 0);
  ASSERT_EQ(Deliver(core, Pending{.vector = kGp, .has_error_code = true, .error_code = 0x77}),
            Delivery::kDone);
  EXPECT_EQ(core.rip, 0x6000u);
  EXPECT_EQ(core.gpr[kRsp], 0x7000u - 4);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp]), 0x77u);
}

}  // namespace
}  // namespace pagesaw::cpu
