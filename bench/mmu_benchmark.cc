// What the MMU costs by itself: walks, permission tests, faults. See README.md.
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
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
import pagesaw.mmu.kvm_translator;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_memory;
import pagesaw.plugins.mbec.split_formats;
import pagesaw.plugins.svm.npt_format;
import pagesaw.plugins.vmx.ept_format;

namespace pagesaw {
namespace {

constexpr std::uint64_t kMib = 1u << 20;
constexpr std::uint64_t kTable = 7;  // P, R/W, U/S

class NoFlusher final : public TlbFlusher {
 public:
  void FlushAll() override {}
};

PagingState LongMode() {
  PagingState state;
  state.cr0 = kCr0Pe | kCr0Pg | kCr0Wp;
  state.cr3 = 0x1000;
  state.cr4 = kCr4Pae | kCr4Smep | kCr4Smap;
  state.efer = kEferLma | kEferLme | kEferNxe;
  return state;
}

// 4-level tables that map 2 MiB of linear addresses by 4 KiB pages.
class WarmTables {
 public:
  WarmTables() : walker_(memory_, LongMode()) {
    memory_.Write<std::uint64_t>(Gpa(0x1000), 0x2000 | kTable);
    memory_.Write<std::uint64_t>(Gpa(0x2000), 0x3000 | kTable);
    memory_.Write<std::uint64_t>(Gpa(0x3000), 0x4000 | kTable);
    for (unsigned i = 0; i < 512; ++i) {
      memory_.Write<std::uint64_t>(Gpa(0x4000 + 8 * i), 0x9000 | kTable);
    }
  }
  CpuWalker& walker() { return walker_; }
  std::byte* memory() { return memory_.Find(Gfn{0})->host; }

