#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.cpu.core;
import pagesaw.cpu.exceptions;
import pagesaw.cpu.test_core;

namespace pagesaw::cpu {
namespace {

using Mode = TestCore::Mode;
constexpr std::uint64_t kHandler = 0x6000;
constexpr unsigned kInterruptGate = 14;
constexpr unsigned kTrapGate = 15;

Pending Interrupt(std::uint8_t vector) {
  return {.vector = vector, .event_class = EventClass::kInterrupt};
}
Pending Fault(std::uint8_t vector, std::uint32_t error) {
  return {.vector = vector, .has_error_code = true, .error_code = error};
}

TEST(DeliverLong, PushesAFrameOnTheAlignedStack) {
  TestCore test;
  Core& core = test.core();
  test.SetGate(0x40, TestCore::kCode64, kHandler, kInterruptGate, 0);
  core.gpr[kRsp] = TestCore::kStackTop - 5;
  core.SetRflags(kFlagIf | kFlagTf | kFlagNt | kFlagZf);
  ASSERT_EQ(Deliver(core, Interrupt(0x40)), Delivery::kDone);
  EXPECT_EQ(core.rip, kHandler);
  EXPECT_EQ(core.gpr[kRsp], TestCore::kStackTop - 16 - 40);
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp]), TestCore::kRip);
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp] + 8), TestCore::kCode64);
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp] + 16),
            kFlagIf | kFlagTf | kFlagNt | kFlagZf | kFlagFixed);
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp] + 24), TestCore::kStackTop - 5);
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp] + 32), TestCore::kData);
  EXPECT_EQ(core.Rflags() & (kFlagIf | kFlagTf | kFlagNt | kFlagZf), kFlagZf);
}

TEST(DeliverLong, TrapGateKeepsInterruptsOn) {
  TestCore test;
  test.SetGate(0x40, TestCore::kCode64, kHandler, kTrapGate, 0);
  test.core().SetRflags(kFlagIf);
  ASSERT_EQ(Deliver(test.core(), Interrupt(0x40)), Delivery::kDone);
  EXPECT_NE(test.core().rflags & kFlagIf, 0u);
}

TEST(DeliverLong, FromUserModeTakesTheInnerStackAndANullSs) {
  TestCore test;
  Core& core = test.core();
  test.SetCpl(3);
  test.SetGate(kPfVector, TestCore::kCode64, kHandler, kInterruptGate, 0);
  Pending fault = Fault(kPfVector, 7);
  fault.cr2 = 0x1234'5678;
  ASSERT_EQ(Deliver(core, fault), Delivery::kDone);
  EXPECT_EQ(core.cpl, 0);
  EXPECT_EQ(core.segments[kSs].selector, 0);
  EXPECT_EQ(core.gpr[kRsp], TestCore::kInnerStackTop - 48);
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp]), 7u);
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp] + 40), TestCore::kUserData);
  EXPECT_NE(test.Read<std::uint64_t>(core.gpr[kRsp] + 24) & kFlagRf, 0u);
  EXPECT_EQ(core.cr2, 0x1234'5678u);
}

TEST(DeliverLong, InterruptStackTableIsUsedAtAnyLevel) {
  TestCore test;
  test.SetGate(0x40, TestCore::kCode64, kHandler, kInterruptGate, 0, 1);
  ASSERT_EQ(Deliver(test.core(), Interrupt(0x40)), Delivery::kDone);
  EXPECT_EQ(test.core().gpr[kRsp], TestCore::kIst1 - 40);
  EXPECT_EQ(test.core().segments[kSs].selector, TestCore::kData);
}

TEST(DeliverLong, MissingGateIsGeneralProtectionWithExt) {
  TestCore test;
  test.SetGate(kGp, TestCore::kCode64, kHandler, kInterruptGate, 0);
  ASSERT_EQ(Deliver(test.core(), Interrupt(0x41)), Delivery::kDone);
  EXPECT_EQ(test.core().rip, kHandler);
  EXPECT_EQ(test.Read<std::uint64_t>(test.core().gpr[kRsp]), 0x41u * 8 + 3);
}

TEST(DeliverLong, ContributoryFaultsMakeADoubleFault) {
  TestCore test;
  test.SetGate(kDf, TestCore::kCode64, kHandler, kInterruptGate, 0);
  ASSERT_EQ(Deliver(test.core(), Fault(kGp, 0)), Delivery::kDone);  // no gate: #GP again
  EXPECT_EQ(test.core().rip, kHandler);
  EXPECT_EQ(test.Read<std::uint64_t>(test.core().gpr[kRsp]), 0u);
}

