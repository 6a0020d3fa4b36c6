module;
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
module pagesaw.cpu.test_processor;

import pagesaw.core.address;
import pagesaw.core.paging_state;
import pagesaw.mmu.legacy_format;

namespace pagesaw::cpu {
namespace {

constexpr std::size_t kTables = 3 + TestProcessor::kMemoryBytes / (2 << 20);

}  // namespace

TestProcessor::TestProcessor(const CpuModel& model)
    : memory_(static_cast<std::byte*>(std::aligned_alloc(4096, kMemoryBytes))),
      tables_(static_cast<std::uint64_t*>(std::aligned_alloc(4096, kTables * 4096))),
      processor_(std::make_unique<SoftwareProcessor>(model)) {
  std::memset(memory_.get(), 0, kMemoryBytes);
  std::memset(tables_.get(), 0, kTables * 4096);
  std::uint64_t* const table = tables_.get();
  const auto address = [](const void* pointer) { return reinterpret_cast<std::uint64_t>(pointer); };
  table[0] = address(table + 512) | 7;
  table[512] = address(table + 1024) | 7;
  for (std::uint64_t i = 0; i < kMemoryBytes >> 21; ++i) {
    table[1024 + i] = address(table + (3 + i) * 512) | 7;
  }
  for (std::uint64_t page = 0; page < kMemoryBytes; page += 4096) {
    Spte(page) = address(memory_.get() + page) | 0x67;
  }
  PagingState paging;
  const CpuState state = LongModeState();
  paging.cr0 = state.cr0;
  paging.cr4 = state.cr4;
  paging.efer = state.efer;
  paging.features.physical_bits = 47;
  format_ = MakeLegacyFormat(paging);
  processor_->SetState(state);
  processor_->SetTables({.format = &format_,
                         .root = Hpa(address(table)),
                         .level = Level::kPml4,
                         .second_stage = false});
}

CpuState TestProcessor::LongModeState() {
  CpuState state;
  state.cr0 = kCr0Pg | kCr0Wp | kCr0Pe;
  state.cr4 = kCr4Pae;
  state.efer = kEferLme | kEferLma | kEferNxe | kEferSce;
  state.rip = kCode;
  state.gpr[kRsp] = kStackTop;
  for (Segment& segment : state.segments) {
    segment = {.selector = 0x10, .attributes = 0xc093, .limit = 0xffff'ffff, .base = 0};
  }
  state.segments[kCs] = {.selector = 8, .attributes = 0xa09b, .limit = 0xffff'ffff, .base = 0};
  state.segments[kTr] = {.selector = 0x80, .attributes = 0x8b, .limit = 0x67, .base = 0};
  state.segments[kLdtr] = {.selector = 0, .attributes = 0x82, .limit = 0xffff, .base = 0};
  return state;
}

void TestProcessor::Write(std::uint64_t linear, std::span<const std::uint8_t> bytes) {
  std::memcpy(memory_.get() + linear, bytes.data(), bytes.size());
  processor_->FlushTlb();
}

Exit TestProcessor::RunCode(std::span<const std::uint8_t> code) {
  Write(kCode, code);
  CpuState state = processor_->GetState();
  state.activity = Activity::kActive;
  state.rip = kCode;
  processor_->SetState(state);
  return processor_->Run(1'000'000);
}

}  // namespace pagesaw::cpu
