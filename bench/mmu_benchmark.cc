// What the MMU costs by itself: walks, permission tests, faults. See README.md.
#include <benchmark/benchmark.h>

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
import pagesaw.mmu.kvm_translator;
import pagesaw.mmu.shadow_pages;
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

}  // namespace
}  // namespace pagesaw