TEST(DeliverLong, BenignFaultsAreDeliveredOneAfterTheOther) {
  TestCore test;
  test.SetGate(kGp, TestCore::kCode64, kHandler, kInterruptGate, 0);
  ASSERT_EQ(Deliver(test.core(), Pending{.vector = kUd}), Delivery::kDone);
  EXPECT_EQ(test.Read<std::uint64_t>(test.core().gpr[kRsp]), kUd * 8u + 3);
}

// Whoever injects writes them where they belong.
TEST(DeliverLong, InjectedExceptionsLeaveCr2AndTheDebugRegistersAlone) {
  TestCore test;
  Core& core = test.core();
  test.SetGate(kPfVector, TestCore::kCode64, kHandler, kInterruptGate, 0);
  test.SetGate(kDb, TestCore::kCode64, kHandler, kInterruptGate, 0);
  core.cr2 = 0x1234;
  core.dr6 = 0xffff'0ff1;
  Pending injected = Fault(kPfVector, 2);
  injected.injected = true;
  ASSERT_EQ(Deliver(core, injected), Delivery::kDone);
  EXPECT_EQ(core.cr2, 0x1234u);
  injected = {.vector = kDb, .injected = true};
  ASSERT_EQ(Deliver(core, injected), Delivery::kDone);
  EXPECT_EQ(core.dr6, 0xffff'0ff1u);
}

TEST(DeliverLong, FaultOfTheDoubleFaultShutsDown) {
  TestCore test;
  EXPECT_EQ(Deliver(test.core(), Fault(kGp, 0)), Delivery::kShutdown);
  EXPECT_EQ(test.core().activity, Activity::kShutdown);
  EXPECT_EQ(test.core().stop, Stop::kExit);
  EXPECT_EQ(test.core().exit.reason, ExitReason::kShutdown);
}

// Where the tables stand for linear addresses, page faults of a delivery are found outside.
TEST(DeliverLong, PageFaultFoundOutsideIsOneOfTheDelivery) {
  TestCore test;
  test.SetGate(kDf, TestCore::kCode64, kHandler, kInterruptGate, 0);
  const Pending fault = {.vector = kPfVector, .has_error_code = true, .error_code = 2, .cr2 = 0x77};
  const std::optional<Pending> next = DuringDelivery(test.core(), fault, fault);
  ASSERT_TRUE(next);
  ASSERT_EQ(Deliver(test.core(), *next), Delivery::kDone);
  EXPECT_EQ(test.core().rip, kHandler) << "#DF";
  EXPECT_EQ(test.Read<std::uint64_t>(test.core().gpr[kRsp]), 0u);
  EXPECT_EQ(test.core().cr2, 0x77u);
}

TEST(DeliverLong, TableFaultLeavesTheEventDeliverable) {
  TestCore test;
  Core& core = test.core();
  test.SetCpl(3);
  test.SetGate(0x40, TestCore::kCode64, kHandler, kInterruptGate, 0);
  test.Unmap(TestCore::kInnerStackTop - 8);
  const std::uint64_t rsp = core.gpr[kRsp];
  ASSERT_EQ(Deliver(core, Interrupt(0x40)), Delivery::kLeave);
  EXPECT_EQ(core.exit.reason, ExitReason::kTableFault);
  EXPECT_EQ(core.rip, TestCore::kRip);
  EXPECT_EQ(core.cpl, 3);
  EXPECT_EQ(core.gpr[kRsp], rsp);
  test.Map(TestCore::kInnerStackTop - 8);
  EXPECT_EQ(Deliver(core, Interrupt(0x40)), Delivery::kDone);
  EXPECT_EQ(core.cpl, 0);
}

TEST(DeliverLong, NmiBlocksNmisUntilIret) {
  TestCore test;
  Core& core = test.core();
  test.SetGate(kNmiVector, TestCore::kCode64, kHandler, kInterruptGate, 0);
  core.interrupt_shadow = true;
  ASSERT_EQ(Deliver(core, Interrupt(kNmiVector)), Delivery::kDone);
  EXPECT_TRUE(core.nmi_blocked);
  EXPECT_FALSE(core.interrupt_shadow);
  ASSERT_TRUE(test.Run(Iret, test.op()));
  EXPECT_FALSE(core.nmi_blocked);
  EXPECT_EQ(core.rip, TestCore::kRip);
  EXPECT_EQ(core.gpr[kRsp], TestCore::kStackTop);
}

TEST(DeliverProtected, InnerStackHoldsOldStackFlagsAndErrorCode) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  test.SetCpl(3);
  test.SetGate(kGp, TestCore::kCode32, kHandler, kInterruptGate, 0);
  ASSERT_EQ(Deliver(core, Fault(kGp, 0x18)), Delivery::kDone);
  EXPECT_EQ(core.cpl, 0);
  EXPECT_EQ(core.segments[kSs].selector, TestCore::kData);
  EXPECT_EQ(core.gpr[kRsp], TestCore::kInnerStackTop - 24);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp]), 0x18u);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp] + 4), TestCore::kRip);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp] + 8), TestCore::kUserCode32);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp] + 16), TestCore::kStackTop);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp] + 20), TestCore::kUserData);
  core.gpr[kRsp] += 4;
  ASSERT_TRUE(test.Run(Iret, test.op()));
  EXPECT_EQ(core.cpl, 3);
  EXPECT_EQ(core.gpr[kRsp], TestCore::kStackTop);
  EXPECT_EQ(core.segments[kDs].selector, TestCore::kUserData);
}