 private:
  TestMemory memory_{kMib};
  CpuWalker walker_;
};

void WalkWarm4Level(benchmark::State& state) {
  WarmTables tables;
  std::uint64_t page = 0;
  for ([[maybe_unused]] auto _ : state) {
    const WalkResult result =
        tables.walker().Walk(InputAddress(page << kPageShift), Access::Write(Privilege::kUser));
    benchmark::DoNotOptimize(result->output.bits());
    page = (page + 1) & 511;
  }
}
BENCHMARK(WalkWarm4Level);

// The same tables by Linux's KVM, one system call a walk, where this machine has KVM.
void KvmTranslateWarm4Level(benchmark::State& state) {
  WarmTables tables;
  const auto opened = KvmTranslator::Open(tables.memory(), kMib);
  if (const auto* why = std::get_if<std::string>(&opened)) {
    state.SkipWithError(why->c_str());
    return;
  }
  KvmTranslator& kvm = *std::get<std::unique_ptr<KvmTranslator>>(opened);
  PagingState paging = LongMode();
  paging.cr4 = kCr4Pae;
  if (!kvm.Load(paging)) state.SkipWithError("KVM refuses the registers");
  std::uint64_t page = 0;
  for ([[maybe_unused]] auto _ : state) {
    const auto answer = kvm.Translate(page << kPageShift);
    if (!answer || !answer->valid) {
      state.SkipWithError("KVM_TRANSLATE fails");
      return;
    }
    page = (page + 1) & 511;
  }
}
BENCHMARK(KvmTranslateWarm4Level);

void InspectWarm4Level(benchmark::State& state) {
  WarmTables tables;
  WalkTrace trace;
  std::uint64_t page = 0;
  for ([[maybe_unused]] auto _ : state) {
    const WalkResult result = tables.walker().Inspect(InputAddress(page << kPageShift),
                                                      Access::Write(Privilege::kUser), &trace);
    benchmark::DoNotOptimize(result->output.bits());
    page = (page + 1) & 511;
  }
}
BENCHMARK(InspectWarm4Level);

void ResetWalker(benchmark::State& state) {
  WarmTables tables;
  PagingState paging = LongMode();
  for ([[maybe_unused]] auto _ : state) {
    paging.cr4 ^= kCr4Smap;
    tables.walker().Reset(paging);
    benchmark::DoNotOptimize(tables.walker().format().refused);
  }
}
BENCHMARK(ResetWalker);

void PermissionTest(benchmark::State& state) {
  const PageFormat format = mbec::MakeEptMbecFormat(47);
  unsigned bits = 0;
  const Access accesses[] = {Access::Read(Privilege::kUser), Access::Write(Privilege::kSupervisor),
                             Access::Fetch(Privilege::kUser)};
  for ([[maybe_unused]] auto _ : state) {
    const bool refused = format.PermissionFault(Rights(bits & 31), accesses[bits % 3]);
    benchmark::DoNotOptimize(refused);
    ++bits;
  }
}
BENCHMARK(PermissionTest);

// Faults on pages one after another, until all are mapped; then, not timed, all are zapped.
void DirectFault(benchmark::State& state, PageFormat (*make)(unsigned)) {
  constexpr std::uint64_t kBytes = 64 * kMib;
  NoFlusher flusher;
  TestMemory memory;
  // SPTEs are made, memory is not touched. The host address keeps pages small.
  memory.AddSlotOver(Gpa(0), kBytes, reinterpret_cast<std::byte*>(0x7000'0000'1000));
  CpuWalker walker(memory);
  ShadowPages pages(SpteCodec(make(47)), flusher, 10'000);
  const auto mmu = DirectMmu::Make(pages, memory, walker, Level::kPml4);
  std::uint64_t address = 0;
  for ([[maybe_unused]] auto _ : state) {
    const FaultResolution resolution = mmu->HandleFault(
        {.address = InputAddress(address), .access = Access::Write(Privilege::kUser)});
    benchmark::DoNotOptimize(resolution.outcome);
    address += kPageBytes;
    if (address == kBytes) {
      state.PauseTiming();
      pages.AllSlotsChanged();
      address = 0;
      state.ResumeTiming();
    }
  }
}
PageFormat MakeEpt(unsigned physical_bits) {
  return vmx::MakeEptFormat({.physical_bits = physical_bits});
}
BENCHMARK_CAPTURE(DirectFault, ept, MakeEpt);
BENCHMARK_CAPTURE(DirectFault, npt, svm::MakeNptFormat);

void SpuriousDirectFault(benchmark::State& state) {
  NoFlusher flusher;
  TestMemory memory(kMib);
  CpuWalker walker(memory);
  ShadowPages pages(SpteCodec(MakeEpt(47)), flusher, 10'000);
  const auto mmu = DirectMmu::Make(pages, memory, walker, Level::kPml4);
  for ([[maybe_unused]] auto _ : state) {
    const FaultResolution resolution = mmu->HandleFault(
        {.address = InputAddress(0x1000), .access = Access::Write(Privilege::kUser)});
    benchmark::DoNotOptimize(resolution.outcome);
  }
}
BENCHMARK(SpuriousDirectFault);

// First writes to pages that a log protects, one page after another. `locked`: fixed as if there
// were no fast path, by mapping the page anew.
void FirstLoggedWrite(benchmark::State& state, bool locked) {
  constexpr std::uint64_t kBytes = 64 * kMib;
  NoFlusher flusher;
  TestMemory memory;
  const MemorySlot slot =
      memory.AddSlotOver(Gpa(0), kBytes, reinterpret_cast<std::byte*>(0x7000'0000'1000));
  CpuWalker walker(memory);
  ShadowPages pages(SpteCodec(MakeEpt(47)), flusher, 10'000);
  const auto mmu = DirectMmu::Make(pages, memory, walker, Level::kPml4);
  const auto write = [&](std::uint64_t address) {
    const FaultResolution resolution = mmu->HandleFault(
        {.address = InputAddress(address), .access = Access::Write(Privilege::kUser)});
    benchmark::DoNotOptimize(resolution.outcome);
  };
  bool started = pages.StartDirtyLog(slot, DirtyLogMethod::kWriteProtect);
  benchmark::DoNotOptimize(started);
  for (std::uint64_t address = 0; address < kBytes; address += kPageBytes) write(address);
  std::uint64_t address = kBytes;
  for ([[maybe_unused]] auto _ : state) {
    if (address == kBytes) {
      state.PauseTiming();
      static_cast<void>(pages.TakeDirtyLog(slot.id));
      if (locked) pages.SlotsChanged(slot.first, slot.page_count);
      address = 0;
      state.ResumeTiming();
    }
    write(address);
    address += kPageBytes;
  }
}
BENCHMARK_CAPTURE(FirstLoggedWrite, fast, false);
BENCHMARK_CAPTURE(FirstLoggedWrite, locked, true);

// Taking the log of a slot of 1 GiB that is mapped by 4 KiB pages, of which every `range`-th was
// written. Also counts the bytes of SPTE tables for each page mapped.
void TakeDirtyLogOf1Gib(benchmark::State& state, DirtyLogMethod method) {
  constexpr std::uint64_t kBytes = 1024 * kMib;
  NoFlusher flusher;
  TestMemory memory;
  const MemorySlot slot =
      memory.AddSlotOver(Gpa(0), kBytes, reinterpret_cast<std::byte*>(0x7000'0000'1000));
  CpuWalker walker(memory);
  ShadowPages pages(SpteCodec(MakeEpt(47)), flusher, 10'000);
  const auto mmu = DirectMmu::Make(pages, memory, walker, Level::kPml4);
  bool started = pages.StartDirtyLog(slot, method);
  benchmark::DoNotOptimize(started);
  const auto access = [&](std::uint64_t address, Access access) {
    static_cast<void>(mmu->HandleFault({.address = InputAddress(address), .access = access}));
  };
  for (std::uint64_t address = 0; address < kBytes; address += kPageBytes) {
    access(address, Access::Write(Privilege::kUser));
  }
  static_cast<void>(pages.TakeDirtyLog(slot.id));
  const auto step = static_cast<std::uint64_t>(state.range(0)) * kPageBytes;
  for ([[maybe_unused]] auto _ : state) {
    state.PauseTiming();
    for (std::uint64_t address = 0; address < kBytes; address += step) {
      // By D bits, a walk would set them; the host's writes cost the same to take.
      if (method == DirtyLogMethod::kDirtyBits) pages.GuestWrote(Gpa(address), 1);
      access(address, Access::Write(Privilege::kUser));
    }
    state.ResumeTiming();
    benchmark::DoNotOptimize(pages.TakeDirtyLog(slot.id));
  }
  const MmuStatistics statistics = pages.Statistics();
  state.counters["table_bytes_per_page"] = static_cast<double>(statistics.shadow_pages) *
                                           kPageBytes / static_cast<double>(statistics.pages_4k);
}
BENCHMARK_CAPTURE(TakeDirtyLogOf1Gib, by_write_protection, DirtyLogMethod::kWriteProtect)
    ->Arg(1)
    ->Arg(64)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(TakeDirtyLogOf1Gib, by_dirty_bits, DirtyLogMethod::kDirtyBits)
    ->Arg(64)
    ->Unit(benchmark::kMicrosecond);

// Making all of a tree that maps 1 GiB by 4 KiB pages obsolete, and freeing it.
void ZapAllOf1Gib(benchmark::State& state) {
  constexpr std::uint64_t kBytes = 1024 * kMib;
  NoFlusher flusher;
  TestMemory memory;
  memory.AddSlotOver(Gpa(0), kBytes, reinterpret_cast<std::byte*>(0x7000'0000'1000));
  CpuWalker walker(memory);
  ShadowPages pages(SpteCodec(MakeEpt(47)), flusher, 10'000);
  const auto mmu = DirectMmu::Make(pages, memory, walker, Level::kPml4);
  for ([[maybe_unused]] auto _ : state) {
    state.PauseTiming();
    for (std::uint64_t address = 0; address < kBytes; address += kPageBytes) {
      static_cast<void>(mmu->HandleFault(
          {.address = InputAddress(address), .access = Access::Write(Privilege::kUser)}));
    }
    state.ResumeTiming();
    pages.ZapAll();
  }
}
BENCHMARK(ZapAllOf1Gib)->Unit(benchmark::kMicrosecond);
// -- shadow paging

// A guest of 4-level paging whose tables map 256 MiB by 4 KiB pages, and a second root beside.
class ShadowedGuest {
 public:
  static constexpr std::uint64_t kBytes = 256 * kMib;
  static constexpr std::uint64_t kRoot = 0x1000, kOtherRoot = 0x8000, kPts = 0x10'0000;
  // Where the first of the lowest tables is mapped, too.
  static constexpr std::uint64_t kTableMap = std::uint64_t{1} << 30;

  ShadowedGuest() : pages_(SpteCodec(LinearSpteFormat()), flusher_, 10'000, &tables_) {
    // SPTEs are made, memory is not touched. The host address keeps pages small.
    memory_.AddSlotOver(Gpa(kData), kBytes, reinterpret_cast<std::byte*>(0x7000'0000'1000));
    for (const std::uint64_t root : {kRoot, kOtherRoot}) Link(root, 0, 0x2000);
    Link(0x2000, 0, 0x3000);
    Link(0x2000, 1, 0x4000);
    Link(0x4000, 0, 0x5000);
    Link(0x5000, 0, kPts);
    for (unsigned table = 0; table < kBytes >> 21; ++table) {
      Link(0x3000, table, kPts + kPageBytes * table);
      for (unsigned i = 0; i < 512; ++i) {
        Link(kPts + kPageBytes * table, i, kData + kPageBytes * (512 * table + i));
      }
    }
    mmu_ = ShadowingMmu::Make(pages_, memory_, tables_, walker_);
    LoadCr3(kRoot);
  }

  void LoadCr3(std::uint64_t cr3) {
    state_.cr3 = cr3;
    walker_.Reset(state_);
    mmu_->PagingChanged(state_, {.scope = Invalidation::Scope::kAddressSpace});
    benchmark::DoNotOptimize(mmu_->Root().table.bits());
  }
  FaultOutcome Write(std::uint64_t linear) {
    return mmu_
        ->HandleFault({.address = InputAddress(linear), .access = Access::Write(Privilege::kUser)})
        .outcome;
  }
  void WriteEntry(unsigned index, std::uint64_t entry) { Link(kPts, index, entry); }
  ShadowPages& pages() { return pages_; }

  static constexpr std::uint64_t kData = std::uint64_t{1} << 32;

 private:
  void Link(std::uint64_t table, unsigned index, std::uint64_t target) {
    memory_.Write<std::uint64_t>(Gpa(table + 8 * index), target | kTable | 0x60);
  }

  NoFlusher flusher_;
  TestMemory memory_{2 * kMib};
  GuestTables tables_{memory_, PagingFeatures()};
  ShadowPages pages_;
  CpuWalker walker_{memory_};
  PagingState state_ = LongMode();
  std::unique_ptr<ShadowingMmu> mmu_;
};

// The walk included. Every 512th makes a table.
void ShadowFault(benchmark::State& state) {
  ShadowedGuest guest;
  std::uint64_t address = 0;
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(guest.Write(address));
    address += kPageBytes;
    if (address == ShadowedGuest::kBytes) {
      state.PauseTiming();
      guest.pages().AllSlotsChanged();
      guest.LoadCr3(ShadowedGuest::kRoot);
      address = 0;
      state.ResumeTiming();
    }
  }
}
BENCHMARK(ShadowFault);

// A load of CR3 that finds one table unsync: 512 SPTEs are compared with their entries, one goes.
void SyncTable(benchmark::State& state) {
  using Clock = std::chrono::steady_clock;
  ShadowedGuest guest;
  for (std::uint64_t page = 0; page < 512; ++page) (void)guest.Write(page << kPageShift);
  unsigned index = 0;
  for ([[maybe_unused]] auto _ : state) {
    (void)guest.Write(ShadowedGuest::kTableMap);
    guest.WriteEntry(index, ShadowedGuest::kData + kPageBytes * 1000);
    const auto start = Clock::now();
    guest.LoadCr3(ShadowedGuest::kRoot);
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - start).count());
    (void)guest.Write(std::uint64_t{index} << kPageShift);
    index = (index + 1) & 511;
  }
}
BENCHMARK(SyncTable)->UseManualTime();

// CR3 is loaded with one root and another in turn.
void SwitchToCachedRoot(benchmark::State& state) {
  ShadowedGuest guest;
  for ([[maybe_unused]] auto _ : state) {
    guest.LoadCr3(ShadowedGuest::kOtherRoot);
    guest.LoadCr3(ShadowedGuest::kRoot);
  }
  state.SetItemsProcessed(2 * static_cast<std::int64_t>(state.iterations()));
}
BENCHMARK(SwitchToCachedRoot);

std::uint64_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

// What a page of 4 KiB costs in tables and in all that is kept about them.
void ReportBytes(benchmark::State& state, const ShadowPages& pages, std::uint64_t heap_before) {
  const MmuStatistics statistics = pages.Statistics();
  const std::uint64_t bytes =
      HeapBytes() - heap_before + statistics.shadow_pages * (kPageBytes + sizeof(ShadowPage));
  state.counters["bytes_per_page"] =
      static_cast<double>(bytes) / static_cast<double>(statistics.pages_4k);
}

void ShadowBytes(benchmark::State& state) {
  for ([[maybe_unused]] auto _ : state) {
    ShadowedGuest guest;
    const std::uint64_t before = HeapBytes();
    for (std::uint64_t at = 0; at < ShadowedGuest::kBytes; at += kPageBytes) (void)guest.Write(at);
    ReportBytes(state, guest.pages(), before);
  }
}
BENCHMARK(ShadowBytes)->Iterations(1);

void DirectBytes(benchmark::State& state) {
  constexpr std::uint64_t kBytes = 256 * kMib;
  for ([[maybe_unused]] auto _ : state) {
    NoFlusher flusher;
    TestMemory memory;
    memory.AddSlotOver(Gpa(0), kBytes, reinterpret_cast<std::byte*>(0x7000'0000'1000));
    CpuWalker walker(memory);
    ShadowPages pages(SpteCodec(MakeEpt(47)), flusher, 10'000);
    const auto mmu = DirectMmu::Make(pages, memory, walker, Level::kPml4);
    const std::uint64_t before = HeapBytes();
    for (std::uint64_t at = 0; at < kBytes; at += kPageBytes) {
      (void)mmu->HandleFault(
          {.address = InputAddress(at), .access = Access::Write(Privilege::kUser)});
    }
    ReportBytes(state, pages, before);
  }
}
BENCHMARK(DirectBytes)->Iterations(1);

}  // namespace
}  // namespace pagesaw
