#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.plugins.svm.nested_paging;
import pagesaw.plugins.svm.vmcb;

namespace pagesaw::svm {
namespace {

constexpr std::uint64_t kNx = std::uint64_t{1} << 63;
constexpr std::uint64_t kPat = 0x0007'0406'0007'0406;

class NestedPagingTest : public testing::Test {
 protected:
  NestedPagingTest() {
    vmcb_.Set(field::kNestedControl, 1);
    vmcb_.Set(field::kNestedCr3, 0x12'3000);
    vmcb_.Set(field::kGuestPat, kPat);
    vmcb_.Set(field::kAsid, 5);
    state_.cr0 = kCr0Pg | kCr0Pe;
    state_.cr4 = kCr4Pae;
    state_.efer = kEferLme | kEferLma | kEferNxe;
  }
  NestedPaging Of(bool splits_execute = false) const {
    return NestedPagingOf(vmcb_, state_, limits_, splits_execute);
  }
  bool Fits() const { return NestedPagingFits(vmcb_, state_, limits_); }

  alignas(4096) std::byte page_[4096] = {};
  Vmcb vmcb_{page_};
  CpuState state_;
  RegisterLimits limits_ = {
      .physical_bits = 40,
      .paging = {.physical_bits = 40, .root_bit8_reserved = true, .la57 = true},
      .nested_paging = true};
};

TEST_F(NestedPagingTest, TablesLookAsThoseOfTheHypervisorsMode) {
  const NestedPaging four = Of();
  EXPECT_EQ(four.level, Level::kPml4);
  EXPECT_EQ(four.root, Gpa(0x12'3000));
  EXPECT_EQ(four.root_register, 0x12'3000u);
  EXPECT_EQ(four.tag, 5u);
  EXPECT_TRUE(four.format.second_stage);
  EXPECT_TRUE(four.tables_are_written);
  EXPECT_TRUE(four.pdptes_in_memory);
  EXPECT_FALSE(four.root_has_pdptes);

  state_.cr4 |= kCr4La57;
  EXPECT_EQ(Of().level, Level::kPml5);

  state_.cr4 = kCr4Pae;
  state_.efer = kEferNxe;
  vmcb_.Set(field::kNestedCr3, 0x12'3460);
  const NestedPaging pae = Of();
  EXPECT_EQ(pae.level, Level::kPdpt);
  EXPECT_TRUE(pae.root_has_pdptes);
  EXPECT_EQ(pae.root, Gpa(0x12'3460));

  state_.cr4 = kCr4Pse;
  const NestedPaging two = Of();
  EXPECT_EQ(two.level, Level::kPd);
  EXPECT_EQ(two.root, Gpa(0x12'3000));
  EXPECT_EQ(two.format.layout.entry_bytes, 4);
  EXPECT_NE(two.format.layout.large, 0u);
}

TEST_F(NestedPagingTest, TheHypervisorsNxeDecidesOnBit63) {
  EXPECT_FALSE(Of().format.IsMalformed(kNx | 7, Level::kPt));
  state_.efer &= ~kEferNxe;
  EXPECT_TRUE(Of().format.IsMalformed(kNx | 7, Level::kPt));
}

TEST_F(NestedPagingTest, TheExecuteTrapMustBeOfferedAndAskedFor) {
  EXPECT_FALSE(Of(true).format.user_pages_refuse_supervisor_fetch);
  vmcb_.Set(field::kNestedControl, 9);
  EXPECT_FALSE(Of(false).format.user_pages_refuse_supervisor_fetch);
  EXPECT_TRUE(Of(true).format.user_pages_refuse_supervisor_fetch);
}

TEST_F(NestedPagingTest, WhatCannotBeEntered) {
  EXPECT_TRUE(Fits());
  vmcb_.Set(field::kNestedCr3, std::uint64_t{1} << 40);
  EXPECT_FALSE(Fits());
  vmcb_.Set(field::kNestedCr3, 0x1000);
  for (std::uint64_t type : {2u, 3u, 8u, 0xffu}) {
    vmcb_.Set(field::kGuestPat, kPat | type << 56);
    EXPECT_FALSE(Fits()) << type;
  }
  vmcb_.Set(field::kGuestPat, kPat);
  state_.cr0 = kCr0Pe;
  EXPECT_FALSE(Fits()) << "the hypervisor's own paging is off";
  vmcb_.Set(field::kNestedControl, 0);
  EXPECT_TRUE(Fits()) << "nothing is asked of paging that is not nested";
}

TEST_F(NestedPagingTest, IsOffWhereTheProcessorHasNone) {
  EXPECT_TRUE(EnablesNestedPaging(vmcb_, limits_));
  limits_.nested_paging = false;
  EXPECT_FALSE(EnablesNestedPaging(vmcb_, limits_));
}

struct InfoRow {
  const char* name;
  NestedFault fault;
  std::uint64_t want;
  bool reports_fetch = true;
  bool split = false;
};

class NestedFaults : public testing::TestWithParam<InfoRow> {};

TEST_P(NestedFaults, TellWhatMetThem) {
  PageFormat format;
  format.reports_fetch = GetParam().reports_fetch;
  format.user_pages_refuse_supervisor_fetch = GetParam().split;
  EXPECT_EQ(NestedFaultInfo(GetParam().fault, format), GetParam().want);
}

constexpr Access kRead = Access::Read(Privilege::kSupervisor);
constexpr Access kWrite = Access::Write(Privilege::kSupervisor);
constexpr Access kFetch = Access::Fetch(Privilege::kSupervisor);

INSTANTIATE_TEST_SUITE_P(
    Rows, NestedFaults,
    testing::Values(
        InfoRow{"NotPresentRead", {.access = kRead}, 0x1'0000'0004},
        InfoRow{"RefusedRead", {.access = kRead, .present = true}, 0x1'0000'0005},
        InfoRow{"RefusedFetch", {.access = kFetch, .present = true}, 0x1'0000'0015},
        InfoRow{"RefusedFetchUntold", {.access = kFetch, .present = true}, 0x1'0000'0005, false},
        InfoRow{"RefusedWrite", {.access = kWrite, .present = true}, 0x1'0000'0007},
        InfoRow{"RefusedTable",
                {.access = kWrite, .stage = Stage::kTable, .present = true},
                0x2'0000'0007},
        InfoRow{"ReservedMetByTable",
                {.access = kWrite, .stage = Stage::kTable, .present = true, .malformed = true},
                0x2'0000'000f},
        InfoRow{"ReservedMetByFetch",
                {.access = kFetch, .present = true, .malformed = true},
                0x1'0000'001d},
        InfoRow{"TrappedFetch", {.access = kFetch, .present = true}, 0x1'0000'0011, true, true}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw::svm