TEST(DeliverProtected, BadInnerStackIsInvalidTss) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  test.SetCpl(3);
  test.Write<std::uint16_t>(TestCore::kTss + 8, TestCore::kReadOnly);
  test.SetGate(0x40, TestCore::kCode32, kHandler, kInterruptGate, 0);
  test.SetGate(kTs, TestCore::kConforming, kHandler, kInterruptGate, 0);
  ASSERT_EQ(Deliver(core, Interrupt(0x40)), Delivery::kDone);
  EXPECT_EQ(core.cpl, 3);  // the handler is conforming
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp]), TestCore::kReadOnly | 1u);
}

TEST(DeliverReal, PushesThreeWords) {
  TestCore test(Mode::kReal);
  Core& core = test.core();
  test.Write<std::uint32_t>(0x40 * 4, 0x0500'0123);
  core.segments[kCs].selector = 0x77;
  ASSERT_EQ(Deliver(core, Fault(0x40, 9)), Delivery::kDone);
  EXPECT_EQ(core.rip, 0x123u);
  EXPECT_EQ(core.segments[kCs].base, 0x5000u);
  EXPECT_EQ(core.gpr[kRsp], TestCore::kStackTop - 6);
  EXPECT_EQ(test.Read<std::uint16_t>(core.gpr[kRsp]), TestCore::kRip);
  EXPECT_EQ(test.Read<std::uint16_t>(core.gpr[kRsp] + 2), 0x77);
  ASSERT_TRUE(test.Run(Iret, test.op()));
  EXPECT_EQ(core.rip, TestCore::kRip);
  EXPECT_EQ(core.segments[kCs].base, 0x770u);
}

TEST(SoftwareInterrupt, ReturnsBehindTheInstruction) {
  TestCore test;
  test.SetGate(3, TestCore::kCode64, kHandler, kTrapGate, 0);
  ASSERT_TRUE(test.Run(Int3, test.op()));
  EXPECT_EQ(test.Read<std::uint64_t>(test.core().gpr[kRsp]), TestCore::kRip + TestCore::kLength);
}

TEST(SoftwareInterrupt, GateLevelRestrainsProgramsButNotIcebp) {
  TestCore test;
  Core& core = test.core();
  test.SetCpl(3);
  test.SetGate(1, TestCore::kCode64, kHandler, kTrapGate, 0);
  test.SetGate(0x80, TestCore::kCode64, kHandler, kTrapGate, 0);
  test.SetGate(kGp, TestCore::kCode64, kHandler + 8, kTrapGate, 0);
  Op op = test.op();
  op.immediate = 0x80;
  ASSERT_TRUE(test.Run(Int, op));
  EXPECT_EQ(core.rip, kHandler + 8);
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp]), 0x80u * 8 + 2);  // EXT is clear
  EXPECT_EQ(test.Read<std::uint64_t>(core.gpr[kRsp] + 8), TestCore::kRip);
  test.SetCpl(3);
  core.rip = TestCore::kRip;
  ASSERT_TRUE(test.Run(Int1, op));
  EXPECT_EQ(core.rip, kHandler);
}

struct IretCase {
  const char* name;
  std::uint16_t cs;
  std::uint16_t ss;
  std::uint64_t rip;
  int want_vector;  // -1: succeeds
  std::uint32_t want_error;
};
class IretLong : public testing::TestWithParam<IretCase> {};

TEST_P(IretLong, ChecksWhatItReturnsTo) {
  TestCore test;
  Core& core = test.core();
  core.gpr[kRsp] -= 40;
  test.Write(core.gpr[kRsp], GetParam().rip);
  test.Write<std::uint64_t>(core.gpr[kRsp] + 8, GetParam().cs);
  test.Write<std::uint64_t>(core.gpr[kRsp] + 16, kFlagIf | kFlagVm | kFlagIopl);
  test.Write<std::uint64_t>(core.gpr[kRsp] + 24, 0x7000);
  test.Write<std::uint64_t>(core.gpr[kRsp] + 32, GetParam().ss);
  const bool done = test.Run(Iret, test.op());
  EXPECT_EQ(done, GetParam().want_vector < 0);
  EXPECT_EQ(done ? -1 : core.exception.vector, GetParam().want_vector);
  EXPECT_EQ(done ? 0 : core.exception.error_code, GetParam().want_error);
  EXPECT_EQ(core.rip, done ? GetParam().rip : TestCore::kRip);
  EXPECT_EQ(core.cpl, done ? GetParam().cs & 3 : 0);
  EXPECT_EQ(core.rflags & kFlagVm, 0u);
}

