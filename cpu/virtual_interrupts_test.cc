// CR4.VME and CR4.PVI: what programs below IOPL do with their interrupt flag.
// [intel/vol3] "Virtual-8086 Mode", "Protected-Mode Virtual Interrupts"
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

import pagesaw.core.cpu_state;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.core;
import pagesaw.cpu.exceptions;
import pagesaw.cpu.flags_register;
import pagesaw.cpu.test_core;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kStackBase = 0x9000;
constexpr std::uint32_t kIoBitmap = 0x88;  // in the TSS; the redirection bitmap ends there

// A task in virtual-8086 mode: code at 400h:0, stack at 900h:100h.
class Virtual8086 : public testing::Test {
 protected:
  Virtual8086() : test_(TestCore::Mode::kProtected) {
    Core& core = test_.core();
    core.cr4 |= kCr4Vme;
    core.rflags |= kFlagVm | kFlagIf;
    for (unsigned i = kEs; i <= kGs; ++i) {
      const std::uint16_t selector = i == kCs ? 0x400 : i == kSs ? 0x900 : 0x500;
      core.segments[i] = {.selector = selector,
                          .attributes = 0xf3,
                          .limit = 0xffff,
                          .base = std::uint64_t{selector} << 4};
    }
    core.gpr[kRsp] = 0x100;
    core.rip = 0;
    core.segments[kTr].limit = kIoBitmap + 8;
    test_.Write<std::uint16_t>(TestCore::kTss + 0x66, kIoBitmap);
    core.UpdateMode();
  }

  void SetIopl(unsigned iopl) {
    Core& core = test_.core();
    core.rflags = (core.rflags & ~kFlagIopl) | std::uint64_t{iopl} << 12;
  }
  Op op(unsigned bytes = 2) const {
    Op op = test_.op();
    op.operand_bytes = static_cast<std::uint8_t>(bytes);
    return op;
  }
  std::uint16_t Stack(unsigned offset) { return test_.Read<std::uint16_t>(kStackBase + offset); }
  bool Virtual() { return (test_.core().rflags & kFlagVif) != 0; }
  bool Real() { return (test_.core().rflags & kFlagIf) != 0; }
  bool Interrupt(std::uint8_t vector) {
    Op interrupt = op();
    interrupt.immediate = vector;
    return test_.Run(Int, interrupt);
  }

  TestCore test_;
};

TEST_F(Virtual8086, CliAndStiChangeTheVirtualFlag) {
  ASSERT_TRUE(test_.Run(Sti, op()));
  EXPECT_TRUE(Virtual());
  ASSERT_TRUE(test_.Run(Cli, op()));
  EXPECT_FALSE(Virtual());
  EXPECT_TRUE(Real());
}

TEST_F(Virtual8086, StiTellsTheMonitorOfAWaitingInterrupt) {
  test_.core().rflags |= kFlagVip;
  EXPECT_FALSE(test_.Run(Sti, op()));
  EXPECT_EQ(test_.core().exception.vector, kGp);
  EXPECT_FALSE(Virtual());
}

TEST_F(Virtual8086, AtIopl3TheRealFlagIsTheirs) {
  SetIopl(3);
  ASSERT_TRUE(test_.Run(Cli, op()));
  EXPECT_FALSE(Real());
  EXPECT_FALSE(Virtual());
}

TEST_F(Virtual8086, WithoutTheExtensionTheMonitorIsCalled) {
  test_.core().cr4 = 0;
  for (const auto instruction : {Cli, Sti, Pushf, Popf, Iret}) {
    EXPECT_FALSE(test_.Run(instruction, op()));
    EXPECT_EQ(test_.core().exception.vector, kGp);
  }
  EXPECT_FALSE(Interrupt(0x21));
}

TEST_F(Virtual8086, PushfShowsTheVirtualFlagAndIopl3) {
  ASSERT_TRUE(test_.Run(Pushf, op()));
  EXPECT_EQ(Stack(0xfe), kFlagFixed | kFlagIopl);
  test_.core().rflags |= kFlagVif;
  ASSERT_TRUE(test_.Run(Pushf, op()));
  EXPECT_EQ(Stack(0xfc), kFlagFixed | kFlagIopl | kFlagIf);
}

TEST_F(Virtual8086, WideFlagsAreTheMonitors) {
  for (const auto instruction : {Pushf, Popf, Iret}) {
    EXPECT_FALSE(test_.Run(instruction, op(4)));
    EXPECT_EQ(test_.core().exception.vector, kGp);
  }
}

