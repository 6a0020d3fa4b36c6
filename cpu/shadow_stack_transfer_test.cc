// What transfers of control do to shadow stacks: events, gates, fast system calls, task switches,
// in 64-bit and in 32-bit code.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.cpu.core;
import pagesaw.cpu.exceptions;
import pagesaw.cpu.far_transfer;
import pagesaw.cpu.model;
import pagesaw.cpu.test_core;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Mode = TestCore::Mode;
using T = TestCore;

constexpr std::uint64_t kKernelStack = 0x20ff8;  // where tokens are: token and frame share 32 bytes
constexpr std::uint64_t kIstStack = 0x21ff8;
constexpr std::uint64_t kTaskStack = 0x22ff8;
constexpr std::uint64_t kUserStack = 0x23800;
constexpr std::uint64_t kIstTable = 0x6000;
constexpr std::uint64_t kHandler = 0x5000;
constexpr std::uint64_t kReturn = T::kRip + T::kLength;
constexpr std::uint64_t kFrame = 24;

class ShadowTest {
 public:
  // Shadow stacks are on for supervisors and users as said; the program runs at `cpl`.
  explicit ShadowTest(Mode mode, unsigned cpl, bool supervisor = true, bool user = true)
      : test_(mode) {
    Core& core = test_.core();
    for (const std::uint64_t stack : {kKernelStack, kIstStack, kTaskStack}) {
      ShadowPage(stack, false);
      test_.Write(stack, stack);  // a free token
    }
    ShadowPage(kUserStack, true);
    test_.Write<std::uint64_t>(kIstTable + 8, kIstStack);
    core.cr0 |= kCr0Pg | kCr0Wp;
    core.cr4 |= kCr4Pae | kCr4Cet;
    core.cet.supervisor = supervisor ? kCetShadowStack : 0;
    core.cet.user = user ? kCetShadowStack : 0;
    core.cet.privilege_ssp = {kKernelStack, kKernelStack, kKernelStack, 0};
    core.cet.interrupt_ssp_table = kIstTable;
    core.cet.ssp = cpl == 3 ? kUserStack : kKernelStack - 0x100;
    core.UpdatePaging();
    test_.SetCpl(cpl);
    core.SetRflags(kFlagIf);
    test_.SetGate(0x40, KernelCode(), kHandler, 0xe, 3);
    test_.SetGate(0x41, KernelCode(), kHandler, 0xe, 3, 1);
  }

  Core& core() { return test_.core(); }
  TestCore& test() { return test_; }
  std::uint64_t ssp() { return core().cet.ssp; }
  std::uint64_t At(std::uint64_t linear) { return test_.Read<std::uint64_t>(linear); }
  bool Interrupt(std::uint8_t vector) {
    core().rip = kReturn;
    return Deliver(core(), Pending{.vector = vector, .event_class = EventClass::kInterrupt}) ==
           Delivery::kDone;
  }
  // What is on the shadow stack for a transfer from `cs`.
  void ExpectFrame(std::uint64_t at, std::uint64_t cs, std::uint64_t previous) {
    EXPECT_EQ(At(at + 16), cs);
    EXPECT_EQ(At(at + 8), kReturn);
    EXPECT_EQ(At(at), previous);
  }

 private:
  std::uint16_t KernelCode() { return core().long_mode() ? T::kCode64 : T::kCode32; }
  void ShadowPage(std::uint64_t linear, bool user) {
    std::uint64_t& spte = test_.Spte(linear);
    spte = (spte & ~std::uint64_t{6}) | (user ? 4 : 0);  // D without W
  }

  TestCore test_;
};

class OnShadowStacks : public testing::TestWithParam<Mode> {
 protected:
  Op PointerOp(const TestCore& test, std::uint16_t selector) {
    Op op = test.op();
    op.operand_bytes = 4;
    op.immediate = std::uint64_t{selector} << 32;
    return op;
  }
  bool wide() const { return GetParam() == Mode::kLong; }
  std::uint16_t user_code() const { return wide() ? T::kUserCode64 : T::kUserCode32; }
  std::uint16_t kernel_code() const { return wide() ? T::kCode64 : T::kCode32; }
};
INSTANTIATE_TEST_SUITE_P(Modes, OnShadowStacks, testing::Values(Mode::kLong, Mode::kProtected),
                         [](const auto& info) {
                           return std::string(info.param == Mode::kLong ? "Long" : "Protected");
                         });

