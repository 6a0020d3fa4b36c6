// Dirty logging, aging and the faults that need no lock, in trees that map guest physical
// addresses.
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.direct_mmu;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_formats;
import pagesaw.mmu.test_memory;

namespace pagesaw {
namespace {

constexpr std::uint64_t kMib = 1u << 20;
constexpr Access kRead = Access::Read(Privilege::kUser);
constexpr Access kWrite = Access::Write(Privilege::kUser);
using Pages = std::vector<std::uint64_t>;

// Runs `while_flushing`, as a processor runs on until it hears of the flush.
class Flusher final : public TlbFlusher {
 public:
  void FlushAll() override {
    ++count;
    if (while_flushing) while_flushing();
  }
  unsigned count = 0;
  std::function<void()> while_flushing;
};

PageFormat WithoutAccessedDirty(PageFormat format) {
  format.accessed_dirty = false;
  return format;
}

struct Case {
  const char* name;
  PageFormat (*make)();
  DirtyLogMethod method;
};

class DirtyLogging : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    pages_ = std::make_unique<ShadowPages>(SpteCodec(GetParam().make()), flusher_, 1000);
    mmu_ = DirectMmu::Make(*pages_, memory_, walker_, Level::kPml4);
    slot_ = memory_.AddSlot(Gpa(0), 8 * kMib);
  }
  void TearDown() override { EXPECT_EQ(pages_->Audit(), std::nullopt); }

  FaultOutcome Fault(std::uint64_t address, Access access) {
    return mmu_->HandleFault({.address = InputAddress(address), .access = access}).outcome;
  }
  // What a processor does: walks, faults until it may, and sets A and D.
  void Touch(std::uint64_t address, Access access) {
    for (int tries = 0; tries < 4; ++tries) {
      if (mmu_->Inspect(InputAddress(address), access, nullptr)) break;
      Fault(address, access);
    }
    const WalkResult walk = mmu_->Inspect(InputAddress(address), access, nullptr);
    ASSERT_TRUE(walk) << std::hex << address;
    const PageFormat& format = mmu_->format();
    if (!format.accessed_dirty) return;
    const std::uint64_t bits =
        format.layout.accessed | (access.is_write() ? format.layout.dirty : 0);
    std::atomic_ref(*SpteAt(address)).fetch_or(bits);
  }
  std::uint64_t* SpteAt(std::uint64_t address) {
    WalkTrace trace;
    static_cast<void>(mmu_->Inspect(InputAddress(address), kRead, &trace));
    return reinterpret_cast<std::uint64_t*>(trace.steps().back().entry_address.bits());
  }
  void Start() { ASSERT_TRUE(pages_->StartDirtyLog(slot_, GetParam().method)); }
  Pages Take() {
    const auto words = pages_->TakeDirtyLog(slot_.id);
    EXPECT_TRUE(words.has_value());
    Pages pages;
    for (std::uint64_t page = 0; words && page < words->size() * 64; ++page) {
      if (((*words)[page / 64] >> page % 64 & 1) != 0) pages.push_back(page);
    }
    return pages;
  }

  TestMemory memory_;
  Flusher flusher_;
  CpuWalker walker_{memory_};
  std::unique_ptr<ShadowPages> pages_;
  std::unique_ptr<DirectMmu> mmu_;
  MemorySlot slot_;
};

