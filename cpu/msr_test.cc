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
import pagesaw.cpu.model;
import pagesaw.cpu.test_core;
import pagesaw.cpu.test_vendor;
import pagesaw.cpu.msr;

namespace pagesaw::cpu {
namespace {

using Mode = TestCore::Mode;

bool Write(TestCore& test, std::uint32_t index, std::uint64_t value) {
  test.core().gpr[kRcx] = index;
  test.core().gpr[kRax] = value & 0xffff'ffff;
  test.core().gpr[kRdx] = value >> 32;
  return test.Run(Wrmsr, test.op());
}
bool Read(TestCore& test, std::uint32_t index, std::uint64_t& value) {
  test.core().gpr[kRcx] = index;
  if (!test.Run(Rdmsr, test.op())) return false;
  value = test.core().gpr[kRdx] << 32 | test.core().gpr[kRax];
  return true;
}

struct MsrCase {
  const char* name;
  std::uint32_t index;
  std::uint64_t value;
  bool want;
};
class MsrWrite : public testing::TestWithParam<MsrCase> {};
TEST_P(MsrWrite, IsReadBackOrRefused) {
  TestCore test;
  EXPECT_EQ(Write(test, GetParam().index, GetParam().value), GetParam().want);
  std::uint64_t value = 0;
  ASSERT_TRUE(Read(test, GetParam().index, value));
  EXPECT_EQ(value == GetParam().value, GetParam().want);
}
constexpr std::uint64_t kHigh = 0xffff'8000'0000'1000;
constexpr std::uint64_t kNonCanonical = 0x100'0000'0000'0000;
INSTANTIATE_TEST_SUITE_P(
    Values, MsrWrite,
    testing::Values(MsrCase{"Lstar", kMsrLstar, kHigh, true},
                    MsrCase{"LstarNonCanonical", kMsrLstar, kNonCanonical, false},
                    MsrCase{"Lstar57", kMsrLstar, 0xff00'0000'0000'1000, true},
                    MsrCase{"FsBase", kMsrFsBase, kHigh, true},
                    MsrCase{"FsBaseNonCanonical", kMsrFsBase, kNonCanonical, false},
                    MsrCase{"KernelGsBase", kMsrKernelGsBase, kHigh, true},
                    MsrCase{"Star", kMsrStar, 0x0023'0010'0000'0000, true},
                    MsrCase{"SysenterEip", kMsrSysenterEip, kHigh, true},
                    MsrCase{"Pat", kMsrPat, 0x0007'0106'0007'0406, true},
                    MsrCase{"PatOfUnknownType", kMsrPat, 0x0207'0106'0007'0406, false},
                    MsrCase{"TscAux", kMsrTscAux, 7, true},
                    MsrCase{"TscAuxWide", kMsrTscAux, std::uint64_t{1} << 32, false},
                    MsrCase{"EferWithSvm", kMsrEfer, 0x1d01, false},
                    MsrCase{"EferWithoutLme", kMsrEfer, 0xc01, false},
                    MsrCase{"EferWithoutNx", kMsrEfer, 0x501, true}),
    [](const auto& info) { return std::string(info.param.name); });

struct VendorCase {
  const char* name;
  Vendor vendor;
  std::uint32_t index;
  std::uint64_t value;
  bool want_write;
  bool want_read = true;
};
class MsrOfVendor : public testing::TestWithParam<VendorCase> {};
TEST_P(MsrOfVendor, IsThereOrGeneralProtection) {
  TestCore test;
  test.model() = ModelOf(GetParam().vendor);
  test.core().plain_msrs = PlainMsrs(test.model().amd_rules());
  EXPECT_EQ(Write(test, GetParam().index, GetParam().value), GetParam().want_write);
  if (!GetParam().want_write) EXPECT_EQ(test.core().exception.vector, kGp);
  std::uint64_t value = 0;
  EXPECT_EQ(Read(test, GetParam().index, value), GetParam().want_read);
  if (GetParam().want_write && GetParam().want_read) EXPECT_EQ(value, GetParam().value);
}
constexpr Vendor kI = Vendor::kIntel, kA = Vendor::kAmd;
INSTANTIATE_TEST_SUITE_P(
    Registers, MsrOfVendor,
    testing::Values(VendorCase{"MtrrCapabilities", kI, 0xfe, 0, false},
                    VendorCase{"MtrrDefault", kA, 0x2ff, 0xc06, true},
                    VendorCase{"MtrrBase", kI, 0x20e, 0x8000'0006, true},
                    VendorCase{"MtrrBaseTooWide", kI, 0x20e, std::uint64_t{1} << 46, false},
                    VendorCase{"MachineCheckBank", kA, 0x400, ~std::uint64_t{0}, true},
                    VendorCase{"MachineCheckStatus", kI, 0x401, 1, false},
                    VendorCase{"MiscEnable", kI, kMsrMiscEnable, 0x4'00c5'1809, true},
                    VendorCase{"MiscEnableOnAmd", kA, kMsrMiscEnable, 0x4'00c5'1809, true},
                    VendorCase{"MicrocodeUpdate", kI, 0x79, 0x1000, true, false},
                    VendorCase{"MicrocodeUpdateOnAmd", kA, 0x79, 0x1000, false, false},
                    VendorCase{"DebugctlBtf", kI, kMsrDebugctl, 2, true},
                    VendorCase{"DebugctlReserved", kI, kMsrDebugctl, 1u << 3, false},
                    VendorCase{"DebugctlLbr", kI, kMsrDebugctl, 1, true},
                    VendorCase{"DebugctlOnAmd", kA, kMsrDebugctl, 0x3f, true},
                    VendorCase{"DebugctlReservedOnAmd", kA, kMsrDebugctl, 0x40, false},
                    VendorCase{"LastBranch", kI, kMsrLastBranchFrom, 0, false, false},
                    VendorCase{"LastBranchOnAmd", kA, kMsrLastBranchFrom, 0, false},
                    VendorCase{"LastIntOnAmd", kA, kMsrLastIntTo, 0, false},
                    VendorCase{"PerformanceCounterIsNotCounted", kA, 0xc001'0004, 1, false}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Msr, ThoseOfFeaturesThatAreOffAreRefused) {
  struct Row {
    Feature feature;
    std::uint32_t index;
  };
  constexpr Row kRows[] = {{Feature::kMtrr, 0xfe},
                           {Feature::kMtrr, 0x200},
                           {Feature::kMca, 0x179},
                           {Feature::kMca, 0x400},
                           {Feature::kPat, kMsrPat},
                           {Feature::kSep, kMsrSysenterCs},
                           {Feature::kTsc, kMsrTsc},
                           {Feature::kTscAdjust, kMsrTscAdjust},
                           {Feature::kPks, kMsrPkrs},
                           {Feature::kXsaves, kMsrXss},
                           {Feature::kSyscall, kMsrStar},
                           {Feature::kLm, kMsrLstar},
                           {Feature::kTscDeadline, kMsrTscDeadline}};
  for (const Row& row : kRows) {
    TestCore test;
    test.model().Set(row.feature, false);
    std::uint64_t value = 0;
    EXPECT_FALSE(Read(test, row.index, value)) << row.index;
    EXPECT_EQ(test.core().stop, Stop::kException) << row.index;
    EXPECT_FALSE(Write(test, row.index, 0)) << row.index;
    EXPECT_EQ(test.core().stop, Stop::kException) << row.index;
  }
}

TEST(Msr, HwcrMakesMachineCheckStatusWritable) {
  TestCore test;
  test.model() = ModelOf(Vendor::kAmd);
  test.core().plain_msrs = PlainMsrs(true);
  EXPECT_FALSE(Write(test, 0x401, 1));
  ASSERT_TRUE(Write(test, kMsrHwcr, kHwcrMcStatusWritable));
  EXPECT_TRUE(Write(test, 0x401, 1));
}

TEST(Msr, CpuidCanBeMadeToFaultForPrograms) {
  TestCore test;
  ASSERT_TRUE(Write(test, kMsrMiscFeatures, kMiscFeatureCpuidFaulting));
  EXPECT_TRUE(test.Run(Cpuid, test.op()));
  test.SetCpl(3);
  EXPECT_FALSE(test.Run(Cpuid, test.op()));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(Msr, MiscEnableTakesFeaturesAway) {
  TestCore test;
  test.model().Set(Feature::kMonitor, true);
  const auto cpuid = [&test](std::uint64_t leaf) {
    test.core().gpr[kRax] = leaf;
    test.core().gpr[kRcx] = 0;
    test.Run(Cpuid, test.op());
    return test.core().gpr;
  };
  EXPECT_NE(cpuid(1)[kRcx] & 1u << 3, 0u);
  EXPECT_EQ(cpuid(5)[kRax], 64u);
  EXPECT_NE(cpuid(0x8000'0001)[kRdx] & 1u << 20, 0u);
  ASSERT_TRUE(Write(test, kMsrMiscEnable, kMiscEnableLimitCpuid | kMiscEnableNoExecuteDisable));
  EXPECT_EQ(cpuid(1)[kRcx] & 1u << 3, 0u);
  EXPECT_EQ(cpuid(5)[kRax], 0u);
  EXPECT_EQ(cpuid(0)[kRax], 2u);
  EXPECT_EQ(cpuid(0x8000'0001)[kRdx] & 1u << 20, 0u);
  EXPECT_FALSE(Write(test, kMsrEfer, kEferLme | kEferLma | kEferNxe));
}

TEST(Msr, SupervisorKeysAre32BitsOfTheFeature) {
  TestCore test;
  EXPECT_TRUE(Write(test, kMsrPkrs, 0xffff'ffff));
  EXPECT_EQ(test.core().pkrs, 0xffff'ffffu);
  EXPECT_FALSE(Write(test, kMsrPkrs, std::uint64_t{1} << 32));
  test.model().Set(Feature::kPks, false);
  EXPECT_FALSE(Write(test, kMsrPkrs, 0));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(Msr, UnknownOnesAreAskedOfTheOutside) {
  TestCore test;
  std::uint64_t value = 0;
  EXPECT_FALSE(Read(test, kMsrApicBase, value));
  EXPECT_EQ(test.core().stop, Stop::kExit);
  BusAccess asked = test.core().exit.bus;
  EXPECT_EQ(asked.kind, BusAccess::Kind::kMsrRead);
  EXPECT_EQ(asked.address, kMsrApicBase);
  asked.value = 0x1'fee0'0900;
  ASSERT_TRUE(test.core().replay.Add(asked));
  ASSERT_TRUE(Read(test, kMsrApicBase, value));
  EXPECT_EQ(value, 0x1'fee0'0900u);
}

TEST(Msr, CpuidTellsWhetherTheApicIsEnabled) {
  TestCore test;
  const auto apic = [&test] {
    test.core().gpr[kRax] = 1;
    test.Run(Cpuid, test.op());
    return (test.core().gpr[kRdx] & 1u << 9) != 0;
  };
  EXPECT_TRUE(apic());
  EXPECT_FALSE(Write(test, kMsrApicBase, 0xfee0'0000));
  ASSERT_TRUE(test.core().replay.Add(test.core().exit.bus));
  ASSERT_TRUE(Write(test, kMsrApicBase, 0xfee0'0000));
  EXPECT_FALSE(apic());
}

TEST(Msr, ProgramsMayNotTouchThem) {
  TestCore test;
  test.SetCpl(3);
  EXPECT_FALSE(Write(test, kMsrStar, 0));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(Msr, LmeMayChangeWithoutPagingOnly) {
  TestCore test(Mode::kProtected);
  EXPECT_TRUE(Write(test, kMsrEfer, kEferLme | kEferNxe));
  EXPECT_EQ(test.core().efer, kEferLme | kEferNxe);
}

TEST(Tsc, IsAheadByItsOffset) {
  TestCore test;
  test.core().tsc_offset = std::uint64_t{1} << 62;
  ASSERT_TRUE(test.Run(Rdtsc, test.op()));
  const std::uint64_t first = test.core().gpr[kRdx] << 32 | test.core().gpr[kRax];
  EXPECT_GE(first, std::uint64_t{1} << 62);
  ASSERT_TRUE(test.Run(Rdtscp, test.op()));
  EXPECT_GE(test.core().gpr[kRdx] << 32 | test.core().gpr[kRax], first);
}

TEST(Tsc, IsSetByTheOutside) {
  for (const std::uint32_t index : {kMsrTsc, kMsrTscAdjust, kMsrTscDeadline}) {
    TestCore test;
    EXPECT_FALSE(Write(test, index, 1));
    EXPECT_EQ(test.core().stop, Stop::kExit);
    EXPECT_EQ(test.core().exit.bus.kind, BusAccess::Kind::kMsrWrite);
  }
}

TEST(Tsc, MayBeHiddenFromPrograms) {
  TestCore test;
  test.SetCpl(3);
  EXPECT_TRUE(test.Run(Rdtsc, test.op()));
  test.core().cr4 |= kCr4Tsd;
  EXPECT_FALSE(test.Run(Rdtsc, test.op()));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(Rdrand, SetsCarryAndClearsTheUpperHalf) {
  TestCore test;
  Op op = test.op();
  op.first = kRax * 8;
  op.operand_bytes = 4;
  test.core().gpr[kRax] = ~std::uint64_t{0};
  ASSERT_TRUE(test.Run(Rdrand, op));
  EXPECT_EQ(test.core().flags.All(), kFlagCf);
  EXPECT_EQ(test.core().gpr[kRax] >> 32, 0u);
}

}  // namespace
}  // namespace pagesaw::cpu
