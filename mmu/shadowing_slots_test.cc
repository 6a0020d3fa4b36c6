// Shadow paging while memory slots change, writes are logged and trees are zapped.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_memory;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

constexpr std::uint64_t kMib = 1u << 20;
constexpr Access kRead = Access::Read(Privilege::kSupervisor);
constexpr Access kWrite = Access::Write(Privilege::kSupervisor);
constexpr std::uint64_t kPresent = 1, kWritable = 2, kAccessed = 0x20, kDirty = 0x40, kLarge = 0x80;
constexpr std::uint64_t kUsed = kPresent | kWritable | kAccessed | kDirty;
using Pages = std::vector<std::uint64_t>;

class CountingFlusher final : public TlbFlusher {
 public:
  void FlushAll() override { ++count; }
  unsigned count = 0;
};

// Linear 0 to 2 MiB goes through the table at 4000h, which maps nothing yet; 2 to 16 MiB and 32 to
// 40 MiB are mapped on themselves by 2 MiB. RAM is 0 to 16 MiB; a second slot 32 to 40 MiB.
class ShadowingSlots : public testing::TestWithParam<DirtyLogMethod> {
 protected:
  ShadowingSlots() {
    ram_ = memory_.AddSlot(Gpa(0), 16 * kMib);
    other_ = memory_.AddSlot(Gpa(32 * kMib), 8 * kMib);
    SetEntry(0x1000, 0, 0x2000 | kUsed);
    SetEntry(0x2000, 0, 0x3000 | kUsed);
    SetEntry(0x3000, 0, 0x4000 | kUsed);
    for (unsigned i = 1; i < 20; ++i) SetEntry(0x3000, i, std::uint64_t{i} << 21 | kUsed | kLarge);
    state_ = {.cr0 = kCr0Pe | kCr0Pg | kCr0Wp,
              .cr3 = 0x1000,
              .cr4 = kCr4Pae,
              .efer = kEferLme | kEferLma | kEferNxe};
    walker_.Reset(state_);
    mmu_->PagingChanged(state_, {});
    root_ = mmu_->Root();
  }
  void TearDown() override {
    const ShadowPages::Lock lock = pages_.Acquire();
    EXPECT_EQ(pages_.Audit(), std::nullopt);
  }

  void SetEntry(std::uint64_t table, unsigned index, std::uint64_t entry) {
    memory_.Write<std::uint64_t>(Gpa(table + 8 * index), entry);
  }
  FaultOutcome Fault(std::uint64_t linear, Access access) {
    return mmu_->HandleFault({.address = InputAddress(linear), .access = access}).outcome;
  }
  bool Allows(std::uint64_t linear, Access access) {
    return static_cast<bool>(mmu_->Inspect(InputAddress(linear), access, nullptr));
  }
  // As a processor: faults until it may, and sets A and D.
  FaultOutcome Touch(std::uint64_t linear, Access access) {
    FaultOutcome last = FaultOutcome::kSpurious;
    for (int tries = 0; tries < 4; ++tries) {
      if (mmu_->roots_obsolete()) root_ = mmu_->Root();
      HostTableSpace<true> space;
      if (WalkTables<AnyLayout>(mmu_->format(),
                                {.table = OutputAddress(root_.table.bits()),
                                 .level = root_.level,
                                 .address = InputAddress(linear),
                                 .access = access},
                                space)) {
        break;
      }
      last = Fault(linear, access);
    }
    return last;
  }
  Pages Take(const MemorySlot& slot) {
    const auto words = pages_.TakeDirtyLog(slot.id);
    EXPECT_TRUE(words.has_value());
    Pages pages;
    for (std::uint64_t page = 0; words && page < words->size() * 64; ++page) {
      if (((*words)[page / 64] >> page % 64 & 1) != 0) pages.push_back(page);
    }
    return pages;
  }

  TestMemory memory_;
  CountingFlusher flusher_;
  GuestTables tables_{memory_, PagingFeatures()};
  ShadowPages pages_{SpteCodec(LinearSpteFormat()), flusher_, 1000, &tables_};
  CpuWalker walker_{memory_, &pages_.dirty_logs()};
  std::unique_ptr<ShadowingMmu> mmu_ = ShadowingMmu::Make(pages_, memory_, tables_, walker_);
  MemorySlot ram_, other_;
  PagingState state_;
  ShadowRoot root_;
};

INSTANTIATE_TEST_SUITE_P(Methods, ShadowingSlots,
                         testing::Values(DirtyLogMethod::kWriteProtect, DirtyLogMethod::kDirtyBits),
                         [](const auto& info) {
                           return info.param == DirtyLogMethod::kDirtyBits ? "DirtyBits"
                                                                           : "WriteProtect";
                         });