INSTANTIATE_TEST_SUITE_P(
    Methods, DirtyLogging,
    testing::Values(Case{"LegacyByWriteProtection", [] { return LegacySecondStage(false); },
                         DirtyLogMethod::kWriteProtect},
                    Case{"LegacyByDirtyBits", [] { return LegacySecondStage(true); },
                         DirtyLogMethod::kDirtyBits},
                    Case{"ExplicitByWriteProtection", [] { return ExplicitSecondStage(true); },
                         DirtyLogMethod::kWriteProtect},
                    Case{"ExplicitByDirtyBits", [] { return ExplicitSecondStage(false); },
                         DirtyLogMethod::kDirtyBits},
                    Case{"WithoutAccessedAndDirty",
                         [] { return WithoutAccessedDirty(ExplicitSecondStage(false)); },
                         DirtyLogMethod::kWriteProtect}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(DirtyLogging, TellsOfEachWriteOnceAndOfNoRead) {
  Start();
  EXPECT_EQ(Take(), Pages{});
  Touch(0x1000, kWrite);
  Touch(0x2000, kRead);
  Touch(0x7f'f008, kWrite);
  EXPECT_EQ(Take(), (Pages{1, 0x7ff}));
  EXPECT_EQ(Take(), Pages{});
  Touch(0x2000, kWrite);
  Touch(0x1000, kRead);
  EXPECT_EQ(Take(), Pages{2});
  Touch(0x1000, kWrite);
  EXPECT_EQ(Take(), Pages{1});
}

TEST_P(DirtyLogging, WritesBeforeTheStartAreNotInTheLog) {
  Touch(0x1000, kWrite);
  Start();
  EXPECT_EQ(Take(), Pages{});
  Touch(0x1000, kWrite);
  EXPECT_EQ(Take(), Pages{1});
}

TEST_P(DirtyLogging, LargePagesAreBrokenByTheirFirstWriteAndComeBack) {
  Touch(0x1000, kRead);
  Touch(2 * kMib, kWrite);
  ASSERT_EQ(pages_->Statistics().pages_2m, 2u);
  Start();
  Touch(0x1000, kRead);
  EXPECT_EQ(pages_->Statistics().pages_2m, 2u) << "reading breaks nothing";
  Touch(0x1000, kWrite);
  Touch(2 * kMib + 0x5000, kWrite);
  Touch(4 * kMib, kRead);
  EXPECT_EQ(pages_->Statistics().pages_2m, 0u);
  EXPECT_EQ(pages_->Statistics().pages_4k, 3u);
  EXPECT_EQ(Take(), (Pages{1, 0x205}));

  EXPECT_TRUE(pages_->StopDirtyLog(slot_.id));
  EXPECT_EQ(pages_->Statistics().pages_4k, 0u);
  for (std::uint64_t address : {0x1000ul, 2 * kMib, 4 * kMib}) Touch(address, kWrite);
  EXPECT_EQ(pages_->Statistics().pages_2m, 3u);
}

TEST_P(DirtyLogging, WritesByOtherMeansAreInTheLog) {
  Start();
  pages_->GuestWrote(Gpa(0x3ff8), 16);
  EXPECT_EQ(Take(), (Pages{3, 4}));
  EXPECT_EQ(Take(), Pages{});
}

// As a processor's own writes to a control block in guest memory are told.
TEST_P(DirtyLogging, WritesThatTheShadowMmuIsToldOfAreInTheLog) {
  Start();
  ShadowMmu& mmu = *mmu_;
  mmu.GuestWrote(Gpa(0x5000), kPageBytes);
  EXPECT_EQ(Take(), Pages{5});
  EXPECT_EQ(Take(), Pages{});
}

TEST_P(DirtyLogging, SptesThatGoTakeNoWriteWithThem) {
  Start();
  Touch(0x1000, kWrite);
  pages_->AllSlotsChanged();
  EXPECT_EQ(Take(), Pages{1});
}

TEST_P(DirtyLogging, WritesWhileTheLogIsReadAreToldOfByThisCallOrTheNext) {
  Start();
  Touch(0x1000, kWrite);
  // Processor A still has its old translation when the log is read; B faults meanwhile.
  flusher_.while_flushing = [this] {
    flusher_.while_flushing = nullptr;
    Touch(0x2000, kWrite);
    Touch(0x1000, kWrite);
  };
  EXPECT_EQ(Take(), Pages{1});
  EXPECT_EQ(Take(), (Pages{1, 2}));
}

// A page whose SPTE went while some TLB still has it is told of only after that TLB was flushed.
TEST_P(DirtyLogging, EveryReadingFlushes) {
  Start();
  const unsigned before = flusher_.count;
  EXPECT_EQ(Take(), Pages{});
  EXPECT_EQ(flusher_.count, before + 1);
}

TEST_P(DirtyLogging, OneLogASlot) {
  Start();
  EXPECT_FALSE(pages_->StartDirtyLog(slot_, GetParam().method));
  EXPECT_TRUE(pages_->StopDirtyLog(slot_.id));
  EXPECT_FALSE(pages_->StopDirtyLog(slot_.id));
  EXPECT_EQ(pages_->TakeDirtyLog(slot_.id), std::nullopt);
  Start();
  Touch(0, kWrite);
  EXPECT_EQ(Take(), Pages{0});
}

TEST_P(DirtyLogging, OtherSlotsAreNotTouched) {
  memory_.AddSlot(Gpa(16 * kMib), 2 * kMib);
  Touch(16 * kMib, kWrite);
  Start();
  Touch(16 * kMib, kWrite);
  EXPECT_EQ(pages_->Statistics().pages_2m, 1u);
  EXPECT_EQ(Take(), Pages{});
}

// The first write to a page that a log protects takes no lock: it is fixed while this thread has
// it.
TEST_P(DirtyLogging, RightsThatALogTookAreGivenBackWithoutTheLock) {
  Start();
  Touch(0x1000, kWrite);
  ASSERT_EQ(Take(), Pages{1});
  const bool protects = GetParam().method == DirtyLogMethod::kWriteProtect;
  {
    const ShadowPages::Lock lock = pages_->Acquire();
    EXPECT_EQ(Fault(0x1000, kWrite), protects ? FaultOutcome::kFixed : FaultOutcome::kSpurious);
  }
  EXPECT_EQ(pages_->Statistics().faults_fixed_unlocked, protects ? 1u : 0u);
  if (protects) {
    EXPECT_EQ(Take(), Pages{1});
  }
}

TEST_P(DirtyLogging, ReadOnlySlotsStayReadOnly) {
  const MemorySlot rom = memory_.AddSlot(Gpa(16 * kMib), kMib, true);
  ASSERT_TRUE(pages_->StartDirtyLog(rom, GetParam().method));
  Touch(16 * kMib, kRead);
  EXPECT_EQ(Fault(16 * kMib, kWrite), FaultOutcome::kMmio);
  const auto words = pages_->TakeDirtyLog(rom.id);
  ASSERT_TRUE(words.has_value());
  for (std::uint64_t word : *words) EXPECT_EQ(word, 0u);
}

TEST_P(DirtyLogging, AgingCountsWhatWasTouchedSince) {
  Touch(0x1000, kRead);  // a large page
  ASSERT_EQ(Fault(16 * kMib, kRead), FaultOutcome::kMmio);
  EXPECT_EQ(pages_->TestAndClearYoung(Gfn{0}, 0x10000), 512u);
  EXPECT_EQ(pages_->TestAndClearYoung(Gfn{0}, 0x10000), 0u);
  Touch(0x1000, kRead);
  EXPECT_EQ(pages_->TestAndClearYoung(Gfn{0x100}, 0x10), 16u) << "of a part of a page";
  Touch(0x1000, kWrite);
  EXPECT_EQ(pages_->TestAndClearYoung(Gfn{0}, 512), 512u);
  EXPECT_EQ(pages_->Statistics().pages_2m, 1u) << "still mapped";
}

TEST_P(DirtyLogging, AgedPagesAreGivenBackWithoutTheLock) {
  Start();
  Touch(0x1000, kWrite);
  Touch(0x2000, kRead);
  static_cast<void>(Take());
  ASSERT_EQ(pages_->TestAndClearYoung(Gfn{0}, 16), 2u);
  const bool tracked = !mmu_->format().accessed_dirty;
  EXPECT_NE(bool(mmu_->Inspect(InputAddress(0x2000), kRead, nullptr)), tracked);
  {
    const ShadowPages::Lock lock = pages_->Acquire();
    for (std::uint64_t address : {0x1000, 0x2000}) {
      EXPECT_EQ(Fault(address, kRead), tracked ? FaultOutcome::kFixed : FaultOutcome::kSpurious);
    }
  }
  EXPECT_EQ(Take(), Pages{}) << "reading writes nothing";
  Touch(0x2000, kWrite);
  EXPECT_EQ(Take(), Pages{2});
}

TEST(DirtyLoggingMethods, DirtyBitsNeedAFormatThatKeepsThem) {
  Flusher flusher;
  TestMemory memory(2 * kMib);
  ShadowPages pages(SpteCodec(WithoutAccessedDirty(ExplicitSecondStage(false))), flusher, 100);
  EXPECT_FALSE(pages.StartDirtyLog(*memory.Find(Gfn{0}), DirtyLogMethod::kDirtyBits));
  EXPECT_TRUE(pages.StartDirtyLog(*memory.Find(Gfn{0}), DirtyLogMethod::kWriteProtect));
}

}  // namespace
}  // namespace pagesaw
