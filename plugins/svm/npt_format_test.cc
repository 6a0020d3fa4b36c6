#include <gtest/gtest.h>

#include <cstdint>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.plugins.svm.npt_format;

namespace pagesaw::svm {
namespace {

constexpr std::uint64_t kNx = std::uint64_t{1} << 63;

struct RightsRow {
  std::uint64_t entry;
  bool read, write, execute;
};

class NptRights : public testing::TestWithParam<RightsRow> {};

TEST_P(NptRights, AllowUserAccessesWhatTheManualSays) {
  const RightsRow& row = GetParam();
  const PageFormat format = MakeNptFormat(48);
  const Rights rights = format.RightsOf(row.entry);
  EXPECT_EQ(!format.PermissionFault(rights, Access::Read(Privilege::kUser)), row.read);
  EXPECT_EQ(!format.PermissionFault(rights, Access::Write(Privilege::kUser)), row.write);
  EXPECT_EQ(!format.PermissionFault(rights, Access::Fetch(Privilege::kUser)), row.execute);
}

INSTANTIATE_TEST_SUITE_P(Rows, NptRights,
                         testing::Values(RightsRow{7, true, true, true},
                                         RightsRow{5, true, false, true},
                                         RightsRow{3, false, false, false},
                                         RightsRow{7 | kNx, true, true, false}));

TEST(NptFormat, ReservesWhatLongModeReservesAndBitEightOfTheRoot) {
  const PageFormat format = MakeNptFormat(48);
  EXPECT_TRUE(format.IsMalformed(7 | std::uint64_t{1} << 48, Level::kPt));
  EXPECT_FALSE(format.IsMalformed(7 | std::uint64_t{1} << 47, Level::kPt));
  EXPECT_TRUE(format.IsMalformed(0x107, Level::kPml4));
  EXPECT_FALSE(format.IsMalformed(0x107, Level::kPdpt));
  EXPECT_FALSE(format.IsMalformed(7 | kNx, Level::kPt));
  EXPECT_TRUE(format.second_stage);
  EXPECT_EQ(format.protection_key_mask, 0u);
}

}  // namespace
}  // namespace pagesaw::svm
