#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.test_formats;
import pagesaw.mmu.test_memory;
import pagesaw.mmu.walk_inspection;

namespace pagesaw {
namespace {

using Kind = WalkFault::Kind;

constexpr Access kRead = Access::Read(Privilege::kSupervisor);
constexpr Access kWrite = Access::Write(Privilege::kSupervisor);

// Of the hypervisor: nested tables from 1000h, the guest's memory from 100000h. Of the guest: its
// tables at 10000h, 11000h, 12000h, 13000h, and a page at 20000h that it maps at 0.
constexpr std::uint64_t kNested = 0x1000, kMoved = 0x10'0000, kMemory = 0x40'0000;
constexpr std::uint64_t kTables = 0x1'0000, kPage = 0x2'0000;
constexpr std::uint64_t kAll = 7;

class WalkInspection : public testing::Test {
 protected:
  WalkInspection() {
    state_ = {.cr0 = kCr0Pe | kCr0Pg | kCr0Wp,
              .cr3 = kTables,
              .cr4 = kCr4Pae,
              .efer = kEferLme | kEferLma | kEferNxe};
    UseFormat(ExplicitSecondStage(true));
  }

  // Every page of the guest's first 2 MiB is `kMoved` above in the hypervisor's memory.
  void UseFormat(const PageFormat& format) {
    nested_ = {.format = format, .root = Gpa(kNested), .level = Level::kPml4};
    const std::uint64_t all = GrantMask(format.layout) | format.layout.present;
    for (std::uint64_t level = 0; level < 3; ++level) {
      Set(kNested + 0x1000 * level, (kNested + 0x1000 * (level + 1)) | all);
    }
    for (std::uint64_t page = 0; page < 512; ++page) {
      Set(kNested + 0x3000 + 8 * page, (kMoved + 0x1000 * page) | all);
    }
    for (std::uint64_t level = 0; level < 3; ++level) {
      Set(kMoved + kTables + 0x1000 * level, (kTables + 0x1000 * (level + 1)) | kAll | 0x20);
    }
    Set(kMoved + kTables + 0x3000, kPage | kAll | 0x60);
  }

  std::uint64_t* At(std::uint64_t gpa) {
    return reinterpret_cast<std::uint64_t*>(memory_.Find(GfnOf(Gpa(gpa)))->HostOf(Gpa(gpa)));
  }
  void Set(std::uint64_t gpa, std::uint64_t entry) { *At(gpa) = entry; }
  // The nested entry that maps the guest's page `ngpa`.
  static std::uint64_t NestedPte(std::uint64_t ngpa) { return kNested + 0x3000 + 8 * (ngpa >> 12); }

  InspectedWalk Walk(std::uint64_t linear, Access access) {
    std::vector<std::byte> before(kMemory);
    std::memcpy(before.data(), At(0), kMemory);
    const InspectedWalk walk =
        InspectLinear(memory_, state_, &nested_, InputAddress(linear), access);
    EXPECT_EQ(std::memcmp(before.data(), At(0), kMemory), 0) << "changed by looking";
    return walk;
  }