TEST_P(ShadowingSlots, LogTellsOfWritesThroughEveryMapping) {
  SetEntry(0x4000, 8, 0x8000 | kUsed);
  SetEntry(0x4000, 9, 0x8000 | kUsed);
  ASSERT_TRUE(pages_.StartDirtyLog(ram_, GetParam()));
  Touch(0x8000, kRead);
  Touch(0x9000, kRead);
  EXPECT_EQ(Take(ram_), Pages{});
  Touch(0x9000, kWrite);
  EXPECT_EQ(Take(ram_), Pages{8});
  Touch(0x8000, kWrite);
  EXPECT_EQ(Take(ram_), Pages{8});
  EXPECT_EQ(Take(ram_), Pages{});
}

// Large pages of a slot whose log begins stay until they are written; the audit knows.
TEST_P(ShadowingSlots, LargePagesThatAreReadOutliveTheStartOfALog) {
  Touch(2 * kMib, kRead);
  ASSERT_TRUE(pages_.StartDirtyLog(ram_, GetParam()));
  EXPECT_EQ(pages_.Statistics().pages_2m, 1u);
  EXPECT_TRUE(Allows(2 * kMib, kRead));
  EXPECT_FALSE(Allows(2 * kMib, kWrite));
  const ShadowPages::Lock lock = pages_.Acquire();
  EXPECT_EQ(pages_.Audit(), std::nullopt);
}

TEST_P(ShadowingSlots, LogTellsOfAccessedAndDirtyThatWalksSet) {
  SetEntry(0x4000, 8, 0x8000 | kPresent | kWritable);
  ASSERT_TRUE(pages_.StartDirtyLog(ram_, GetParam()));
  Touch(0x8000, kRead);
  EXPECT_EQ(Take(ram_), Pages{4}) << "A in the page table";
  Touch(0x8000, kWrite);
  EXPECT_EQ(Take(ram_), (Pages{4, 8})) << "D in the page table, and the write";
}

// A write to a table of the lowest level is let through; one to another table the processor makes.
TEST_P(ShadowingSlots, LogTellsOfWritesToTables) {
  SetEntry(0x4000, 3, 0x3000 | kUsed);
  SetEntry(0x4000, 4, 0x4000 | kUsed);
  ASSERT_TRUE(pages_.StartDirtyLog(ram_, GetParam()));
  EXPECT_EQ(Fault(0x3000, kWrite), FaultOutcome::kWriteProtected);
  EXPECT_EQ(Take(ram_), Pages{});
  mmu_->GuestWrote(Gpa(0x3000), kPageBytes);
  EXPECT_EQ(Take(ram_), Pages{3});
  Touch(0x4000, kWrite);
  EXPECT_TRUE(Allows(0x4000, kWrite));
  EXPECT_EQ(Take(ram_), Pages{4});
}

// What D in an SPTE said is not lost when the SPTE is write-protected.
TEST_P(ShadowingSlots, LogTellsOfWritesToAPageThatThenBecomesATable) {
  SetEntry(0x4000, 5, 0x5000 | kUsed);
  ASSERT_TRUE(pages_.StartDirtyLog(ram_, GetParam()));
  Touch(0x5000, kRead);
  Touch(0x5000, kWrite);
  SetEntry(0x3000, 30, 0x5000 | kUsed);
  SetEntry(0x5000, 0, 0x8000 | kUsed);
  Touch(std::uint64_t{30} << 21, kRead);
  ASSERT_FALSE(Allows(0x5000, kWrite));
  EXPECT_EQ(Take(ram_), Pages{5});
}

// The fast path must not open a table that is watched.
TEST_P(ShadowingSlots, TablesThatAreWatchedStayProtectedWhileLogged) {
  SetEntry(0x4000, 5, 0x5000 | kUsed);
  ASSERT_TRUE(pages_.StartDirtyLog(ram_, GetParam()));
  Touch(0x5000, kWrite);
  static_cast<void>(Take(ram_));
  SetEntry(0x3000, 30, 0x5000 | kUsed);  // 5000h becomes a table
  mmu_->GuestWrote(Gpa(0x3000 + 8 * 30), 8);
  SetEntry(0x5000, 0, 0x8000 | kUsed);
  EXPECT_EQ(Touch(std::uint64_t{30} << 21, kRead), FaultOutcome::kFixed);
  EXPECT_FALSE(Allows(0x5000, kWrite));
  {
    const ShadowPages::Lock lock = pages_.Acquire();
    EXPECT_EQ(pages_.Audit(), std::nullopt);
  }
}

TEST_P(ShadowingSlots, LargePagesComeBackWhenTheLogStops) {
  Touch(34 * kMib, kWrite);
  ASSERT_EQ(pages_.Statistics().pages_2m, 1u);
  ASSERT_TRUE(pages_.StartDirtyLog(other_, GetParam()));
  Touch(34 * kMib + 0x3000, kWrite);
  Touch(36 * kMib, kRead);
  EXPECT_EQ(pages_.Statistics().pages_2m, 0u);
  EXPECT_EQ(pages_.Statistics().pages_4k, 2u);
  EXPECT_EQ(Take(other_), Pages{0x203});
  EXPECT_TRUE(pages_.StopDirtyLog(other_.id));
  EXPECT_EQ(pages_.Statistics().pages_4k, 0u);
  Touch(34 * kMib, kWrite);
  Touch(36 * kMib, kRead);
  EXPECT_EQ(pages_.Statistics().pages_2m, 2u);
}

