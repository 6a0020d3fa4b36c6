// Processors on threads of their own, with TLBs that remember until they are flushed, run on shadow
// pages while slots come and go, writes are logged, pages age and trees are zapped. Every write
// must be in the log: a copy kept up by the log alone ends up equal to the memory.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.direct_mmu;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_formats;
import pagesaw.mmu.test_memory;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

constexpr std::uint64_t kMib = 1u << 20;
constexpr std::uint64_t kRamBytes = 4 * kMib;
constexpr std::uint64_t kComingBase = 16 * kMib, kComingBytes = 2 * kMib;
constexpr unsigned kProcessors = 3;

std::uint64_t LoadWord(const std::byte* at) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(at))).load();
}
void StoreWord(std::byte* at, std::uint64_t value) {
  std::atomic_ref(*reinterpret_cast<std::uint64_t*>(at)).store(value);
}

// RAM, and a slot that comes, goes and becomes read-only.
class ChangingMemory final : public GuestMemory {
 public:
  ChangingMemory() {
    ram_ = memory_.AddSlot(Gpa(0), kRamBytes);
    writable_ = memory_.AddSlot(Gpa(kComingBase), kComingBytes);
    read_only_ = writable_;
    read_only_.read_only = true;
  }
  const MemorySlot* Find(Gfn gfn) const override {
    if (ram_.Contains(gfn)) return &ram_;
    const MemorySlot* coming = coming_.load();
    return coming != nullptr && coming->Contains(gfn) ? coming : nullptr;
  }
  std::vector<MemorySlot> Slots() const override { return {ram_}; }

  void Come() { coming_ = &writable_; }
  void ComeReadOnly() { coming_ = &read_only_; }
  void Go() { coming_ = nullptr; }
  const MemorySlot& ram() const { return ram_; }
  const MemorySlot& coming() const { return writable_; }

 private:
  TestMemory memory_;
  MemorySlot ram_, writable_, read_only_;
  std::atomic<const MemorySlot*> coming_ = &writable_;
};

// Believes a TLB of its own until it is told to flush, as processors do.
class ToyProcessor {
 public:
  ToyProcessor(std::unique_ptr<CpuWalker> walker, std::unique_ptr<ShadowMmu> mmu, unsigned seed)
      : walker_(std::move(walker)), mmu_(std::move(mmu)), random_(seed) {}

  void RequestFlush() { flush_requested_ = true; }
  void WaitOutOfGuest() {
    const std::uint32_t epoch = epoch_.load();
    if ((epoch & 1) != 0) epoch_.wait(epoch);
  }

  void Run(const std::atomic<bool>& stop) {
    while (!stop) {
      if (const std::optional<MmuFault> fault = RunGuest()) {
        outcomes_[static_cast<unsigned>(mmu_->HandleFault(*fault).outcome)]++;
      }
    }
  }
  std::uint64_t count(FaultOutcome outcome) const {
    return outcomes_[static_cast<unsigned>(outcome)];
  }
  // Accesses made so far.
  std::uint64_t touches() const { return touches_.load(std::memory_order_relaxed); }

 private:
  static constexpr unsigned kTlbEntries = 64;
  struct TlbEntry {
    std::uint64_t page = ~std::uint64_t{0};
    std::byte* host = nullptr;
    bool writable = false;
  };

  std::uint64_t RandomAddress() {
    const std::uint64_t word = (random_() & 0xff8) | (random_() % 8 != 0 ? 0 : 0x800);
    switch (random_() % 4) {
      case 0:
        return kComingBase + random_() % kComingBytes / kPageBytes * kPageBytes + word;
      case 1:
        return kMib + random_() % 16 * kPageBytes + word;  // often again
      case 2:
        return kMib + random_() % kMib / kPageBytes * kPageBytes + word;
      default:
        return 2 * kMib + random_() % (kRamBytes - 2 * kMib) / kPageBytes * kPageBytes + word;
    }
  }

  bool Touch(std::uint64_t address, bool write, const ShadowRoot& root) {
    TlbEntry& entry = tlb_[address / kPageBytes % kTlbEntries];
    if (entry.page != address / kPageBytes || (write && !entry.writable)) {
      const Access access =
          write ? Access::Write(Privilege::kSupervisor) : Access::Read(Privilege::kSupervisor);
      const PageFormat& format = mmu_->format();
      HostTableSpace<true> space;
      const WalkResult walk = WalkTables<AnyLayout>(format,
                                                    {.table = OutputAddress(root.table.bits()),
                                                     .level = root.level,
                                                     .address = InputAddress(address),
                                                     .access = access},
                                                    space);
      if (!walk) return false;
      const bool dirty = !format.accessed_dirty || (walk->leaf & format.layout.dirty) != 0;
      entry = {.page = address / kPageBytes,
               .host = reinterpret_cast<std::byte*>(walk->output.bits() & ~(kPageBytes - 1)),
               .writable = walk->rights.write() && dirty};
    }
    std::byte* const host = entry.host + address % kPageBytes;
    if (write) {
      StoreWord(host, random_());
    } else {
      static_cast<void>(LoadWord(host));
    }
    return true;
  }

