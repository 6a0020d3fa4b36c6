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
};
class ControlWrite : public testing::TestWithParam<WriteCase> {};
TEST_P(ControlWrite, IsLegalOrGeneralProtection) {
  TestCore test(GetParam().mode);
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

constexpr std::uint64_t kLamBits = kCr3LamU48;
INSTANTIATE_TEST_SUITE_P(
    Rules, ControlWrite,
    testing::Values(WriteCase{"PagingWithoutProtection", Mode::kReal, 0, kCr0Pg, 0, false},
                    WriteCase{"Protection", Mode::kReal, 0, kCr0Pe, 0, true},
                    WriteCase{"NotWriteThroughAlone", Mode::kReal, 0, kCr0Nw, 0, false},
                    WriteCase{"NotWriteThroughAndCacheOff", Mode::kReal, 0, kCr0Nw | kCr0Cd, 0,
                              true},
                    WriteCase{"UpperHalf", Mode::kLong, 0, std::uint64_t{1} << 32, 0, false},
                    WriteCase{"PagingOffIn64BitCode", Mode::kLong, 0, 0, kCr0Pg, false},
                    WriteCase{"Smep", Mode::kLong, 4, kCr4Smep, 0, true},
                    WriteCase{"ProtectionKeysAbsent", Mode::kLong, 4, kCr4Pke, 0, false},
                    WriteCase{"La57InLongMode", Mode::kLong, 4, kCr4La57, 0, false},
                    WriteCase{"PaeOffInLongMode", Mode::kLong, 4, 0, kCr4Pae, false},
                    WriteCase{"Pcid", Mode::kLong, 4, kCr4Pcide, 0, true},
                    WriteCase{"PcidOutsideLongMode", Mode::kProtected, 4, kCr4Pcide, 0, false},
                    WriteCase{"ReservedBit", Mode::kLong, 4, 1u << 15, 0, false},
                    WriteCase{"FxsaveThere", Mode::kLong, 4, kCr4Osfxsr, 0, true},
                    WriteCase{"RootInReach", Mode::kLong, 3, 0x3fff'ffff'f000, 0, true},
                    WriteCase{"RootOutOfReach", Mode::kLong, 3, std::uint64_t{1} << 46, 0, false},
                    WriteCase{"LamAbsent", Mode::kLong, 3, kLamBits, 0, false}),
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
  EXPECT_EQ(core.exit.linear, Gva(0x5678));
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
INSTANTIATE_TEST_SUITE_P(Descriptors, InvpcidOperands,
                         testing::Values(InvpcidCase{"Address", 0, 0, 0x1000, true},
                                         InvpcidCase{"NonCanonical", 0, 0, 0x8000'0000'0000, false},
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
}

}  // namespace
}  // namespace pagesaw::cpu
