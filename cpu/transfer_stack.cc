module;
#include <cstdint>
module pagesaw.cpu.transfer_stack;

import pagesaw.cpu.segmentation;

namespace pagesaw::cpu {

bool StackWriter::Address(std::uint64_t offset, unsigned bytes, std::uint64_t& linear) const {
  if (wide_) {
    linear = offset;
    return IsCanonicalNow(core_, offset) && IsCanonicalNow(core_, offset + bytes - 1);
  }
  linear = static_cast<std::uint32_t>(ss_.base + offset);
  const std::uint64_t last = offset + bytes - 1;
  const bool expand_down = (ss_.type() & 4) != 0 && core_.protected_mode();
  if (!expand_down) return last <= ss_.limit;
  return offset > ss_.limit && last <= (ss_.big() ? 0xffff'ffffu : 0xffffu);
}

bool StackWriter::Store(std::uint64_t linear, std::uint64_t value, unsigned bytes) {
  if (bytes != 8) return StoreSlow(core_, linear, &value, bytes, by_);
  return by_ == By::kProgram ? cpu::Store<std::uint64_t>(core_, linear, value)
                             : StoreSystem<std::uint64_t>(core_, linear, value);
}

bool StackWriter::PushSlow(std::uint64_t value, unsigned bytes) {
  std::uint64_t sp = sp_ - bytes;
  std::uint64_t offset = sp;
  if (!wide_ && ss_.big()) {
    offset = sp = static_cast<std::uint32_t>(sp);
  } else if (!wide_) {
    offset = sp & 0xffff;
    sp = (sp_ & ~std::uint64_t{0xffff}) | offset;
  }
  std::uint64_t linear = 0;
  if (!Address(offset, bytes, linear)) return core_.Raise(kSsVector, error_code_);
  if (!Store(linear, value, bytes)) return false;
  sp_ = sp;
  return true;
}

bool StackReader::PopSlow(std::uint64_t& value) {
  std::uint64_t linear = 0;
  value = 0;
  if (!StackAddress(core_, offset_, bytes_, false, linear)) return false;
  const bool loaded = bytes_ == 8 ? Load<std::uint64_t>(core_, linear, value)
                                  : LoadSlow(core_, linear, &value, bytes_, By::kProgram);
  if (!loaded) return false;
  offset_ += bytes_;
  return true;
}

void SetStackPointer(Core& core, std::uint64_t sp) {
  if (core.stack_64) {
    core.gpr[kRsp] = sp;
  } else if (core.stack_32) {
    core.gpr[kRsp] = static_cast<std::uint32_t>(sp);
  } else {
    core.gpr[kRsp] = (core.gpr[kRsp] & ~std::uint64_t{0xffff}) | (sp & 0xffff);
  }
}

bool LoadTss(Core& core, std::uint32_t offset, unsigned bytes, std::uint64_t& value) {
  const Segment& tr = core.segments[kTr];
  if (std::uint64_t{offset} + bytes - 1 > tr.limit) {
    return core.Raise(kTs, SelectorError(tr.selector));
  }
  std::uint64_t linear = tr.base + offset;
  if (!core.long_mode()) linear = static_cast<std::uint32_t>(linear);
  if (bytes == 8) return LoadSystem<std::uint64_t>(core, linear, value);
  value = 0;
  return LoadSlow(core, linear, &value, bytes, By::kProcessor);
}

bool LoadTssStack(Core& core, unsigned cpl, std::uint16_t& ss, std::uint64_t& sp) {
  std::uint64_t selector = 0;
  if ((core.segments[kTr].type() & 8) != 0) {
    const std::uint32_t at = 4 + 8 * cpl;
    if (!LoadTss(core, at + 4, 2, selector) || !LoadTss(core, at, 4, sp)) return false;
  } else {
    const std::uint32_t at = 2 + 4 * cpl;
    if (!LoadTss(core, at + 2, 2, selector) || !LoadTss(core, at, 2, sp)) return false;
  }
  ss = static_cast<std::uint16_t>(selector);
  return true;
}

bool LoadTssStack64(Core& core, unsigned cpl, unsigned ist, std::uint64_t& sp) {
  const std::uint32_t at = ist != 0 ? 0x24 + 8 * (ist - 1) : 4 + 8 * cpl;
  if (!LoadTss(core, at, 8, sp)) return false;
  return IsCanonicalNow(core, sp) || core.Raise(kSsVector, 0);
}

}  // namespace pagesaw::cpu