TEST_P(OnShadowStacks, AnInterruptOfAProgramTakesTheKernelsAndIretGivesItBack) {
  ShadowTest shadow(GetParam(), 3);
  ASSERT_TRUE(shadow.Interrupt(0x40));
  EXPECT_EQ(shadow.ssp(), kKernelStack);
  EXPECT_EQ(shadow.At(kKernelStack), kKernelStack | 1);
  EXPECT_EQ(shadow.core().cet.privilege_ssp[3], kUserStack);
  ASSERT_TRUE(shadow.test().Run(Iret, shadow.test().op()));
  EXPECT_EQ(shadow.core().cpl, 3);
  EXPECT_EQ(shadow.ssp(), kUserStack);
  EXPECT_EQ(shadow.At(kKernelStack), kKernelStack);
}

TEST_P(OnShadowStacks, AnInterruptOfTheKernelPushesWhereItCameFrom) {
  ShadowTest shadow(GetParam(), 0);
  const std::uint64_t before = shadow.ssp();
  ASSERT_TRUE(shadow.Interrupt(0x40));
  EXPECT_EQ(shadow.ssp(), before - kFrame);
  shadow.ExpectFrame(before - kFrame, kernel_code(), before);
  ASSERT_TRUE(shadow.test().Run(Iret, shadow.test().op()));
  EXPECT_EQ(shadow.ssp(), before);
}

// 32-bit code leaves pointers that are no multiples of 8.
TEST_P(OnShadowStacks, AFrameIsAligned) {
  ShadowTest shadow(GetParam(), 0);
  shadow.core().cet.ssp -= 4;
  const std::uint64_t before = shadow.ssp();
  shadow.test().Write<std::uint32_t>(before - 4, 0x7777);
  ASSERT_TRUE(shadow.Interrupt(0x40));
  EXPECT_EQ(shadow.ssp(), before - 4 - kFrame);
  shadow.ExpectFrame(before - 4 - kFrame, kernel_code(), before);
  EXPECT_EQ(shadow.test().Read<std::uint32_t>(before - 4), 0u);
  ASSERT_TRUE(shadow.test().Run(Iret, shadow.test().op()));
  EXPECT_EQ(shadow.ssp(), before);
}

TEST_P(OnShadowStacks, IretComparesWhereItGoes) {
  for (const std::uint64_t at : {std::uint64_t{16}, std::uint64_t{8}, std::uint64_t{0}}) {
    ShadowTest shadow(GetParam(), 0);
    ASSERT_TRUE(shadow.Interrupt(0x40));
    shadow.test().Write(shadow.ssp() + at, shadow.At(shadow.ssp() + at) ^ 1);
    EXPECT_FALSE(shadow.test().Run(Iret, shadow.test().op()));
    EXPECT_EQ(shadow.core().exception.vector, kCp);
    EXPECT_EQ(shadow.core().exception.error_code, 2u);
  }
}

TEST_P(OnShadowStacks, ABusyOrMisplacedTokenIsGeneralProtection) {
  struct Row {
    std::uint64_t ssp, token;
  };
  for (const Row& row : {Row{kKernelStack, kKernelStack | 1}, Row{kKernelStack, 0x1000},
                         Row{kKernelStack - 4, kKernelStack - 4}}) {
    ShadowTest shadow(GetParam(), 3);
    Core& core = shadow.core();
    core.cet.privilege_ssp[0] = row.ssp;
    shadow.test().Write(row.ssp, row.token);
    shadow.test().SetGate(kGp, kernel_code(), kHandler, 0xe, 0);
    shadow.test().SetGate(kDf, kernel_code(), kHandler, 0xe, 0);
    EXPECT_FALSE(shadow.Interrupt(0x40));  // nor can #GP and #DF be delivered
    EXPECT_EQ(shadow.ssp(), kUserStack);
    EXPECT_EQ(shadow.At(row.ssp), row.token);
  }
}

TEST_P(OnShadowStacks, ACallGateSwitchesAndAFarReturnSwitchesBack) {
  ShadowTest shadow(GetParam(), 3);
  TestCore& test = shadow.test();
  test.SetDescriptor(T::kFree, wide() ? 0x0000'ec00'0008'5000 : 0x0000'ec00'0028'5000);
  ASSERT_TRUE(test.Run(FarCall, PointerOp(test, T::kFree | 3)));
  EXPECT_EQ(shadow.core().cpl, 0);
  EXPECT_EQ(shadow.ssp(), kKernelStack);
  EXPECT_EQ(shadow.At(kKernelStack), kKernelStack | 1);
  EXPECT_EQ(shadow.core().cet.privilege_ssp[3], kUserStack);
  ASSERT_TRUE(test.Run(FarReturn, test.op()));
  EXPECT_EQ(shadow.core().cpl, 3);
  EXPECT_EQ(shadow.ssp(), kUserStack);
  EXPECT_EQ(shadow.At(kKernelStack), kKernelStack);
}

