#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.direct_mmu;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_formats;
import pagesaw.mmu.test_memory;

namespace pagesaw {
namespace {

constexpr std::uint64_t kMib = 1u << 20;
constexpr Access kRead = Access::Read(Privilege::kUser);
constexpr Access kWrite = Access::Write(Privilege::kUser);
constexpr Access kFetch = Access::Fetch(Privilege::kSupervisor);

class CountingFlusher final : public TlbFlusher {
 public:
  void FlushAll() override { ++count; }
  std::atomic<unsigned> count = 0;
};

struct FormatCase {
  const char* name;
  PageFormat (*make)();
};

class DirectMmuTest : public testing::TestWithParam<FormatCase> {
 protected:
  void SetUp() override { MakeMmu(1000); }

  void MakeMmu(std::size_t limit) {
    mmu_.reset();
    pages_ = std::make_unique<ShadowPages>(SpteCodec(GetParam().make()), flusher_, limit);
    mmu_ = DirectMmu::Make(*pages_, memory_, walker_, Level::kPml4);
    ASSERT_NE(mmu_, nullptr);
  }
  FaultOutcome Fault(std::uint64_t address, Access access) {
    return mmu_->HandleFault({.address = InputAddress(address), .access = access}).outcome;
  }
  WalkResult Inspect(std::uint64_t address, Access access) {
    return mmu_->Inspect(InputAddress(address), access, nullptr);
  }
  // What the processor would find at `address`, or nothing.
  const std::byte* Host(std::uint64_t address, Access access = kRead) {
    const WalkResult result = Inspect(address, access);
    return result ? reinterpret_cast<const std::byte*>(result->output.bits()) : nullptr;
  }

