#include <gtest/gtest.h>

#include <cstdint>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;

namespace pagesaw {
namespace {

// Present by bit 0, refuses execution by bit 63.
constexpr EntryLayout kRefusing = {
    .present = 1, .write = 2, .user = 4, .no_execute = std::uint64_t{1} << 63, .large = 0x80};
// Present by any right, grants execution by bit 2 (supervisor) and bit 10 (user).
constexpr EntryLayout kGranting = {.present = 0x407,
                                   .read = 1,
                                   .write = 2,
                                   .exec_supervisor = 4,
                                   .exec_user = 0x400,
                                   .large = 0x80};

TEST(DecodeRights, GrantsWhatTheLayoutHasNoBitFor) {
  EXPECT_EQ(DecodeRights(kRefusing, ~std::uint64_t{0}), Rights::All());
  EXPECT_EQ(DecodeRights(kRefusing, 0), Rights(Rights::kRead));
  EXPECT_TRUE(DecodeRights(kGranting, 0).user());
}

TEST(DecodeRights, OneExecuteBitServesBothModes) {
  EntryLayout layout = kGranting;
  layout.exec_user = 0;
  EXPECT_TRUE(DecodeRights(layout, 4).exec_supervisor());
  EXPECT_TRUE(DecodeRights(layout, 4).exec_user());
  EXPECT_FALSE(DecodeRights(layout, 0x400).exec_user());
}

TEST(DecodeRights, TwoExecuteBitsAreIndependent) {
  EXPECT_TRUE(DecodeRights(kGranting, 0x400).exec_user());
  EXPECT_FALSE(DecodeRights(kGranting, 0x400).exec_supervisor());
  EXPECT_TRUE(DecodeRights(kGranting, 4).exec_supervisor());
  EXPECT_FALSE(DecodeRights(kGranting, 4).exec_user());
}

TEST(PageFormat, RightsOfAnEntryTakeTheRefusalBitInverted) {
  const PageFormat format = {.layout = kRefusing};
  EXPECT_EQ(format.RightsOf(7), Rights::All());
  EXPECT_EQ(format.RightsOf(7 | std::uint64_t{1} << 63),
            Rights(Rights::kRead | Rights::kWrite | Rights::kUser));
}

TEST(PageFormat, LeafAtTheLastLevelWhateverBitSevenSays) {
  const PageFormat format = {.layout = kRefusing};
  EXPECT_TRUE(format.IsLeaf(1, Level::kPt));
  EXPECT_FALSE(format.IsLarge(0x81, Level::kPt));
  EXPECT_FALSE(format.IsLeaf(1, Level::kPd));
  EXPECT_TRUE(format.IsLarge(0x81, Level::kPd));
}

TEST(PageFormat, ReservedMaskIsChosenByBitSevenAndLevel) {
  PageFormat format = {.layout = kRefusing};
  format.reserved[1][1] = 0x2000;
  EXPECT_TRUE(format.IsMalformed(0x2081, Level::kPd));
  EXPECT_FALSE(format.IsMalformed(0x2001, Level::kPd));
  EXPECT_FALSE(format.IsMalformed(0x2081, Level::kPdpt));
}

TEST(PageFormat, ExecUserCountsAsExecuteForForbiddenCombinations) {
  PageFormat format = {.layout = kGranting};
  format.malformed_low_bits = std::uint64_t{1} << 4;  // execute alone
  EXPECT_TRUE(format.IsMalformed(4, Level::kPt));
  EXPECT_TRUE(format.IsMalformed(0x400, Level::kPt));
  EXPECT_FALSE(format.IsMalformed(0x401, Level::kPt));
}

TEST(PageFormat, PermissionFaultReadsRowAndColumn) {
  PageFormat format = {.layout = kGranting};
  const Access fetch = Access::Fetch(Privilege::kUser);
  format.refused[fetch.permission_row()] = 1u << 0b1001;
  EXPECT_TRUE(format.PermissionFault(Rights(Rights::kRead | Rights::kExecSupervisor), fetch));
  EXPECT_FALSE(format.PermissionFault(
      Rights(Rights::kRead | Rights::kExecSupervisor | Rights::kExecUser), fetch));
}

TEST(PageFormat, ShadowStackAdmitsItsOwnAccessesInItsOwnMode) {
  PageFormat format = {.layout = kRefusing};
  format.layout.dirty = 0x40;
  const Rights user(Rights::kRead | Rights::kUser | Rights::kShadowStack);
  EXPECT_FALSE(format.PermissionFault(user, Access::ShadowStackWrite(Privilege::kUser)));
  EXPECT_TRUE(format.PermissionFault(user, Access::ShadowStackWrite(Privilege::kSupervisor)));
  EXPECT_TRUE(format.PermissionFault(Rights::All(), Access::ShadowStackRead(Privilege::kUser)));
  EXPECT_FALSE(format.IsShadowStackLeaf(0x41));
  format.shadow_stacks = true;
  EXPECT_TRUE(format.IsShadowStackLeaf(0x41));
  EXPECT_FALSE(format.IsShadowStackLeaf(0x43));
  EXPECT_FALSE(format.IsShadowStackLeaf(0x01));
}

TEST(PageFormat, ThirdColumnBitIsTheUserRightWhereExecuteIsNotGranted) {
  const PageFormat format = {.layout = kRefusing};
  EXPECT_EQ(format.PermissionCode(Rights(Rights::kRead | Rights::kUser)), 0b0101u);
  EXPECT_EQ(format.PermissionCode(Rights(Rights::kRead | Rights::kExecUser)), 0b0001u);
}

}  // namespace
}  // namespace pagesaw