TEST_P(ShadowingSlots, FirstWriteToAProtectedPageTakesNoLock) {
  SetEntry(0x4000, 8, 0x8000 | kUsed);
  ASSERT_TRUE(pages_.StartDirtyLog(ram_, DirtyLogMethod::kWriteProtect));
  Touch(0x8000, kWrite);
  static_cast<void>(Take(ram_));
  ASSERT_FALSE(Allows(0x8000, kWrite));
  {
    const ShadowPages::Lock lock = pages_.Acquire();
    EXPECT_EQ(Fault(0x8000, kWrite), FaultOutcome::kFixed);
  }
  EXPECT_EQ(Take(ram_), Pages{8});
}

// What the guest's own tables refuse does not come back with the right that a log took.
TEST_P(ShadowingSlots, FirstWriteToACleanPageStillSetsDirty) {
  SetEntry(0x4000, 8, 0x8000 | kPresent | kWritable);
  ASSERT_TRUE(pages_.StartDirtyLog(ram_, GetParam()));
  Touch(0x8000, kRead);
  static_cast<void>(Take(ram_));
  EXPECT_EQ(memory_.Read<std::uint64_t>(Gpa(0x4040)) & kDirty, 0u);
  Touch(0x8000, kWrite);
  EXPECT_EQ(memory_.Read<std::uint64_t>(Gpa(0x4040)) & kDirty, kDirty);
}

TEST_P(ShadowingSlots, AgingCountsFramesOnceWhoeverMapsThem) {
  SetEntry(0x4000, 8, 0x8000 | kUsed);
  SetEntry(0x4000, 9, 0x8000 | kUsed);
  Touch(0x8000, kRead);
  Touch(0x9000, kRead);
  EXPECT_EQ(pages_.TestAndClearYoung(Gfn{0}, 0x1000), 1u);
  EXPECT_EQ(pages_.TestAndClearYoung(Gfn{0}, 0x1000), 0u);
  Touch(0x9000, kRead);
  EXPECT_EQ(pages_.TestAndClearYoung(Gfn{8}, 1), 1u);
}

TEST_P(ShadowingSlots, SlotsThatGoTakeTheirOwnMappingsOnly) {
  SetEntry(0x4000, 8, 0x8000 | kUsed);
  Touch(0x8000, kWrite);
  Touch(34 * kMib, kWrite);
  const std::uint64_t made = pages_.Statistics().shadow_pages_made;
  memory_.RemoveSlot(other_.first);
  const unsigned flushes = flusher_.count;
  pages_.SlotsChanged(other_.first, other_.page_count);
  EXPECT_EQ(flusher_.count, flushes + 1);
  EXPECT_FALSE(Allows(34 * kMib, kRead));
  EXPECT_TRUE(Allows(0x8000, kWrite)) << "another slot's";
  EXPECT_EQ(Touch(34 * kMib, kRead), FaultOutcome::kMmio);
  EXPECT_LE(pages_.Statistics().shadow_pages_made, made + 1) << "the tree is still there";
}

// A table that lies in memory that is gone maps nothing any more.
TEST_P(ShadowingSlots, TablesInASlotThatGoesAreForgotten) {
  const std::uint64_t table = 33 * kMib;
  SetEntry(table, 0, 0x8000 | kUsed);
  SetEntry(0x3000, 30, table | kUsed);
  const std::uint64_t linear = std::uint64_t{30} << 21;
  ASSERT_EQ(Touch(linear, kRead), FaultOutcome::kFixed);
  memory_.RemoveSlot(other_.first);
  pages_.SlotsChanged(other_.first, other_.page_count);
  EXPECT_FALSE(Allows(linear, kRead));
}

TEST_P(ShadowingSlots, ZappingAllFreesEveryPageAndAsksForNewRoots) {
  SetEntry(0x4000, 8, 0x8000 | kUsed);
  Touch(0x8000, kWrite);
  Touch(34 * kMib, kWrite);
  EXPECT_FALSE(mmu_->roots_obsolete());
  pages_.ZapAll();
  EXPECT_TRUE(mmu_->roots_obsolete());
  EXPECT_LE(pages_.Statistics().shadow_pages, 1u) << "but the empty root";
  EXPECT_EQ(pages_.Statistics().pages_4k + pages_.Statistics().pages_2m, 0u);
  EXPECT_EQ(Touch(0x8000, kWrite), FaultOutcome::kFixed);
  EXPECT_TRUE(Allows(0x8000, kWrite));
}

}  // namespace
}  // namespace pagesaw