  TestMemory memory_;
  CountingFlusher flusher_;
  CpuWalker walker_{memory_};
  std::unique_ptr<ShadowPages> pages_;
  std::unique_ptr<DirectMmu> mmu_;
};

INSTANTIATE_TEST_SUITE_P(
    Formats, DirectMmuTest,
    testing::Values(FormatCase{"Legacy", [] { return LegacySecondStage(false); }},
                    FormatCase{"LegacySplit", [] { return LegacySecondStage(true); }},
                    FormatCase{"Explicit", [] { return ExplicitSecondStage(false); }},
                    FormatCase{"ExplicitSplit", [] { return ExplicitSecondStage(true); }}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(DirectMmuTest, MapsMemoryOnceForEveryAccess) {
  memory_.AddSlot(Gpa(0), kMib);
  EXPECT_FALSE(Inspect(0x1234, kRead));
  EXPECT_EQ(Fault(0x1234, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(Host(0x1234), memory_.Find(Gfn{1})->HostOf(Gpa(0x1234)));
  for (Access access : {kRead, kWrite, kFetch, Access::Fetch(Privilege::kUser)}) {
    EXPECT_TRUE(Inspect(0x1234, access));
    EXPECT_EQ(Fault(0x1234, access), FaultOutcome::kSpurious);
  }
  const MmuStatistics statistics = pages_->Statistics();
  EXPECT_EQ(statistics.faults, 5u);
  EXPECT_EQ(statistics.faults_fixed, 1u);
  EXPECT_EQ(statistics.faults_spurious, 4u);
  EXPECT_EQ(statistics.pages_4k, 1u);
  EXPECT_EQ(statistics.shadow_pages, 4u);
  EXPECT_EQ(flusher_.count, 0u);
}

TEST_P(DirectMmuTest, UsesTwoMebibytePagesWhereTheyFit) {
  memory_.AddSlot(Gpa(kMib), 6 * kMib);  // 1 to 7 MiB; host aligned like 0
  EXPECT_EQ(Fault(3 * kMib, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(pages_->Statistics().pages_2m, 0u) << "guest and host disagree by 1 MiB";

  memory_.AddSlot(Gpa(8 * kMib), 5 * kMib);  // the last MiB is no large page
  EXPECT_EQ(Fault(10 * kMib + 5, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(pages_->Statistics().pages_2m, 1u);
  EXPECT_EQ(Host(11 * kMib + 7), memory_.Find(Gfn{0xa00})->HostOf(Gpa(11 * kMib + 7)));
  EXPECT_EQ(Fault(12 * kMib, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(pages_->Statistics().pages_2m, 1u);
  EXPECT_EQ(pages_->Statistics().pages_4k, 2u);
}

TEST_P(DirectMmuTest, UsesOneGibibytePagesWhereTheyFit) {
  // SPTEs are made, memory is not touched: any aligned address serves.
  auto* host = reinterpret_cast<std::byte*>(std::uintptr_t{0x100} << 30);
  memory_.AddSlotOver(Gpa(std::uint64_t{1} << 30), std::uint64_t{3} << 30, host);
  EXPECT_EQ(Fault(0x8000'1234, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(pages_->Statistics().pages_1g, 1u);
  EXPECT_EQ(Host(0x8000'1234), host + 0x4000'1234);
}

TEST_P(DirectMmuTest, AddressesWithoutMemoryAreDevices) {
  memory_.AddSlot(Gpa(0), kMib);
  for (int i = 0; i < 2; ++i) {
    const FaultResolution resolution = mmu_->HandleFault(
        {.address = InputAddress(0xfee0'0300), .access = kWrite, .malformed = i != 0});
    EXPECT_EQ(resolution.outcome, FaultOutcome::kMmio);
    EXPECT_EQ(resolution.gpa, Gpa(0xfee0'0300));
  }
  const WalkResult marked = Inspect(0xfee0'0300, kRead);
  ASSERT_FALSE(marked);
  EXPECT_EQ(marked.fault().kind, WalkFault::Kind::kMalformed);
  EXPECT_EQ(pages_->Statistics().mmio_sptes, 1u);
  EXPECT_EQ(pages_->Statistics().faults_mmio, 2u);
}

TEST_P(DirectMmuTest, AddressesBeyondTheTreeAreDevicesAndNeverAlias) {
  memory_.AddSlot(Gpa(0), kMib);
  ASSERT_EQ(Fault(0x1000, kRead), FaultOutcome::kFixed);
  const std::uint64_t beyond = (std::uint64_t{1} << 48) | 0x1000;
  EXPECT_FALSE(Inspect(beyond, kRead));
  EXPECT_EQ(Fault(beyond, kRead), FaultOutcome::kMmio);
  EXPECT_EQ(pages_->Statistics().mmio_sptes, 0u);
}

TEST_P(DirectMmuTest, ReadOnlySlotsAreReadAndTheirWritesAreDevices) {
  memory_.AddSlot(Gpa(0), kMib, true);
  EXPECT_EQ(Fault(0x1000, kWrite), FaultOutcome::kMmio);
  EXPECT_EQ(Fault(0x1000, kRead), FaultOutcome::kFixed);
  EXPECT_TRUE(Inspect(0x1000, kFetch));
  EXPECT_FALSE(Inspect(0x1000, kWrite));
  EXPECT_EQ(Fault(0x1000, kWrite), FaultOutcome::kMmio);
}

TEST_P(DirectMmuTest, RemovedSlotsAreForgottenAfterOneFlush) {
  memory_.AddSlot(Gpa(0), 4 * kMib);
  memory_.AddSlot(Gpa(16 * kMib), kMib);
  ASSERT_EQ(Fault(0, kRead), FaultOutcome::kFixed);
  ASSERT_EQ(Fault(16 * kMib, kRead), FaultOutcome::kFixed);
  memory_.RemoveSlot(Gfn{0});
  pages_->SlotsChanged(Gfn{0}, 4 * kMib / kPageBytes);
  EXPECT_EQ(flusher_.count, 1u);
  EXPECT_FALSE(Inspect(0, kRead));
  EXPECT_TRUE(Inspect(16 * kMib, kRead)) << "another slot's";
  EXPECT_EQ(Fault(0, kRead), FaultOutcome::kMmio);
}

TEST_P(DirectMmuTest, NewSlotsReplaceDeviceMarkersAndFormLargePages) {
  ASSERT_EQ(Fault(2 * kMib + 0x1000, kRead), FaultOutcome::kMmio);
  memory_.AddSlot(Gpa(0), 8 * kMib);
  pages_->SlotsChanged(Gfn{0}, 8 * kMib / kPageBytes);
  EXPECT_EQ(Fault(2 * kMib + 0x1000, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(pages_->Statistics().pages_2m, 1u);
  EXPECT_EQ(pages_->Statistics().mmio_sptes, 0u);
}

TEST_P(DirectMmuTest, StaleDeviceMarkersElsewhereAreNotBelieved) {
  ASSERT_EQ(Fault(2 * kMib, kRead), FaultOutcome::kMmio);
  memory_.AddSlot(Gpa(2 * kMib), kMib);
  pages_->SlotsChanged(Gfn{0x10000}, 1);  // another place: only the generation is new
  EXPECT_EQ(Fault(2 * kMib, kRead), FaultOutcome::kFixed);
}

TEST_P(DirectMmuTest, EveryPageGoesWhenTheLastVcpuGoes) {
  memory_.AddSlot(Gpa(0), kMib);
  auto second = DirectMmu::Make(*pages_, memory_, walker_, Level::kPml4);
  EXPECT_EQ(second->Root().table, mmu_->Root().table);
  ASSERT_EQ(Fault(0, kRead), FaultOutcome::kFixed);
  mmu_.reset();
  EXPECT_EQ(pages_->Statistics().shadow_pages, 4u);
  second.reset();
  EXPECT_EQ(pages_->Statistics().shadow_pages, 0u);
  EXPECT_EQ(pages_->Statistics().pages_4k, 0u);
  EXPECT_TRUE(pages_->List(0, 100).empty());
}

TEST_P(DirectMmuTest, PagesAreListedById) {
  memory_.AddSlot(Gpa(0), kMib);
  ASSERT_EQ(Fault(0x5000, kRead), FaultOutcome::kFixed);
  const std::vector<ShadowPageInfo> first = pages_->List(0, 3);
  ASSERT_EQ(first.size(), 3u);
  EXPECT_EQ(first[0].table, mmu_->Root().table);
  EXPECT_EQ(first[0].root_count, 1u);
  EXPECT_EQ(first[1].parent_count, 1u);
  const std::vector<ShadowPageInfo> rest = pages_->List(first.back().id, 3);
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_EQ(rest[0].role.level, Level::kPt);
  EXPECT_EQ(rest[0].present_count, 1u);
}

TEST_P(DirectMmuTest, TouchingEverywhereStaysWithinTheLimitAndMakesProgress) {
  MakeMmu(64);
  memory_.AddSlot(Gpa(0), kMib);
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) {
    const std::uint64_t address = (random() & ((std::uint64_t{1} << 46) - 1)) | 0x8000'0000;
    ASSERT_EQ(Fault(address, kRead), FaultOutcome::kMmio);
    ASSERT_LE(pages_->Statistics().shadow_pages, 64u);
  }
  EXPECT_EQ(Fault(0x1000, kRead), FaultOutcome::kFixed);
  EXPECT_GT(flusher_.count, 0u);
}

TEST_P(DirectMmuTest, ZappingAllFreesEveryPageAndAsksForANewRoot) {
  memory_.AddSlot(Gpa(0), 64 * kMib);
  auto second = DirectMmu::Make(*pages_, memory_, walker_, Level::kPml4);
  ASSERT_EQ(Fault(0x1000, kWrite), FaultOutcome::kFixed);
  const Hpa old = mmu_->Root().table;
  EXPECT_FALSE(mmu_->roots_obsolete());
  pages_->ZapAll();
  EXPECT_EQ(flusher_.count, 1u) << "one flush, however many pages";
  EXPECT_EQ(pages_->Statistics().pages_2m, 0u);
  EXPECT_EQ(pages_->Statistics().shadow_pages, 0u);
  for (ShadowMmu* mmu :
       {static_cast<ShadowMmu*>(mmu_.get()), static_cast<ShadowMmu*>(second.get())}) {
    EXPECT_TRUE(mmu->roots_obsolete());
    EXPECT_FALSE(mmu->Inspect(InputAddress(0x1000), kRead, nullptr));
    EXPECT_NE(mmu->Root().table, old);
    EXPECT_FALSE(mmu->roots_obsolete());
  }
  EXPECT_EQ(second->Root().table, mmu_->Root().table);
  EXPECT_EQ(Fault(0x1000, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(pages_->Audit(), std::nullopt);
}

// A fault that is handled before the processor has asked for its new root is not lost.
TEST_P(DirectMmuTest, FaultsOnAnObsoleteRootAreFixedOnTheNewOne) {
  memory_.AddSlot(Gpa(0), kMib);
  ASSERT_EQ(Fault(0x1000, kRead), FaultOutcome::kFixed);
  pages_->ZapAll();
  EXPECT_EQ(Fault(0x1000, kRead), FaultOutcome::kFixed);
  EXPECT_TRUE(mmu_->roots_obsolete()) << "the processor has still the old one";
  static_cast<void>(mmu_->Root());
  EXPECT_TRUE(Inspect(0x1000, kRead));
}

TEST_P(DirectMmuTest, GenerationsMayWrapAround) {
  ASSERT_EQ(Fault(0xf000'0000, kRead), FaultOutcome::kMmio);
  for (int i = 0; i < 0x10000; ++i) pages_->SlotsChanged(Gfn{0}, 1);
  EXPECT_EQ(pages_->generation(), 0);
  EXPECT_EQ(pages_->Statistics().mmio_sptes, 0u) << "the marker of the first generation 0";
}

// Two vCPU threads that fault and look while slots change.
TEST_P(DirectMmuTest, FaultsMayMeetSlotChanges) {
  class LockedMemory final : public GuestMemory {
   public:
    explicit LockedMemory(const MemorySlot& slot) : slot_(slot) {}
    const MemorySlot* Find(Gfn gfn) const override {
      return there.load() && slot_.Contains(gfn) ? &slot_ : nullptr;
    }
    std::vector<MemorySlot> Slots() const override { return {slot_}; }
    std::atomic<bool> there = true;

   private:
    MemorySlot slot_;
  };
  LockedMemory memory(memory_.AddSlot(Gpa(0), 4 * kMib + kMib));
  const auto work = [&](unsigned seed) {
    auto mmu = DirectMmu::Make(*pages_, memory, walker_, Level::kPml4);
    std::mt19937 random(seed);
    for (int i = 0; i < 20000; ++i) {
      const InputAddress address(random() % (8 * kMib));
      static_cast<void>(mmu->HandleFault({.address = address, .access = kWrite}));
      if (i % 16 == 0) static_cast<void>(mmu->Inspect(address, kRead, nullptr));
    }
  };
  std::thread first(work, 1), second(work, 2);
  for (int i = 0; i < 200; ++i) {
    memory.there = i % 2 != 0;
    pages_->SlotsChanged(Gfn{0}, 5 * kMib / kPageBytes);
    if (!memory.there) {
      const MmuStatistics statistics = pages_->Statistics();
      EXPECT_EQ(statistics.pages_4k + statistics.pages_2m, 0u) << "made from a slot that is gone";
    }
  }
  first.join();
  second.join();
}

}  // namespace
}  // namespace pagesaw