  std::optional<MmuFault> RunGuest() {
    ShadowRoot root = mmu_->Root();
    std::optional<MmuFault> fault;
    epoch_.fetch_add(1);
    if (flush_requested_.exchange(false)) tlb_ = {};
    if (!mmu_->roots_obsolete()) {
      for (unsigned i = 0; i < 50 && !fault; ++i) {
        if (!retry_) retry_ = {RandomAddress(), random_() % 2 == 0};
        const auto [address, write] = *retry_;
        if (Touch(address, write, root)) {
          retry_.reset();
          touches_.fetch_add(1, std::memory_order_relaxed);
          continue;
        }
        fault = {.address = InputAddress(address),
                 .access = write ? Access::Write(Privilege::kSupervisor)
                                 : Access::Read(Privilege::kSupervisor)};
        // A device's, perhaps: not to be tried for ever.
        if (random_() % 8 == 0) retry_.reset();
      }
    }
    epoch_.fetch_add(1);
    epoch_.notify_all();
    return fault;
  }

  std::unique_ptr<CpuWalker> walker_;
  std::unique_ptr<ShadowMmu> mmu_;
  std::mt19937 random_;
  std::array<TlbEntry, kTlbEntries> tlb_;
  std::optional<std::pair<std::uint64_t, bool>> retry_;
  std::atomic<bool> flush_requested_ = false;
  std::atomic<std::uint32_t> epoch_ = 0;  // odd: in guest code
  std::array<std::uint64_t, 16> outcomes_ = {};
  std::atomic<std::uint64_t> touches_ = 0;
};

class FlushProcessors final : public TlbFlusher {
 public:
  void FlushAll() override {
    if (ended) return;
    for (auto& processor : processors) processor->RequestFlush();
    for (auto& processor : processors) processor->WaitOutOfGuest();
  }
  std::vector<std::unique_ptr<ToyProcessor>> processors;
  bool ended = false;  // none runs any more
};

struct Case {
  const char* name;
  bool direct;
  PageFormat (*make)();
  DirtyLogMethod method;
  std::size_t limit;
};

class ShadowThreads : public testing::TestWithParam<Case> {
 protected:
  ShadowThreads() : copy_(kRamBytes) {
    WriteGuestTables();
    const GuestTables* tables = GetParam().direct ? nullptr : &tables_;
    pages_ = std::make_unique<ShadowPages>(SpteCodec(GetParam().make()), flusher_, GetParam().limit,
                                           tables);
    for (unsigned i = 0; i < kProcessors; ++i) {
      auto walker = std::make_unique<CpuWalker>(memory_, &pages_->dirty_logs());
      std::unique_ptr<ShadowMmu> mmu;
      if (GetParam().direct) {
        mmu = DirectMmu::Make(*pages_, memory_, *walker, Level::kPml4);
      } else {
        mmu = ShadowingMmu::Make(*pages_, memory_, tables_, *walker);
        const PagingState state = {.cr0 = kCr0Pe | kCr0Pg | kCr0Wp,
                                   .cr3 = 0x1000,
                                   .cr4 = kCr4Pae,
                                   .efer = kEferLme | kEferLma | kEferNxe};
        walker->Reset(state);
        mmu->PagingChanged(state, {});
      }
      flusher_.processors.push_back(
          std::make_unique<ToyProcessor>(std::move(walker), std::move(mmu), i + 1));
    }
  }
  ~ShadowThreads() override {
    flusher_.ended = true;
    flusher_.processors.clear();
  }

  void SetEntry(std::uint64_t table, std::uint64_t index, std::uint64_t entry) {
    StoreWord(memory_.ram().host + table + 8 * index, entry);
  }
  // Linear is physical; 4 KiB pages below 2 MiB, 2 MiB pages above; nothing has A or D.
  void WriteGuestTables() {
    SetEntry(0x1000, 0, 0x2000 | 3);
    SetEntry(0x2000, 0, 0x3000 | 3);
    SetEntry(0x3000, 0, 0x4000 | 3);
    for (std::uint64_t i = 1; i < 16; ++i) SetEntry(0x3000, i, i << 21 | 0x83);
    for (std::uint64_t i = 0; i < 512; ++i) SetEntry(0x4000, i, i << 12 | 3);
  }

