#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.core;
import pagesaw.cpu.model;
import pagesaw.cpu.test_core;
import pagesaw.cpu.control_registers;

namespace pagesaw::cpu {
namespace {

using Mode = TestCore::Mode;

Op ControlOp(const TestCore& test, unsigned number) {
  Op op = test.op();
  op.first = static_cast<RegisterOffset>(number);
  op.second = kRax * 8;
  return op;
}

bool Set(TestCore& test, unsigned number, std::uint64_t value) {
  test.core().gpr[kRax] = value;
  return test.Run(MovToControl, ControlOp(test, number));
}

struct WriteCase {
  const char* name;
  Mode mode;
  unsigned number;
  std::uint64_t set;    // bits to set in the current value
  std::uint64_t clear;  // and to clear
  bool want;
  Feature absent = Feature::kVme;  // and a feature to take away
};
class ControlWrite : public testing::TestWithParam<WriteCase> {};
TEST_P(ControlWrite, IsLegalOrGeneralProtection) {
  TestCore test(GetParam().mode);
  test.model().Set(GetParam().absent, false);
  Core& core = test.core();
  std::uint64_t& reg = GetParam().number == 0   ? core.cr0
                       : GetParam().number == 3 ? core.cr3
                                                : core.cr4;
  const std::uint64_t before = reg;
  const std::uint64_t value = (before | GetParam().set) & ~GetParam().clear;
  const bool done = Set(test, GetParam().number, value);
  EXPECT_EQ(done, GetParam().want);
  if (!done) {
    EXPECT_EQ(core.exception.vector, kGp);
    EXPECT_EQ(reg, before);
  }
}

constexpr std::uint64_t kLamBits = kCr3LamU48 | kCr3LamU57;
INSTANTIATE_TEST_SUITE_P(
    Rules, ControlWrite,
    testing::Values(
        WriteCase{"PagingWithoutProtection", Mode::kReal, 0, kCr0Pg, 0, false},
        WriteCase{"Protection", Mode::kReal, 0, kCr0Pe, 0, true},
        WriteCase{"NotWriteThroughAlone", Mode::kReal, 0, kCr0Nw, 0, false},
        WriteCase{"NotWriteThroughAndCacheOff", Mode::kReal, 0, kCr0Nw | kCr0Cd, 0, true},
        WriteCase{"UpperHalf", Mode::kLong, 0, std::uint64_t{1} << 32, 0, false},
        WriteCase{"PagingOffIn64BitCode", Mode::kLong, 0, 0, kCr0Pg, false},
        WriteCase{"Smep", Mode::kLong, 4, kCr4Smep, 0, true},
        WriteCase{"SmepAbsent", Mode::kLong, 4, kCr4Smep, 0, false, Feature::kSmep},
        WriteCase{"UserKeys", Mode::kLong, 4, kCr4Pke, 0, true},
        WriteCase{"UserKeysAbsent", Mode::kLong, 4, kCr4Pke, 0, false, Feature::kPku},
        WriteCase{"SupervisorKeys", Mode::kLong, 4, kCr4Pks, 0, true},
        WriteCase{"SupervisorKeysAbsent", Mode::kLong, 4, kCr4Pks, 0, false, Feature::kPks},
        WriteCase{"La57", Mode::kProtected, 4, kCr4La57, 0, true},
        WriteCase{"La57Absent", Mode::kProtected, 4, kCr4La57, 0, false, Feature::kLa57},
        WriteCase{"La57InLongModeWithPse", Mode::kLong, 4, kCr4La57 | kCr4Pse, 0, false},
        WriteCase{"LamSup", Mode::kLong, 4, kCr4LamSup, 0, true},
        WriteCase{"LamSupAbsent", Mode::kLong, 4, kCr4LamSup, 0, false, Feature::kLam},
        WriteCase{"PcidAbsent", Mode::kLong, 4, kCr4Pcide, 0, false, Feature::kPcid},
        WriteCase{"LamInRoot", Mode::kLong, 3, kLamBits, 0, true},
        WriteCase{"KeepBitWithoutPcid", Mode::kLong, 3, std::uint64_t{1} << 63, 0, false},
        WriteCase{"La57InLongMode", Mode::kLong, 4, kCr4La57, 0, false},
        WriteCase{"PaeOffInLongMode", Mode::kLong, 4, 0, kCr4Pae, false},
        WriteCase{"Pcid", Mode::kLong, 4, kCr4Pcide, 0, true},
        WriteCase{"PcidOutsideLongMode", Mode::kProtected, 4, kCr4Pcide, 0, false},
        WriteCase{"ReservedBit", Mode::kLong, 4, 1u << 15, 0, false},
        WriteCase{"FxsaveThere", Mode::kLong, 4, kCr4Osfxsr, 0, true},
        WriteCase{"FxsaveAbsent", Mode::kLong, 4, kCr4Osfxsr, 0, false, Feature::kFxsr},
        WriteCase{"RootInReach", Mode::kLong, 3, 0x3fff'ffff'f000, 0, true},
        WriteCase{"RootOutOfReach", Mode::kLong, 3, std::uint64_t{1} << 46, 0, false},
        WriteCase{"LamAbsent", Mode::kLong, 3, kLamBits, 0, false, Feature::kLam}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(ControlRegisters, UserModeMayNotTouchThem) {
  TestCore test;
  test.SetCpl(3);
  EXPECT_FALSE(Set(test, 3, 0));
  EXPECT_EQ(test.core().exception.vector, kGp);
  EXPECT_FALSE(test.Run(Clts, test.op()));
  EXPECT_FALSE(test.Run(Invlpg, test.MemoryOp(0x5000)));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(ControlRegisters, PagingOnWithLmeEntersLongMode) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  core.efer = kEferLme;
  EXPECT_FALSE(Set(test, 0, core.cr0 | kCr0Pg));  // without PAE
  core.cr4 = kCr4Pae;
  EXPECT_TRUE(Set(test, 0, core.cr0 | kCr0Pg));
  EXPECT_TRUE(core.long_mode());
  EXPECT_EQ(core.code_size, CodeSize::k32);
  EXPECT_TRUE(Set(test, 0, core.cr0 & ~kCr0Pg));
  EXPECT_FALSE(core.long_mode());
}

TEST(ControlRegisters, OneStagePagingChangesLeaveBehindTheInstruction) {
  TestCore test;
  Core& core = test.core();
  ASSERT_TRUE(Set(test, 3, 0x1000));
  EXPECT_EQ(core.stop, Stop::kExit);
  EXPECT_EQ(core.exit.reason, ExitReason::kPagingChanged);
  EXPECT_EQ(core.rip, TestCore::kRip + TestCore::kLength);
  ASSERT_TRUE(test.Run(Invlpg, test.MemoryOp(0x5678)));
  EXPECT_EQ(core.exit.reason, ExitReason::kInvalidate);
  EXPECT_EQ(core.exit.invalidation,
            (Invalidation{.scope = Invalidation::Scope::kAddress, .linear = Gva(0x5678)}));
}

// Without a second stage the PDPTEs are asked of the outside, one by one.
TEST(ControlRegisters, OneStagePaePagingAsksForPointers) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  core.cr4 = kCr4Pae;
  core.cr3 = 0x5020;
  for (std::uint64_t i = 0; i < 4; ++i) {
    EXPECT_FALSE(Set(test, 0, core.cr0 | kCr0Pg));
    ASSERT_EQ(core.exit.reason, ExitReason::kBus);
    BusAccess answer = core.exit.bus;
    EXPECT_EQ(answer.kind, BusAccess::Kind::kMmioRead);
    EXPECT_EQ(answer.address, 0x5020 + 8 * i);
    answer.value = 0x6001 + 0x1000 * i;
    ASSERT_TRUE(core.replay.Add(answer));
  }
  ASSERT_TRUE(Set(test, 0, core.cr0 | kCr0Pg));
  EXPECT_EQ(core.exit.reason, ExitReason::kPagingChanged);
  EXPECT_EQ(core.pdptes[3], 0x9001u);
}

TEST(ControlRegisters, OneStageReservedBitOfAPointerIsRefused) {
  TestCore test(Mode::kProtected);
  Core& core = test.core();
  core.cr4 = kCr4Pae;
  EXPECT_FALSE(Set(test, 0, core.cr0 | kCr0Pg));
  BusAccess answer = core.exit.bus;
  answer.value = 3;
  ASSERT_TRUE(core.replay.Add(answer));
  EXPECT_FALSE(Set(test, 0, core.cr0 | kCr0Pg));
  EXPECT_EQ(core.stop, Stop::kException);
  EXPECT_EQ(core.exception.vector, kGp);
  EXPECT_EQ(core.cr0 & kCr0Pg, 0u);
}

TEST(ControlRegisters, PcidKeepBitIsNotStored) {
  TestCore test;
  test.core().cr4 |= kCr4Pcide;
  ASSERT_TRUE(Set(test, 3, std::uint64_t{1} << 63 | 0x1005));
  EXPECT_EQ(test.core().cr3, 0x1005u);
  EXPECT_FALSE(Set(test, 4, test.core().cr4 & ~kCr4Pae));
}

TEST(ControlRegisters, TaskPriorityIsTheOutsides) {
  TestCore test;
  Op op = test.op();
  op.first = kRbx * 8;
  op.second = 8;
  EXPECT_FALSE(test.Run(MovFromControl, op));
  EXPECT_EQ(test.core().exit.bus.kind, BusAccess::Kind::kTprRead);
  BusAccess answer = test.core().exit.bus;
  answer.value = 9;
  ASSERT_TRUE(test.core().replay.Add(answer));
  ASSERT_TRUE(test.Run(MovFromControl, op));
  EXPECT_EQ(test.core().gpr[kRbx], 9u);
  EXPECT_FALSE(Set(test, 8, 16));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(DebugRegisters, AliasFixedBitsAndGeneralDetect) {
  TestCore test;
  Core& core = test.core();
  core.gpr[kRax] = 0xffff'ffff;
  ASSERT_TRUE(test.Run(MovToDebug, ControlOp(test, 4)));
  EXPECT_EQ(core.dr6, 0xffff'efffu);
  core.gpr[kRax] = kDr7Gd;
  ASSERT_TRUE(test.Run(MovToDebug, ControlOp(test, 7)));
  EXPECT_EQ(core.dr7, kDr7Gd | 0x400);
  EXPECT_FALSE(test.Run(MovToDebug, ControlOp(test, 0)));
  EXPECT_EQ(core.exception.vector, kDb);
  EXPECT_EQ(core.exception.dr6, kDr6Bd);
  core.dr7 = 0x400;
  core.gpr[kRax] = std::uint64_t{1} << 32;
  EXPECT_FALSE(test.Run(MovToDebug, ControlOp(test, 7)));
  EXPECT_EQ(core.exception.vector, kGp);
}

TEST(Lmsw, SetsButNeverClearsProtection) {
  TestCore test(Mode::kProtected);
  Op op = test.op();
  op.first = kRax * 8;
  test.core().gpr[kRax] = kCr0Ts;
  ASSERT_TRUE(test.Run(Lmsw, op));
  EXPECT_EQ(test.core().cr0, kCr0Pe | kCr0Ts | kCr0Et);
}

struct InvpcidCase {
  const char* name;
  std::uint64_t type;
  std::uint64_t pcid;
  std::uint64_t linear;
  bool want;
};
class InvpcidOperands : public testing::TestWithParam<InvpcidCase> {};
TEST_P(InvpcidOperands, AreChecked) {
  TestCore test;
  test.Write(0x5000, GetParam().pcid);
  test.Write(0x5008, GetParam().linear);
  Op op = test.MemoryOp(0x5000);
  op.second = kRax * 8;
  test.core().gpr[kRax] = GetParam().type;
  EXPECT_EQ(test.Run(Invpcid, op), GetParam().want);
}
INSTANTIATE_TEST_SUITE_P(
    Descriptors, InvpcidOperands,
    testing::Values(InvpcidCase{"Address", 0, 0, 0x1000, true},
                    InvpcidCase{"NarrowNonCanonical", 0, 0, 0x8000'0000'0000, true},
                    InvpcidCase{"NonCanonical", 0, 0, 0x100'0000'0000'0000, false},
                    InvpcidCase{"PcidWhileOff", 1, 1, 0, false},
                    InvpcidCase{"All", 2, 5, 0x8000'0000'0000, true},
                    InvpcidCase{"WidePcid", 2, 0x1000, 0, false},
                    InvpcidCase{"UnknownType", 4, 0, 0, false}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(AbsentFeatures, AreUndefined) {
  for (const auto instruction : {Rdpkru, Wrpkru, Xgetbv, Xsetbv}) {
    TestCore test;
    EXPECT_FALSE(test.Run(instruction, test.op()));
    EXPECT_EQ(test.core().exception.vector, kUd);
  }
  TestCore test;
  test.model().Set(Feature::kInvpcid, false);
  EXPECT_FALSE(test.Run(Invpcid, test.MemoryOp(0x5000)));
  EXPECT_EQ(test.core().exception.vector, kUd);
}

TEST(Invpcid, WantsCanonicalFormByWhatIsSupported) {
  TestCore test;
  test.model().Set(Feature::kLa57, false);
  test.Write<std::uint64_t>(0x5008, 0x8000'0000'0000);
  Op op = test.MemoryOp(0x5000);
  op.second = kRax * 8;
  EXPECT_FALSE(test.Run(Invpcid, op));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(Invpcid, KnowsPcidsWhileTheyAreOn) {
  TestCore test;
  test.core().cr4 |= kCr4Pcide;
  test.Write<std::uint64_t>(0x5000, 0xfff);
  Op op = test.MemoryOp(0x5000);
  op.second = kRax * 8;
  test.core().gpr[kRax] = 1;
  EXPECT_TRUE(test.Run(Invpcid, op));
}

TEST(Pcid, CannotBeTurnedOnWithOneInTheRootNorPagingOffWithThem) {
  TestCore test(Mode::kLong);
  Core& core = test.core();
  core.cr3 = 0x1001;
  EXPECT_FALSE(Set(test, 4, core.cr4 | kCr4Pcide));
  core.cr3 = 0x1000;
  EXPECT_TRUE(Set(test, 4, core.cr4 | kCr4Pcide));
  core.segments[kCs].attributes = 0xc09b;  // compatibility mode
  core.UpdateMode();
  EXPECT_FALSE(Set(test, 0, core.cr0 & ~kCr0Pg));
  EXPECT_EQ(core.exception.vector, kGp);
}

}  // namespace
}  // namespace pagesaw::cpu