using T = TestCore;
INSTANTIATE_TEST_SUITE_P(
    Targets, IretLong,
    testing::Values(
        IretCase{"User", T::kUserCode64, T::kUserData, 0x5000, -1, 0},
        IretCase{"UserCompatibility", T::kUserCode32, T::kUserData, 0x5000, -1, 0},
        IretCase{"Kernel", T::kCode64, T::kData, 0x5000, -1, 0},
        IretCase{"KernelWithNullSs", T::kCode64, 0, 0x5000, -1, 0},
        IretCase{"UserWithNullSs", T::kUserCode64, 3, 0x5000, kGp, 0},
        IretCase{"NullCs", 0, T::kData, 0x5000, kGp, 0},
        IretCase{"DataAsCode", T::kData, T::kData, 0x5000, kGp, T::kData},
        IretCase{"BeyondTheTable", 0x108, T::kData, 0x5000, kGp, 0x108},
        IretCase{"LevelsDiffer", T::kCode64 | 3, T::kUserData, 0x5000, kGp, T::kCode64},
        IretCase{"AbsentCode", T::kAbsentCode, T::kData, 0x5000, kNp, T::kAbsentCode},
        IretCase{"AbsentStack", T::kCode64, T::kAbsentData, 0x5000, kSsVector, T::kAbsentData},
        IretCase{"ReadOnlyStack", T::kCode64, T::kReadOnly, 0x5000, kGp, T::kReadOnly},
        IretCase{"NonCanonical", T::kUserCode64, T::kUserData, 0x8000'0000'0000, kGp, 0}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(IretLongFlags, UserModeCannotChangeItsPrivileges) {
  TestCore test;
  Core& core = test.core();
  test.SetCpl(3);
  core.SetRflags(kFlagIf);
  core.gpr[kRsp] -= 40;
  test.Write<std::uint64_t>(core.gpr[kRsp], 0x5000);
  test.Write<std::uint64_t>(core.gpr[kRsp] + 8, TestCore::kUserCode64);
  test.Write<std::uint64_t>(core.gpr[kRsp] + 16, kFlagIopl | kFlagAc | kFlagCf);
  test.Write<std::uint64_t>(core.gpr[kRsp] + 24, 0x7000);
  test.Write<std::uint64_t>(core.gpr[kRsp] + 32, TestCore::kUserData);
  ASSERT_TRUE(test.Run(Iret, test.op()));
  EXPECT_EQ(core.Rflags(), kFlagFixed | kFlagIf | kFlagAc | kFlagCf);
}

TEST(Iret, NestedTaskInLongModeIsRefused) {
  TestCore test;
  test.core().rflags |= kFlagNt;
  EXPECT_FALSE(test.Run(Iret, test.op()));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(Iret, EntersVirtual8086ModeAndAnInterruptLeavesIt) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  const std::array<std::uint32_t, 9> image = {
      0x100, 0x200, kFlagVm | kFlagIf, 0xfff0, 0x300, 0x400, 0x500, 0x600, 0x700};
  core.gpr[kRsp] -= sizeof(image);
  test.Write(core.gpr[kRsp], image);
  ASSERT_TRUE(test.Run(Iret, test.op()));
  EXPECT_TRUE(core.virtual_8086());
  EXPECT_EQ(core.cpl, 3);
  EXPECT_EQ(core.segments[kCs].base, 0x2000u);
  EXPECT_EQ(core.segments[kGs].selector, 0x700);
  EXPECT_EQ(core.code_size, CodeSize::k16);
  test.SetGate(0x20, TestCore::kCode32, kHandler, kInterruptGate, 0);
  ASSERT_EQ(Deliver(core, Interrupt(0x20)), Delivery::kDone);
  EXPECT_FALSE(core.virtual_8086());
  EXPECT_EQ(core.cpl, 0);
  EXPECT_EQ(core.segments[kDs].selector, 0);
  EXPECT_EQ(core.gpr[kRsp], TestCore::kInnerStackTop - 36);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp]), 0x100u);
  EXPECT_EQ(test.Read<std::uint32_t>(core.gpr[kRsp] + 32), 0x700u);
}

}  // namespace
}  // namespace pagesaw::cpu
