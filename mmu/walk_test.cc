#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.test_formats;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

constexpr std::uint64_t kTable = 7, kA = 0x20, kD = 0x40;
constexpr Access kWrite = Access::Write(Privilege::kUser);

// Tables in an array, addressed from 0, by way of a script: what happens at which step.
class ScriptedSpace {
 public:
  static constexpr bool kUpdates = true;

  TableEntry Find(OutputAddress at) {
    ++finds;
    if (at.bits() == refused_table) return {.refusal = WalkFault::Kind::kSecondStage};
    return {.host = reinterpret_cast<std::byte*>(&entries[at.bits() / 8])};
  }
  EntryUpdate PrepareUpdate(OutputAddress at) {
    if (before_update) before_update(at);
    return at.bits() == refused_update ? EntryUpdate::kRefused : EntryUpdate::kAllowed;
  }
  bool Finish(Translation& translation, Access) const {
    translation.output = OutputAddress(translation.output.bits() + output_offset);
    return !output_refused;
  }

  std::array<std::uint64_t, 4 * 512> entries = {};
  std::uint64_t refused_table = ~std::uint64_t{0};
  std::uint64_t refused_update = ~std::uint64_t{0};
  std::uint64_t output_offset = 0;
  bool output_refused = false;
  std::function<void(OutputAddress)> before_update;
  unsigned finds = 0;
};

// Tables at 0x0000 (PML4), 0x1000, 0x2000 and 0x3000 (PT); address 0 -> 0x9000.
class Walk : public testing::Test {
 protected:
  void SetUp() override {
    Entry(0) = 0x1000 | kTable;
    Entry(1) = 0x2000 | kTable;
    Entry(2) = 0x3000 | kTable;
    Entry(3) = 0x9000 | kTable;
  }
  std::uint64_t& Entry(unsigned table) { return space_.entries[std::size_t{table} * 512]; }
  WalkResult Go(Access access = kWrite) {
    return WalkTables<FixedLayout<kLegacy64Layout>>(format_, {.access = access}, space_);
  }

  PageFormat format_ = LegacySecondStage(false);
  ScriptedSpace space_;
};

TEST_F(Walk, SpaceHasTheLastWordOnTheOutput) {
  space_.output_offset = 0x10'0000;
  const WalkResult result = Go();
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output.bits(), 0x10'9000u);
}

TEST_F(Walk, RefusedOutputLeavesTheEntriesAlone) {
  space_.output_refused = true;
  const WalkResult result = Go();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.fault().kind, WalkFault::Kind::kSecondStage);
  EXPECT_EQ(result.fault().stage, Stage::kFinal);
  EXPECT_EQ(result.fault().stage_address.bits(), 0x9000u);
  EXPECT_EQ(Entry(0) & kA, 0u);
  EXPECT_EQ(Entry(3) & (kA | kD), 0u);
}

TEST_F(Walk, RightsAreJudgedBeforeTheOutput) {
  space_.output_refused = true;
  Entry(3) = 0x9000 | 5;
  EXPECT_EQ(Go().fault().kind, WalkFault::Kind::kRights);
}

TEST_F(Walk, RefusedTableEndsTheWalkThere) {
  space_.refused_table = 0x2000;
  const WalkResult result = Go();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.fault().kind, WalkFault::Kind::kSecondStage);
  EXPECT_EQ(result.fault().stage, Stage::kTable);
  EXPECT_EQ(result.fault().level, Level::kPd);
  EXPECT_EQ(result.fault().stage_address.bits(), 0x2000u);
}

TEST_F(Walk, RefusedUpdateNamesTheEntry) {
  space_.refused_update = 0x2000;
  const WalkResult result = Go();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.fault().stage, Stage::kTable);
  EXPECT_EQ(result.fault().level, Level::kPd);
  EXPECT_EQ(result.fault().stage_address.bits(), 0x2000u);
}

TEST_F(Walk, EntriesThatNeedNothingAreNotAskedAbout) {
  ASSERT_TRUE(Go());
  space_.before_update = [](OutputAddress at) { ADD_FAILURE() << at.bits(); };
  EXPECT_TRUE(Go());
  EXPECT_TRUE(Go(Access::Read(Privilege::kUser)));
}

TEST_F(Walk, LostRaceStartsAgainAndUsesTheNewEntry) {
  space_.before_update = [this](OutputAddress at) {
    if (at.bits() == 0x3000) Entry(3) = 0xa000 | kTable | kA;
  };
  const WalkResult result = Go();
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output.bits(), 0xa000u);
  EXPECT_EQ(result->leaf, 0xa000 | kTable | kA | kD);
  EXPECT_EQ(Entry(3), 0xa000 | kTable | kA | kD);
  EXPECT_EQ(space_.finds, 8u);
}

TEST_F(Walk, LostRaceMayEndInAFault) {
  space_.before_update = [this](OutputAddress at) {
    if (at.bits() == 0x3000) Entry(3) = 0;
  };
  const WalkResult result = Go();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.fault().kind, WalkFault::Kind::kNotPresent);
  EXPECT_EQ(Entry(3), 0u) << "nothing is written to an entry that went";
}

TEST_F(Walk, EntryThatNeverStandsStillDoesNotHoldTheWalkForEver) {
  std::uint64_t changes = 0;
  space_.before_update = [&](OutputAddress at) {
    if (at.bits() == 0x3000) Entry(3) = 0x9000 | kTable | (++changes & 0x7f) << 52;
  };
  const WalkResult result = Go();
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output.bits(), 0x9000u);
  EXPECT_EQ(Entry(3) & (kA | kD), 0u) << "another's value is left as it is";
}

TEST_F(Walk, NothingIsSetWhereTheFormatKeepsNoAccessedAndDirty) {
  format_.accessed_dirty = false;
  ASSERT_TRUE(Go());
  EXPECT_EQ(Entry(0), 0x1000 | kTable);
  EXPECT_EQ(Entry(3), 0x9000 | kTable);
}

TEST_F(Walk, PhysicalAddressesBeyondTheTreeAreNotPresent) {
  const WalkRequest request = {.address = InputAddress(std::uint64_t{1} << 48), .access = kWrite};
  const WalkResult result = WalkTables<FixedLayout<kLegacy64Layout>>(format_, request, space_);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.fault().kind, WalkFault::Kind::kNotPresent);
  EXPECT_EQ(space_.finds, 0u);
}

TEST_F(Walk, AnyLayoutAgreesWithTheFixedOne) {
  const WalkResult result = WalkTables<AnyLayout>(format_, {.access = kWrite}, space_);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output.bits(), 0x9000u);
  EXPECT_EQ(Entry(3), 0x9000 | kTable | kA | kD);
}

}  // namespace
}  // namespace pagesaw