// From level 1 the way back is on the new stack: only a program's pointer is kept elsewhere.
TEST_P(OnShadowStacks, ACallGateOfAnotherSupervisorPushesAFrame) {
  ShadowTest shadow(GetParam(), 1);
  TestCore& test = shadow.test();
  const std::uint64_t code = wide() ? 0x00af'bb00'0000'ffff : 0x00cf'bb00'0000'ffff;
  const std::uint16_t selector = user_code() & ~2u;
  test.SetDescriptor(selector, code);
  test.SetDescriptor(T::kUserData, 0x00cf'b300'0000'ffff);
  shadow.core().segments[kCs].selector = selector;
  shadow.core().segments[kSs].selector = T::kUserData & ~2u;
  test.SetDescriptor(T::kFree, wide() ? 0x0000'ec00'0008'5000 : 0x0000'ec00'0028'5000);
  const std::uint64_t before = shadow.ssp();
  ASSERT_TRUE(test.Run(FarCall, PointerOp(test, T::kFree | 1)));
  EXPECT_EQ(shadow.ssp(), kKernelStack - kFrame);
  shadow.ExpectFrame(kKernelStack - kFrame, selector, before);
  EXPECT_EQ(shadow.core().cet.privilege_ssp[3], 0u);
  ASSERT_TRUE(test.Run(FarReturn, test.op()));
  EXPECT_EQ(shadow.core().cpl, 1);
  EXPECT_EQ(shadow.ssp(), before);
  EXPECT_EQ(shadow.At(kKernelStack), kKernelStack);
}

TEST_P(OnShadowStacks, SysenterStartsWithoutOneAndSysexitGoesBack) {
  ShadowTest shadow(GetParam(), 3);
  Core& core = shadow.core();
  core.sysenter_cs = kernel_code();
  core.sysenter_eip = kHandler;
  ASSERT_TRUE(shadow.test().Run(Sysenter, shadow.test().op()));
  EXPECT_EQ(core.cpl, 0);
  EXPECT_EQ(shadow.ssp(), 0u);
  EXPECT_EQ(core.cet.privilege_ssp[3], kUserStack);
  ASSERT_TRUE(shadow.test().Run(Sysexit, shadow.test().op()));
  EXPECT_EQ(core.cpl, 3);
  EXPECT_EQ(shadow.ssp(), kUserStack);
}

// Each level's shadow stack is its own business.
TEST_P(OnShadowStacks, WhatIsOffAtALevelIsLeftAlone) {
  for (const bool user : {false, true}) {
    ShadowTest shadow(GetParam(), 3, !user, user);
    ASSERT_TRUE(shadow.Interrupt(0x40));
    EXPECT_EQ(shadow.ssp(), user ? kUserStack : kKernelStack);
    EXPECT_EQ(shadow.core().cet.privilege_ssp[3], user ? kUserStack : 0);
    EXPECT_EQ(shadow.At(kKernelStack) & 1, user ? 0u : 1u);
    ASSERT_TRUE(shadow.test().Run(Iret, shadow.test().op()));
    if (user) EXPECT_EQ(shadow.ssp(), kUserStack);
    EXPECT_EQ(shadow.At(kKernelStack), kKernelStack);
  }
}

TEST(ShadowStackTable, IsUsedByGatesThatNameAStack) {
  for (const unsigned cpl : {0u, 3u}) {
    ShadowTest shadow(Mode::kLong, cpl);
    const std::uint64_t before = shadow.ssp();
    ASSERT_TRUE(shadow.Interrupt(0x41));
    EXPECT_EQ(shadow.At(kIstStack), kIstStack | 1);
    EXPECT_EQ(shadow.ssp(), cpl == 0 ? kIstStack - kFrame : kIstStack);
    if (cpl == 0) shadow.ExpectFrame(kIstStack - kFrame, T::kCode64, before);
    ASSERT_TRUE(shadow.test().Run(Iret, shadow.test().op()));
    EXPECT_EQ(shadow.ssp(), before);
    EXPECT_EQ(shadow.At(kIstStack), kIstStack);
    EXPECT_EQ(shadow.At(kKernelStack), kKernelStack);
  }
}

TEST(ShadowStackSyscall, KeepsTheProgramsPointer) {
  for (const bool supervisor : {false, true}) {
    ShadowTest shadow(Mode::kLong, 3, supervisor, true);
    Core& core = shadow.core();
    core.star = std::uint64_t{0x1b} << 48 | std::uint64_t{0x08} << 32;
    core.lstar = kHandler;
    ASSERT_TRUE(shadow.test().Run(Syscall, shadow.test().op()));
    EXPECT_EQ(shadow.ssp(), supervisor ? 0 : kUserStack);
    EXPECT_EQ(core.cet.privilege_ssp[3], kUserStack);
    core.cet.privilege_ssp[3] = kUserStack - 8;
    ASSERT_TRUE(shadow.test().Run(Sysret, shadow.test().op()));
    EXPECT_EQ(shadow.ssp(), kUserStack - 8);
  }
}

// -- tasks. [intel/vol3] "Task-State Segment (TSS)"

// A second task of level `cpl` with a TSS at 7000h, which names a shadow stack.
void MakeTask(ShadowTest& shadow, unsigned cpl, std::uint64_t ssp = kTaskStack) {
  TestCore& test = shadow.test();
  test.SetDescriptor(T::kFree, 0x0000'e900'7000'006b);
  test.SetDescriptor(T::kTssSelector, 0x0000'8b00'3000'0067);
  test.Write<std::uint32_t>(0x7020, 0x6000);  // EIP
  test.Write<std::uint32_t>(0x7024, kFlagFixed);
  test.Write<std::uint32_t>(0x7038, 0x9000);  // ESP
  test.Write<std::uint32_t>(0x7068, static_cast<std::uint32_t>(ssp));
  const std::uint16_t code = cpl == 0 ? T::kCode32 : T::kUserCode32;
  const std::uint16_t data = cpl == 0 ? T::kData : T::kUserData;
  const std::array<std::uint16_t, 6> selectors = {data, code, data, data, 0, 0};
  for (unsigned i = 0; i < 6; ++i) test.Write(0x7048 + 4 * i, selectors[i]);
}

Op TaskOp(const TestCore& test, unsigned rpl) {
  Op op = test.op();
  op.immediate = std::uint64_t{T::kFree | rpl} << 32;
  return op;
}

TEST(ShadowStackTask, ACallOfTheKernelPushesAFrameAndIretPopsIt) {
  ShadowTest shadow(Mode::kProtected, 0);
  MakeTask(shadow, 0);
  const std::uint64_t before = shadow.ssp();
  ASSERT_TRUE(shadow.test().Run(FarCall, TaskOp(shadow.test(), 0)));
  EXPECT_EQ(shadow.At(kTaskStack), kTaskStack | 1);
  EXPECT_EQ(shadow.ssp(), kTaskStack - kFrame);
  shadow.ExpectFrame(kTaskStack - kFrame, T::kCode32, before);
  ASSERT_TRUE(shadow.test().Run(Iret, shadow.test().op()));
  EXPECT_EQ(shadow.ssp(), before);
  EXPECT_EQ(shadow.At(kTaskStack), kTaskStack);
}

TEST(ShadowStackTask, ACallFromAProgramToTheKernelKeepsThePointerElsewhere) {
  ShadowTest shadow(Mode::kProtected, 3);
  MakeTask(shadow, 0);
  ASSERT_TRUE(shadow.test().Run(FarCall, TaskOp(shadow.test(), 3)));
  EXPECT_EQ(shadow.ssp(), kTaskStack);
  EXPECT_EQ(shadow.At(kTaskStack), kTaskStack | 1);
  EXPECT_EQ(shadow.core().cet.privilege_ssp[3], kUserStack);
  ASSERT_TRUE(shadow.test().Run(Iret, shadow.test().op()));
  EXPECT_EQ(shadow.core().cpl, 3);
  EXPECT_EQ(shadow.ssp(), kUserStack);
  EXPECT_EQ(shadow.At(kTaskStack), kTaskStack);
}

TEST(ShadowStackTask, AJumpTakesATokenAndFreesNone) {
  ShadowTest shadow(Mode::kProtected, 0);
  MakeTask(shadow, 0);
  shadow.core().cet.ssp = kKernelStack;
  shadow.test().Write(kKernelStack, kKernelStack | 1);
  ASSERT_TRUE(shadow.test().Run(FarJump, TaskOp(shadow.test(), 0)));
  EXPECT_EQ(shadow.ssp(), kTaskStack);
  EXPECT_EQ(shadow.At(kTaskStack), kTaskStack | 1);
  EXPECT_EQ(shadow.At(kKernelStack), kKernelStack | 1);
}

TEST(ShadowStackTask, ATokenThatCannotBeTakenIsABadTss) {
  struct Row {
    std::uint64_t ssp, token;
  };
  for (const Row& row : {Row{kTaskStack, kTaskStack | 1}, Row{kTaskStack - 4, kTaskStack - 4}}) {
    ShadowTest shadow(Mode::kProtected, 0);
    MakeTask(shadow, 0, row.ssp);
    shadow.test().Write(row.ssp, row.token);
    EXPECT_FALSE(shadow.test().Run(FarCall, TaskOp(shadow.test(), 0)));
    EXPECT_EQ(shadow.core().exception.vector, kTs);
    EXPECT_EQ(shadow.core().exception.error_code, T::kFree);
  }
  ShadowTest shadow(Mode::kProtected, 0);
  MakeTask(shadow, 0);
  shadow.test().SetDescriptor(T::kFree, 0x0000'e900'7000'006a);  // the pointer is outside
  EXPECT_FALSE(shadow.test().Run(FarCall, TaskOp(shadow.test(), 0)));
  EXPECT_EQ(shadow.core().exception.vector, kTs);
}

TEST(ShadowStackTask, IretComparesWhereItGoes) {
  ShadowTest shadow(Mode::kProtected, 0);
  MakeTask(shadow, 0);
  ASSERT_TRUE(shadow.test().Run(FarCall, TaskOp(shadow.test(), 0)));
  shadow.test().Write(kTaskStack - 16, shadow.At(kTaskStack - 16) + 1);
  EXPECT_FALSE(shadow.test().Run(Iret, shadow.test().op()));
  EXPECT_EQ(shadow.core().exception.vector, kCp);
  EXPECT_EQ(shadow.core().segments[kTr].selector, T::kFree);
}

// -- near calls of 16-bit and 32-bit code

struct NearCase {
  const char* name;
  bool big;  // the code segment's D
  std::vector<std::uint8_t> code;
  std::uint32_t kept;  // on the shadow stack
};
class NearCall : public testing::TestWithParam<std::tuple<NearCase, bool>> {};

// A CALL over a HLT to a RET.
TEST_P(NearCall, KeepsFourBytesWhateverTheOperandSize) {
  const auto& [row, long_mode] = GetParam();
  constexpr std::uint64_t kShadow = 0x9000, kTop = 0x9804;
  TestProcessor test(std::get<CpuModel>(MakeModel({})));
  test.Spte(kShadow) = (test.Spte(kShadow) & ~std::uint64_t{6}) | 0x60;
  CpuState state = TestProcessor::LongModeState();
  if (!long_mode) state.efer = 0;
  state.cr4 |= kCr4Cet;
  state.cet.supervisor = kCetShadowStack;
  state.cet.ssp = kTop;
  state.segments[kCs].attributes = row.big ? 0xc09b : 0x809b;
  test.processor().SetState(state);
  EXPECT_EQ(test.RunCode(row.code).reason, ExitReason::kHalt);
  EXPECT_EQ(test.processor().GetState().cet.ssp, kTop);
  EXPECT_EQ(test.Read<std::uint32_t>(kTop - 4), row.kept);
  EXPECT_EQ(test.Read<std::uint32_t>(kTop - 8), 0u);
}
INSTANTIATE_TEST_SUITE_P(
    Sizes, NearCall,
    testing::Combine(
        testing::Values(
            NearCase{"Code32", true, {0xe8, 1, 0, 0, 0, 0xf4, 0xc3}, 0x1005},
            NearCase{"Code32Operand16", true, {0x66, 0xe8, 1, 0, 0xf4, 0x66, 0xc3}, 0x1004},
            NearCase{"Code16", false, {0xe8, 1, 0, 0xf4, 0xc3}, 0x1003},
            NearCase{"Code16Operand32", false, {0x66, 0xe8, 1, 0, 0, 0, 0xf4, 0x66, 0xc3}, 0x1006},
            NearCase{"OfTheNextInstruction", true, {0xe8, 0, 0, 0, 0, 0x58, 0xf4}, 0}),
        testing::Bool()),
    [](const auto& info) {
      return std::string(std::get<0>(info.param).name) + (std::get<1>(info.param) ? "Long" : "");
    });

}  // namespace
}  // namespace pagesaw::cpu