  TestMemory memory_{kMemory};
  PagingState state_;
  NestedPaging nested_;
};

TEST_F(WalkInspection, EveryTableAndTheFinalAddressIsTranslated) {
  const InspectedWalk walk = Walk(0x123, kRead);
  ASSERT_TRUE(walk.result);
  EXPECT_EQ(walk.result->output.bits(), kPage + 0x123);
  ASSERT_EQ(walk.trace.steps().size(), 4u);
  ASSERT_EQ(walk.nested.size(), 5u);
  for (unsigned i = 0; i < 4; ++i) {
    EXPECT_EQ(walk.nested[i].stage, Stage::kTable);
    EXPECT_EQ(Number(walk.nested[i].level), 4 - i);
    EXPECT_EQ(walk.nested[i].address.bits(), kTables + 0x1000 * i);
    ASSERT_TRUE(walk.nested[i].result);
    EXPECT_EQ(walk.nested[i].result->output.bits(), kMoved + kTables + 0x1000 * i);
    EXPECT_EQ(walk.nested[i].trace.steps().size(), 4u);
  }
  EXPECT_EQ(walk.nested[4].stage, Stage::kFinal);
  EXPECT_EQ(walk.nested[4].address.bits(), kPage + 0x123);
  EXPECT_EQ(walk.nested[4].result->output.bits(), kMoved + kPage + 0x123);
}

TEST_F(WalkInspection, MeetsEntriesInTheOrderOfAProcessor) {
  nested_.format.accessed_dirty = false;
  const InspectedWalk walk = Walk(0, kWrite);
  ASSERT_TRUE(walk.result);
  // Four nested entries and the guest's own at each of four levels, four more and the page.
  ASSERT_EQ(walk.met.size(), 25u);
  EXPECT_EQ(walk.met[0].gpa.bits(), kNested);
  EXPECT_EQ(walk.met[4].gpa.bits(), kMoved + kTables);
  EXPECT_EQ(walk.met[4].stage, Stage::kTable);
  EXPECT_EQ(walk.met[24].gpa.bits(), kMoved + kPage);
  EXPECT_EQ(walk.met[24].stage, Stage::kFinal);
  EXPECT_TRUE(walk.met[24].access.is_write());
}

TEST_F(WalkInspection, WhatNestedTablesRefuseIsTheLastOfTheirWalks) {
  Set(NestedPte(kTables + 0x1000), 0);
  const InspectedWalk walk = Walk(0, kRead);
  ASSERT_FALSE(walk.result);
  EXPECT_EQ(walk.result.fault().kind, Kind::kSecondStage);
  EXPECT_EQ(walk.result.fault().level, Level::kPdpt);
  EXPECT_EQ(walk.trace.steps().size(), 1u);
  ASSERT_EQ(walk.nested.size(), 2u);
  EXPECT_EQ(walk.nested[1].level, Level::kPdpt);
  EXPECT_EQ(walk.nested[1].result.fault().kind, Kind::kNotPresent);
}

TEST_F(WalkInspection, TheGuestsOwnRefusalComesBeforeThatOfItsFinalAddress) {
  Set(NestedPte(kPage), 0);
  Set(kMoved + kTables + 0x3000, kPage | 5 | 0x20);
  const InspectedWalk write = Walk(0, kWrite);
  EXPECT_EQ(write.result.fault().kind, Kind::kRights);
  EXPECT_EQ(write.nested.size(), 4u);
  const InspectedWalk read = Walk(0, kRead);
  EXPECT_EQ(read.result.fault().kind, Kind::kSecondStage);
  EXPECT_EQ(read.nested.back().stage, Stage::kFinal);
}

// A table that the hypervisor lets be read only, and an entry of it that wants A or D.
TEST_F(WalkInspection, SettingAOrDIsAWriteThatNestedTablesMayRefuse) {
  const std::uint64_t table = kTables + 0x3000;
  const std::uint64_t write = nested_.format.layout.write;
  *At(NestedPte(table)) &= ~write;
  EXPECT_TRUE(Walk(0, kWrite).result);
  *At(kMoved + table) &= ~std::uint64_t{0x40};
  EXPECT_TRUE(Walk(0, kRead).result);
  const InspectedWalk dirty = Walk(0, kWrite);
  ASSERT_FALSE(dirty.result);
  EXPECT_EQ(dirty.result.fault().kind, Kind::kSecondStage);
  EXPECT_EQ(dirty.result.fault().level, Level::kPt);
  EXPECT_EQ(dirty.nested.size(), 6u);
  EXPECT_EQ(dirty.nested.back().stage, Stage::kTable);
  EXPECT_EQ(dirty.nested.back().level, Level::kPt);
  EXPECT_TRUE(dirty.nested.back().access.is_write());
  *At(kMoved + table) &= ~std::uint64_t{0x60};
  EXPECT_FALSE(Walk(0, kRead).result);
  // Where accesses to tables are writes, it does not come that far.
  nested_.tables_are_written = true;
  const InspectedWalk written = Walk(0, kRead);
  EXPECT_EQ(written.nested.size(), 4u);
  EXPECT_EQ(written.nested.back().result.fault().kind, Kind::kRights);
}

TEST_F(WalkInspection, AAndDOfBothStagesAreAmongWhatIsWritten) {
  const auto writes_to = [](const InspectedWalk& walk, std::uint64_t gpa) {
    unsigned count = 0;
    for (const MetAccess& met : walk.met) {
      count += met.gpa.bits() == gpa && met.access.is_write() ? 1 : 0;
    }
    return count;
  };
  *At(kMoved + kTables) &= ~std::uint64_t{0x20};
  const InspectedWalk walk = Walk(0, kRead);
  ASSERT_TRUE(walk.result);
  EXPECT_EQ(writes_to(walk, kMoved + kTables), 1u);
  EXPECT_EQ(writes_to(walk, kMoved + kTables + 0x1000), 0u);
  EXPECT_GT(writes_to(walk, NestedPte(kPage)), 0u);
  nested_.format.accessed_dirty = false;
  EXPECT_EQ(writes_to(Walk(0, kRead), NestedPte(kPage)), 0u);
}

// XU of the nested tables judges pages that the guest's tables make a user's.
TEST_F(WalkInspection, WhoseFetchItIsTheGuestsPageSays) {
  const Access fetch = Access::Fetch(Privilege::kUser);
  *At(NestedPte(kPage)) &= ~nested_.format.layout.exec_user;
  EXPECT_FALSE(Walk(0, fetch).result);
  for (std::uint64_t level = 0; level < 4; ++level) {
    *At(kMoved + kTables + 0x1000 * level) &= ~std::uint64_t{4};
  }
  EXPECT_TRUE(Walk(0, Access::Fetch(Privilege::kSupervisor)).result);
}

TEST_F(WalkInspection, PdptesAreRegistersOrInMemory) {
  state_ = {.cr0 = kCr0Pe | kCr0Pg, .cr3 = kTables, .cr4 = kCr4Pae};
  Set(kMoved + kTables, (kTables + 0x2000) | 1);
  state_.pdptes[0] = (kTables + 0x2000) | 1;
  InspectedWalk walk = Walk(0, kRead);
  ASSERT_TRUE(walk.result);
  ASSERT_EQ(walk.trace.steps().size(), 3u);
  ASSERT_EQ(walk.nested.size(), 3u);
  EXPECT_EQ(walk.nested[0].level, Level::kPd);
  state_.pdptes[0] = 0;
  EXPECT_EQ(Walk(0, kRead).result.fault().kind, Kind::kNotPresent);
  nested_.pdptes_in_memory = true;
  walk = Walk(0, kRead);
  ASSERT_TRUE(walk.result);
  ASSERT_EQ(walk.nested.size(), 4u);
  EXPECT_EQ(walk.nested[0].level, Level::kPdpt);
  Set(NestedPte(kTables), 0);
  walk = Walk(0, kRead);
  EXPECT_EQ(walk.result.fault().kind, Kind::kSecondStage);
  EXPECT_EQ(walk.result.fault().level, Level::kPdpt);
  EXPECT_EQ(walk.nested.back().level, Level::kPdpt);
}

TEST_F(WalkInspection, WithoutPagingOnlyTheFinalAddressIsTranslated) {
  state_ = {.cr0 = kCr0Pe};
  const InspectedWalk walk = Walk(kPage, kRead);
  ASSERT_TRUE(walk.result);
  ASSERT_EQ(walk.nested.size(), 1u);
  EXPECT_EQ(walk.nested[0].stage, Stage::kFinal);
  EXPECT_FALSE(Walk(0x1'2345'6789, kRead).result);
}

// -- hostile tables: each has an answer of a bounded size

struct Hostile {
  const char* name;
  std::uint64_t where, entry;
  Kind kind;         // of the walk of the linear address
  Kind nested_kind;  // of the last nested one, if that was refused
};
class HostileTables : public WalkInspection, public testing::WithParamInterface<Hostile> {};

TEST_P(HostileTables, HaveAnAnswer) {
  const Hostile& row = GetParam();
  Set(row.where, row.entry);
  const InspectedWalk walk = Walk(0, kRead);
  ASSERT_FALSE(walk.result);
  EXPECT_EQ(walk.result.fault().kind, row.kind);
  EXPECT_LE(walk.nested.size(), 6u);
  if (row.kind == Kind::kSecondStage) {
    EXPECT_EQ(walk.nested.back().result.fault().kind, row.nested_kind);
  }
}

constexpr std::uint64_t kNestedAll = 0x407, kFar = 0x000f'ffff'f000;

INSTANTIATE_TEST_SUITE_P(
    Tables, HostileTables,
    testing::Values(
        // Nested tables that lead to themselves: the last level is no page of the guest's tables.
        Hostile{"NestedLoop", kNested, kNested | kNestedAll, Kind::kSecondStage, Kind::kNotPresent},
        Hostile{"NestedNowhere", kNested, kFar | kNestedAll, Kind::kSecondStage, Kind::kNoMemory},
        Hostile{"NestedDevice", kNested + 0x2000, 0xfee0'0000 | kNestedAll, Kind::kSecondStage,
                Kind::kNoMemory},
        Hostile{"NestedMalformed", kNested + 0x1000, (kNested + 0x2000) | 2, Kind::kSecondStage,
                Kind::kMalformed},
        // Beyond what four levels of nested tables reach.
        Hostile{
            "OwnBeyond", kMoved + kTables, (std::uint64_t{1} << 50) | kAll, Kind::kMalformed, {}},
        Hostile{"OwnNotMapped", kMoved + kTables, 0x4000'0000 | kAll, Kind::kSecondStage,
                Kind::kNotPresent},
        Hostile{"OwnInNoMemory",
                kNested + 0x3000 + 8 * (kTables >> 12),
                kFar | kNestedAll,
                Kind::kNoMemory,
                {}},
        Hostile{"OwnIsDevice",
                kNested + 0x3000 + 8 * ((kTables + 0x2000) >> 12),
                0xfec0'0000 | kNestedAll,
                Kind::kNoMemory,
                {}}),
    [](const auto& info) { return info.param.name; });

TEST_F(WalkInspection, OwnTablesThatAreTheirOwnEndInAPage) {
  Set(kMoved + kTables, kTables | kAll | 0x60);
  const InspectedWalk walk = Walk(0, kRead);
  ASSERT_TRUE(walk.result);
  EXPECT_EQ(walk.result->output.bits(), kTables);
  EXPECT_EQ(walk.nested.size(), 5u);
}

TEST_F(WalkInspection, PhysicalAddressesGoThroughNestedTablesAlone) {
  const InspectedWalk walk = InspectPhysical(memory_, nested_, InputAddress(kPage + 8), kWrite);
  ASSERT_TRUE(walk.result);
  EXPECT_EQ(walk.result->output.bits(), kMoved + kPage + 8);
  EXPECT_TRUE(walk.nested.empty());
  EXPECT_FALSE(
      InspectPhysical(memory_, nested_, InputAddress(std::uint64_t{1} << 48), kRead).result);
}

}  // namespace
}  // namespace pagesaw