struct PopfCase {
  const char* name;
  std::uint16_t value;
  bool pending;  // VIP
  bool want;
  bool want_virtual;
};
class Virtual8086Flags : public Virtual8086, public testing::WithParamInterface<PopfCase> {};
TEST_P(Virtual8086Flags, ArePoppedIntoTheVirtualFlag) {
  Core& core = test_.core();
  if (GetParam().pending) core.rflags |= kFlagVip;
  test_.Write<std::uint16_t>(kStackBase + 0x100, GetParam().value);
  EXPECT_EQ(test_.Run(Popf, op()), GetParam().want);
  EXPECT_EQ(Virtual(), GetParam().want_virtual);
  EXPECT_TRUE(Real());
  EXPECT_EQ(core.rflags & kFlagIopl, 0u);
  EXPECT_EQ(core.gpr[kRsp], GetParam().want ? 0x102u : 0x100u);
}
INSTANTIATE_TEST_SUITE_P(Images, Virtual8086Flags,
                         testing::Values(PopfCase{"On", kFlagIf | kFlagIopl, false, true, true},
                                         PopfCase{"Off", kFlagCf, false, true, false},
                                         PopfCase{"OnWhilePending", kFlagIf, true, false, false},
                                         PopfCase{"OffWhilePending", 0, true, true, false},
                                         PopfCase{"Trap", kFlagTf, false, false, false}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_F(Virtual8086, IretTakesTheVirtualFlag) {
  test_.Write<std::uint16_t>(kStackBase + 0x100, 0x34);
  test_.Write<std::uint16_t>(kStackBase + 0x102, 0x500);
  test_.Write<std::uint16_t>(kStackBase + 0x104, kFlagIf | kFlagZf);
  ASSERT_TRUE(test_.Run(Iret, op()));
  const Core& core = test_.core();
  EXPECT_TRUE(Virtual());
  EXPECT_EQ(core.rip, 0x34u);
  EXPECT_EQ(core.segments[kCs].base, 0x5000u);
  EXPECT_EQ(core.gpr[kRsp], 0x106u);
  EXPECT_TRUE(core.flags.zero());
}

TEST_F(Virtual8086, RedirectedInterruptsGoByTheVectorTable) {
  test_.Write<std::uint32_t>(0x21 * 4, 0x0600'0010);
  test_.core().rflags |= kFlagVif;
  ASSERT_TRUE(Interrupt(0x21));
  const Core& core = test_.core();
  EXPECT_TRUE(core.virtual_8086());
  EXPECT_EQ(core.segments[kCs].base, 0x6000u);
  EXPECT_EQ(core.rip, 0x10u);
  EXPECT_EQ(core.gpr[kRsp], 0xfau);
  EXPECT_EQ(Stack(0xfa), TestCore::kLength);
  EXPECT_EQ(Stack(0xfc), 0x400);
  EXPECT_EQ(Stack(0xfe), kFlagFixed | kFlagIf | kFlagIopl);
  EXPECT_FALSE(Virtual());
  EXPECT_TRUE(Real());
}

TEST_F(Virtual8086, RedirectedInterruptsAtIopl3ClearTheRealFlag) {
  SetIopl(3);
  ASSERT_TRUE(Interrupt(0x21));
  EXPECT_TRUE(test_.core().virtual_8086());
  EXPECT_FALSE(Real());
}

TEST_F(Virtual8086, TheBitmapGivesInterruptsToTheMonitor) {
  test_.Write<std::uint8_t>(TestCore::kTss + kIoBitmap - 32 + 0x21 / 8, 1u << (0x21 % 8));
  EXPECT_FALSE(Interrupt(0x21));
  EXPECT_EQ(test_.core().exception.vector, kGp);
  EXPECT_EQ(test_.core().exception.error_code, 0u);
  SetIopl(3);
  test_.SetGate(0x21, TestCore::kCode32, 0x6000, 14, 3);
  ASSERT_TRUE(Interrupt(0x21));
  EXPECT_FALSE(test_.core().virtual_8086());
}

TEST_F(Virtual8086, ABitmapBeyondTheTaskStateIsRefused) {
  test_.core().segments[kTr].limit = 0x67;
  EXPECT_FALSE(Interrupt(0x21));
  EXPECT_EQ(test_.core().exception.vector, kGp);
}

class ProtectedModeVirtual : public testing::TestWithParam<TestCore::Mode> {};
TEST_P(ProtectedModeVirtual, InterruptsChangeForLevel3) {
  TestCore test(GetParam());
  test.SetCpl(3);
  Core& core = test.core();
  EXPECT_FALSE(test.Run(Cli, test.op()));
  EXPECT_EQ(core.exception.vector, kGp);
  core.cr4 |= kCr4Pvi;
  core.rflags |= kFlagIf;
  ASSERT_TRUE(test.Run(Sti, test.op()));
  EXPECT_NE(core.rflags & kFlagVif, 0u);
  ASSERT_TRUE(test.Run(Cli, test.op()));
  EXPECT_EQ(core.rflags & (kFlagVif | kFlagIf), kFlagIf);
  core.rflags |= kFlagVip;
  EXPECT_FALSE(test.Run(Sti, test.op()));
}
INSTANTIATE_TEST_SUITE_P(Modes, ProtectedModeVirtual,
                         testing::Values(TestCore::Mode::kProtected, TestCore::Mode::kLong),
                         [](const auto& info) { return "Mode" + std::to_string(info.index); });

TEST(IretVirtualFlags, AreTheKernelsToLoad) {
  for (const unsigned cpl : {0u, 3u}) {
    TestCore test;
    test.SetCpl(cpl);
    Core& core = test.core();
    const std::uint64_t image[5] = {0x5000, core.segments[kCs].selector,
                                    kFlagFixed | kFlagVif | kFlagVip, TestCore::kStackTop,
                                    core.segments[kSs].selector};
    core.gpr[kRsp] -= sizeof(image);
    for (unsigned i = 0; i < 5; ++i) test.Write(core.gpr[kRsp] + 8 * i, image[i]);
    ASSERT_TRUE(test.Run(Iret, test.op()));
    EXPECT_EQ(core.rflags & (kFlagVif | kFlagVip), cpl == 0 ? kFlagVif | kFlagVip : 0u);
  }
}

}  // namespace
}  // namespace pagesaw::cpu
