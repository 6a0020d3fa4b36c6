module;
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <variant>
module pagesaw.cpu.test_core;

import pagesaw.mmu.legacy_format;

namespace pagesaw::cpu {
namespace {

Segment Flat(std::uint16_t selector, std::uint16_t attributes) {
  return {.selector = selector, .attributes = attributes, .limit = 0xffff'ffff, .base = 0};
}

}  // namespace

TestCore::TestCore(Mode mode)
    : mode_(mode),
      memory_(static_cast<std::byte*>(std::aligned_alloc(4096, kMemoryBytes))),
      tables_(static_cast<std::uint64_t*>(std::aligned_alloc(4096, std::size_t{4} * 4096))),
      model_(std::get<CpuModel>(MakeModel({}))),
      core_(std::make_unique<Core>()) {
  std::memset(memory_.get(), 0, kMemoryBytes);
  std::memset(tables_.get(), 0, std::size_t{4} * 4096);
  std::uint64_t* const table = tables_.get();
  for (unsigned i = 0; i < 3; ++i) {
    table[i * 512] = reinterpret_cast<std::uint64_t>(table + (i + 1) * 512) | 7;
  }
  for (std::uint64_t page = 0; page < kMemoryBytes; page += 4096) Map(page);
  PagingState paging;
  paging.cr0 = kCr0Pg | kCr0Wp | kCr0Pe;
  paging.cr4 = kCr4Pae;
  paging.efer = kEferLme | kEferLma | kEferNxe;
  paging.features.physical_bits = 47;
  format_ = MakeLegacyFormat(paging);

  Core& core = *core_;
  core.model = &model_;
  core.code = this;
  core.tables = {.format = &format_,
                 .root = Hpa(reinterpret_cast<std::uint64_t>(table)),
                 .level = Level::kPml4,
                 .second_stage = false};
  core.UpdatePaging();
  core.gpr[kRsp] = kStackTop;
  core.rip = kRip;
  SetDescriptor(kCode64, 0x00af'9b00'0000'ffff);
  SetDescriptor(kData, 0x00cf'9300'0000'ffff);
  SetDescriptor(kUserCode64, 0x00af'fb00'0000'ffff);
  SetDescriptor(kUserData, 0x00cf'f300'0000'ffff);
  SetDescriptor(kCode32, 0x00cf'9b00'0000'ffff);
  SetDescriptor(kUserCode32, 0x00cf'fb00'0000'ffff);
  SetDescriptor(kAbsentData, 0x00cf'1300'0000'ffff);
  SetDescriptor(kConforming, mode == Mode::kLong ? 0x00af'9f00'0000'ffff : 0x00cf'9f00'0000'ffff);
  SetDescriptor(kAbsentCode, 0x00cf'1b00'0000'ffff);
  SetDescriptor(kReadOnly, 0x00cf'9100'0000'ffff);
  SetDescriptor(kTssSelector, 0x0000'8900'3000'0067);
  core.gdtr = {.base = kGdt, .limit = 0xff};
  core.idtr = {.base = kIdt, .limit = 0xfff};
  core.segments[kTr] = {.selector = kTssSelector, .attributes = 0x8b, .limit = 0x67, .base = kTss};
  core.segments[kLdtr] = {.selector = 0, .attributes = 0, .limit = 0, .base = 0};
  if (mode == Mode::kReal) {
    core.idtr = {.base = 0, .limit = 0x3ff};
    for (unsigned i = kEs; i <= kGs; ++i) core.segments[i].attributes = 0x93;
    core.segments[kCs].attributes = 0x9b;
    core.UpdateMode();
    return;
  }
  core.cr0 = kCr0Pe;
  if (mode == Mode::kLong) {
    core.cr0 |= kCr0Pg | kCr0Wp;
    core.cr4 = kCr4Pae;
    core.efer = kEferLme | kEferLma | kEferNxe | kEferSce;
    Write<std::uint64_t>(kTss + 4, kInnerStackTop);
    Write<std::uint64_t>(kTss + 0x24, kIst1);
  } else {
    Write<std::uint32_t>(kTss + 4, kInnerStackTop);
    Write<std::uint16_t>(kTss + 8, kData);
  }
  SetCpl(0);
}

void TestCore::SetCpl(unsigned cpl) {
  Core& core = *core_;
  const auto level = static_cast<std::uint16_t>(cpl << 5);
  const bool wide = mode_ == Mode::kLong;
  const std::uint16_t code =
      cpl == 0 ? (wide ? kCode64 : kCode32) : (wide ? kUserCode64 : kUserCode32);
  core.segments[kCs] = Flat(code, static_cast<std::uint16_t>((wide ? 0xa09b : 0xc09b) | level));
  for (const unsigned name : {0u + kEs, 0u + kSs, 0u + kDs, 0u + kFs, 0u + kGs}) {
    core.segments[name] =
        Flat(cpl == 0 ? kData : kUserData, static_cast<std::uint16_t>(0xc093 | level));
  }
  core.UpdateMode();
}

void TestCore::SetDescriptor(std::uint16_t selector, std::uint64_t low, std::uint64_t high) {
  Write(kGdt + (selector & 0xfff8u), low);
  if (high != 0) Write(kGdt + (selector & 0xfff8u) + 8, high);
}

void TestCore::SetGate(unsigned vector, std::uint16_t selector, std::uint64_t offset, unsigned type,
                       unsigned dpl, unsigned ist) {
  const std::uint64_t low = (offset & 0xffff) | std::uint64_t{selector} << 16 |
                            std::uint64_t{ist} << 32 | std::uint64_t{type} << 40 |
                            std::uint64_t{dpl} << 45 | std::uint64_t{1} << 47 |
                            (offset >> 16 & 0xffff) << 48;
  if (mode_ == Mode::kLong) {
    Write(kIdt + vector * 16, low);
    Write(kIdt + vector * 16 + 8, offset >> 32);
  } else {
    Write(kIdt + vector * 8, low);
  }
}

void TestCore::Unmap(std::uint64_t linear) {
  Spte(linear) = 0;
  core_->FlushTranslations();
}

void TestCore::Map(std::uint64_t linear) {
  linear &= ~std::uint64_t{0xfff};
  Spte(linear) = reinterpret_cast<std::uint64_t>(memory_.get() + linear) | 0x67;
}

bool TestCore::Run(bool (*instruction)(Core&, const Op&), const Op& op) {
  Core& core = *core_;
  core.stop = Stop::kNone;
  core.replay.Rewind();
  core.ip_base = core.rip;
  core.rip += op.length;
  if (instruction(core, op)) return true;
  core.rip = core.ip_base;
  return false;
}

Op TestCore::op() const {
  Op op;
  op.length = kLength;
  op.operand_bytes = mode_ == Mode::kLong ? 8 : mode_ == Mode::kProtected ? 4 : 2;
  op.address_bytes = op.operand_bytes & 15;
  return op;
}

Op TestCore::MemoryOp(std::uint64_t linear) const {
  Op memory = op();
  memory.memory = 1;
  memory.displacement = static_cast<std::int32_t>(linear);
  return memory;
}

}  // namespace pagesaw::cpu
