#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.cpu.core;
import pagesaw.cpu.test_core;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.segmentation;

namespace pagesaw::cpu {
namespace {

using Mode = TestCore::Mode;
using T = TestCore;

struct LoadCase {
  const char* name;
  unsigned cpl;
  SegmentName segment;
  std::uint16_t selector;
  int want_vector;  // -1: loads
  std::uint32_t want_error;
};
class SegmentLoad : public testing::TestWithParam<LoadCase> {};

TEST_P(SegmentLoad, ChecksTheDescriptor) {
  TestCore test;
  Core& core = test.core();
  test.SetCpl(GetParam().cpl);
  Op op = test.op();
  op.first = GetParam().segment;
  op.second = kRax * 8;
  core.gpr[kRax] = GetParam().selector;
  const Segment before = core.segments[GetParam().segment];
  const bool done = test.Run(MovToSegment, op);
  EXPECT_EQ(done ? -1 : core.exception.vector, GetParam().want_vector);
  EXPECT_EQ(done ? 0 : core.exception.error_code, GetParam().want_error);
  const Segment& after = core.segments[GetParam().segment];
  EXPECT_EQ(after.selector, done ? GetParam().selector : before.selector);
  EXPECT_EQ(core.cpl, GetParam().cpl);
}

INSTANTIATE_TEST_SUITE_P(
    Selectors, SegmentLoad,
    testing::Values(
        LoadCase{"Data", 0, kDs, T::kData, -1, 0},
        LoadCase{"UserDataInKernel", 0, kEs, T::kUserData, -1, 0},
        LoadCase{"ReadableCode", 0, kEs, T::kCode32, -1, 0}, LoadCase{"Null", 3, kFs, 0, -1, 0},
        LoadCase{"KernelDataInUser", 3, kDs, T::kData, kGp, T::kData},
        LoadCase{"ConformingInUser", 3, kDs, T::kConforming | 3, -1, 0},
        LoadCase{"Absent", 0, kDs, T::kAbsentData, kNp, T::kAbsentData},
        LoadCase{"System", 0, kDs, T::kTssSelector, kGp, T::kTssSelector},
        LoadCase{"Outside", 0, kDs, 0x103, kGp, 0x100}, LoadCase{"NoLdt", 0, kDs, 0x14, kGp, 0x14},
        LoadCase{"Stack", 0, kSs, T::kData, -1, 0}, LoadCase{"NullStackInKernel", 0, kSs, 0, -1, 0},
        LoadCase{"NullStackInUser", 3, kSs, 3, kGp, 0},
        LoadCase{"ReadOnlyStack", 0, kSs, T::kReadOnly, kGp, T::kReadOnly},
        LoadCase{"StackOfOtherLevel", 0, kSs, T::kUserData, kGp, T::kUserData & ~3u},
        LoadCase{"AbsentStack", 0, kSs, T::kAbsentData, kSsVector, T::kAbsentData},
        LoadCase{"CodeRegister", 0, kCs, T::kCode64, kUd, 0}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(SegmentLoadEffect, SetsTheAccessedBitInMemory) {
  TestCore test;
  test.SetDescriptor(T::kData, 0x00cf'9200'0000'ffff);
  Op op = test.op();
  op.first = kDs;
  op.second = kRax * 8;
  test.core().gpr[kRax] = T::kData;
  ASSERT_TRUE(test.Run(MovToSegment, op));
  EXPECT_EQ(test.Read<std::uint8_t>(T::kGdt + T::kData + 5), 0x93);
  EXPECT_EQ(test.core().segments[kDs].attributes, 0xc093);
}

TEST(SegmentLoadEffect, StackLoadShadowsInterrupts) {
  TestCore test;
  Op op = test.op();
  op.first = kSs;
  op.second = kRax * 8;
  test.core().gpr[kRax] = T::kData;
  ASSERT_TRUE(test.Run(MovToSegment, op));
  EXPECT_TRUE(test.core().interrupt_shadow);
}

TEST(SegmentLoadEffect, RealModeKeepsTheLimit) {
  TestCore test(Mode::kReal);
  test.core().segments[kDs].limit = 0xffff'ffff;
  Op op = test.op();
  op.first = kDs;
  op.second = kRax * 8;
  test.core().gpr[kRax] = 0x1234;
  ASSERT_TRUE(test.Run(MovToSegment, op));
  EXPECT_EQ(test.core().segments[kDs].base, 0x12340u);
  EXPECT_EQ(test.core().segments[kDs].limit, 0xffff'ffffu);
}

TEST(SegmentLoadEffect, TableFaultChangesNothing) {
  TestCore test;
  test.Unmap(T::kGdt);
  Op op = test.op();
  op.first = kDs;
  op.second = kRax * 8;
  test.core().gpr[kRax] = T::kUserData;
  EXPECT_FALSE(test.Run(MovToSegment, op));
  EXPECT_EQ(test.core().stop, Stop::kExit);
  EXPECT_EQ(test.core().segments[kDs].selector, T::kData);
}

TEST(PopSegment, MovesTheStackOnSuccessAlone) {
  TestCore test;
  Core& core = test.core();
  Op op = test.op();
  op.first = kFs;
  test.Write<std::uint64_t>(T::kStackTop, T::kAbsentData);
  EXPECT_FALSE(test.Run(PopSegment, op));
  EXPECT_EQ(core.gpr[kRsp], T::kStackTop);
  test.Write<std::uint64_t>(T::kStackTop, T::kData);
  EXPECT_TRUE(test.Run(PopSegment, op));
  EXPECT_EQ(core.gpr[kRsp], T::kStackTop + 8);
  EXPECT_EQ(core.segments[kFs].selector, T::kData);
}

TEST(LoadFarPointer, LoadsRegisterAndSegment) {
  TestCore test;
  test.Write<std::uint64_t>(0x5000, 0x1122'3344'5566'7788);
  test.Write<std::uint16_t>(0x5008, T::kUserData);
  Op op = test.MemoryOp(0x5000);
  op.first = kRbx * 8;
  op.second = kGs;
  ASSERT_TRUE(test.Run(LoadFarPointer, op));
  EXPECT_EQ(test.core().gpr[kRbx], 0x1122'3344'5566'7788u);
  EXPECT_EQ(test.core().segments[kGs].selector, T::kUserData);
}

TEST(Ltr, MarksTheTaskBusyAndRefusesItThen) {
  TestCore test;
  test.SetDescriptor(T::kFree, 0x0000'8900'5000'0067, 0x1);
  Op op = test.op();
  op.second = kRax * 8;
  test.core().gpr[kRax] = T::kFree;
  ASSERT_TRUE(test.Run(Ltr, op));
  EXPECT_EQ(test.core().segments[kTr].base, 0x1'0000'5000u);
  EXPECT_EQ(test.Read<std::uint8_t>(T::kGdt + T::kFree + 5), 0x8b);
  EXPECT_FALSE(test.Run(Ltr, op));
  EXPECT_EQ(test.core().exception.vector, kGp);
  EXPECT_EQ(test.core().exception.error_code, T::kFree);
}

TEST(Lldt, LoadsAndForgets) {
  TestCore test;
  test.SetDescriptor(T::kFree, 0x0000'8200'5000'0017);
  Op op = test.op();
  op.second = kRax * 8;
  test.core().gpr[kRax] = T::kFree;
  ASSERT_TRUE(test.Run(Lldt, op));
  EXPECT_EQ(test.core().segments[kLdtr].base, 0x5000u);
  test.core().gpr[kRax] = 0;
  ASSERT_TRUE(test.Run(Lldt, op));
  EXPECT_FALSE(test.core().segments[kLdtr].present());
}

struct TellCase {
  const char* name;
  bool (*instruction)(Core&, const Op&);
  std::uint16_t selector;
  bool want_zero;
  std::uint32_t want;
};
class Tell : public testing::TestWithParam<TellCase> {};
TEST_P(Tell, AnswersInZeroAndTheRegister) {
  TestCore test;
  test.SetCpl(3);
  Op op = test.op();
  op.first = kRbx * 8;
  op.second = kRax * 8;
  test.core().gpr[kRax] = GetParam().selector;
  ASSERT_TRUE(test.Run(GetParam().instruction, op));
  EXPECT_EQ(test.core().flags.zero(), GetParam().want_zero);
  EXPECT_EQ(test.core().gpr[kRbx], GetParam().want);
}
INSTANTIATE_TEST_SUITE_P(
    Selectors, Tell,
    testing::Values(TellCase{"LarOfUserData", Lar, T::kUserData, true, 0x00c0'f300},
                    TellCase{"LarOfKernelData", Lar, T::kData, false, 0},
                    TellCase{"LarOfNull", Lar, 0, false, 0},
                    TellCase{"LslOfUserData", Lsl, T::kUserData, true, 0xffff'ffff},
                    TellCase{"LslOutside", Lsl, 0x200, false, 0},
                    TellCase{"VerrOfUserData", Verr, T::kUserData, true, 0},
                    TellCase{"VerwOfCode", Verw, T::kUserCode64, false, 0},
                    TellCase{"VerrOfConforming", Verr, T::kConforming, true, 0}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(DescriptorTables, StoreAndLoadTenBytes) {
  TestCore test;
  Core& core = test.core();
  core.gdtr = {.base = 0x1122'3344'5566, .limit = 0x7788};
  ASSERT_TRUE(test.Run(Sgdt, test.MemoryOp(0x5000)));
  EXPECT_EQ(test.Read<std::uint16_t>(0x5000), 0x7788);
  EXPECT_EQ(test.Read<std::uint64_t>(0x5002), 0x1122'3344'5566u);
  ASSERT_TRUE(test.Run(Lidt, test.MemoryOp(0x5000)));
  EXPECT_EQ(core.idtr, core.gdtr);
  test.Write<std::uint64_t>(0x5002, 0x100'0000'0000'0000);
  EXPECT_FALSE(test.Run(Lidt, test.MemoryOp(0x5000)));
  EXPECT_EQ(core.exception.vector, kGp);
}

TEST(DescriptorTables, UmipHidesThemFromPrograms) {
  for (const auto instruction : {Sgdt, Sidt, Sldt, Str}) {
    TestCore test;
    test.SetCpl(3);
    EXPECT_TRUE(test.Run(instruction, test.MemoryOp(0x5000)));
    test.core().cr4 |= kCr4Umip;
    EXPECT_FALSE(test.Run(instruction, test.MemoryOp(0x5000)));
    EXPECT_EQ(test.core().exception.vector, kGp);
  }
}

TEST(Swapgs, ExchangesTheBases) {
  TestCore test;
  test.core().kernel_gs_base = 0x1234;
  ASSERT_TRUE(test.Run(Swapgs, test.op()));
  EXPECT_EQ(test.core().segments[kGs].base, 0x1234u);
  test.SetCpl(3);
  EXPECT_FALSE(test.Run(Swapgs, test.op()));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(WriteFsBase, NeedsTheFeatureAndACanonicalBase) {
  TestCore test;
  Op op = test.op();
  op.first = kRax * 8;
  test.core().gpr[kRax] = 0x1000;
  EXPECT_FALSE(test.Run(WriteFsBase, op));
  EXPECT_EQ(test.core().exception.vector, kUd);
  test.core().cr4 |= kCr4Fsgsbase;
  EXPECT_TRUE(test.Run(WriteFsBase, op));
  EXPECT_EQ(test.core().segments[kFs].base, 0x1000u);
  test.core().gpr[kRax] = 0x100'0000'0000'0000;
  EXPECT_FALSE(test.Run(WriteFsBase, op));
  EXPECT_EQ(test.core().exception.vector, kGp);
}

}  // namespace
}  // namespace pagesaw::cpu