  void CopyPage(std::uint64_t page) {
    for (std::uint64_t at = page * kPageBytes; at < (page + 1) * kPageBytes; at += 8) {
      const std::uint64_t word = LoadWord(memory_.ram().host + at);
      std::memcpy(&copy_[at], &word, 8);
    }
  }
  void StartLog() {
    ASSERT_TRUE(pages_->StartDirtyLog(memory_.ram(), GetParam().method));
    for (std::uint64_t page = 0; page < kRamBytes / kPageBytes; ++page) CopyPage(page);
  }
  void CopyDirtyPages() {
    const auto words = pages_->TakeDirtyLog(memory_.ram().id);
    ASSERT_TRUE(words.has_value());
    for (std::uint64_t page = 0; page < kRamBytes / kPageBytes; ++page) {
      if (((*words)[page / 64] >> page % 64 & 1) != 0) CopyPage(page);
    }
  }
  std::uint64_t SumOfComing() const {
    std::uint64_t sum = 0;
    for (std::uint64_t at = 0; at < kComingBytes; at += 64) {
      sum += LoadWord(memory_.coming().host + at);
    }
    return sum;
  }
  // Nobody may write it when the call that took it away has returned.
  void ExpectComingIsQuiet() {
    const std::uint64_t sum = SumOfComing();
    std::this_thread::yield();
    EXPECT_EQ(SumOfComing(), sum);
  }
  void ComingChanged() {
    pages_->SlotsChanged(memory_.coming().first, memory_.coming().page_count);
  }
  void ChangeSomething(unsigned round) {
    switch (round % 8) {
      case 0:
        memory_.Go();
        ComingChanged();
        return ExpectComingIsQuiet();
      case 1:
        memory_.ComeReadOnly();
        ComingChanged();
        return ExpectComingIsQuiet();
      case 2:
        memory_.Come();
        return ComingChanged();
      case 3:
        static_cast<void>(pages_->TestAndClearYoung(Gfn{0}, 0x10000));
        return;
      case 4:
        StoreWord(memory_.ram().host + 0x10'0ff8, round);
        return pages_->GuestWrote(Gpa(0x10'0ff8), 8);
      case 5:
        if (round % 5 == 0) pages_->ZapAll();
        return;
      case 6:
        if (round % 3 != 0) return;
        ASSERT_TRUE(pages_->StopDirtyLog(memory_.ram().id));
        return StartLog();
      default:
        static_cast<void>(pages_->List(0, 100));
        static_cast<void>(pages_->Statistics());
        return;
    }
  }

  ChangingMemory memory_;
  GuestTables tables_{memory_, PagingFeatures()};
  FlushProcessors flusher_;
  std::unique_ptr<ShadowPages> pages_;
  std::vector<std::byte> copy_;
};

INSTANTIATE_TEST_SUITE_P(
    Mmus, ShadowThreads,
    testing::Values(
        Case{"DirectByDirtyBits", true, [] { return ExplicitSecondStage(true); },
             DirtyLogMethod::kDirtyBits, 1000},
        Case{"DirectByWriteProtection", true, [] { return LegacySecondStage(false); },
             DirtyLogMethod::kWriteProtect, 1000},
        Case{"DirectWithoutAccessedAndDirty", true,
             [] {
               PageFormat format = ExplicitSecondStage(false);
               format.accessed_dirty = false;
               return format;
             },
             DirtyLogMethod::kWriteProtect, 1000},
        Case{"DirectWithFewPages", true, [] { return ExplicitSecondStage(false); },
             DirtyLogMethod::kWriteProtect, 20},
        Case{"ShadowingByDirtyBits", false, LinearSpteFormat, DirtyLogMethod::kDirtyBits, 1000},
        Case{"ShadowingByWriteProtection", false, LinearSpteFormat, DirtyLogMethod::kWriteProtect,
             1000},
        Case{"ShadowingWithFewPages", false, LinearSpteFormat, DirtyLogMethod::kWriteProtect, 20}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(ShadowThreads, NoWriteIsLostAndNobodyReachesWhatIsGone) {
  StartLog();
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (auto& processor : flusher_.processors) {
    threads.emplace_back([&processor, &stop] { processor->Run(stop); });
  }
  // Threads may be late on a busy host: nothing is to be done before they are at work.
  for (auto& processor : flusher_.processors) {
    while (processor->touches() == 0) std::this_thread::yield();
  }
  for (unsigned round = 0; round < 48; ++round) {
    CopyDirtyPages();
    ChangeSomething(round);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CopyDirtyPages();

  EXPECT_EQ(std::memcmp(copy_.data(), memory_.ram().host, kRamBytes), 0);
  const ShadowPages::Lock lock = pages_->Acquire();
  EXPECT_EQ(pages_->Audit(), std::nullopt);
  for (auto& processor : flusher_.processors) {
    EXPECT_EQ(processor->count(FaultOutcome::kOutOfMemory), 0u);
  }
}

}  // namespace
}  // namespace pagesaw
