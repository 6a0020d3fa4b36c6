module;
#include <cstdint>
#include <initializer_list>
module pagesaw.cpu.segmentation;

import pagesaw.cpu.memory;

namespace pagesaw::cpu {
namespace {

// Where the descriptor of `selector` stands, if `bytes` from there lie in its table.
bool Locate(const Core& core, std::uint16_t selector, unsigned bytes, std::uint64_t& linear) {
  std::uint64_t base = core.gdtr.base;
  std::uint64_t limit = core.gdtr.limit;
  if ((selector & kTi) != 0) {
    const Segment& ldt = core.segments[kLdtr];
    if (!ldt.present()) return false;
    base = ldt.base;
    limit = ldt.limit;
  }
  const std::uint64_t offset = selector & 0xfff8u;
  if (offset + bytes - 1 > limit) return false;
  linear = base + offset;
  if (!core.long_mode()) linear = static_cast<std::uint32_t>(linear);
  return true;
}

// A null selector in a data-segment register. Intel clears the base, as later ones of
// AMD's do; others keep that of FS and GS. [amd/vol2] "FS and GS Registers in 64-Bit Mode"
Segment NullSegment(const Core& core, SegmentName name, std::uint16_t selector) {
  Segment segment;
  segment.selector = selector;
  segment.limit = 0;
  const bool keeps = core.model->amd_rules() && !core.model->Has(Feature::kNullClearsBase);
  if (keeps && (name == kFs || name == kGs)) {
    segment.base = core.segments[name].base;
  }
  return segment;
}

bool PrepareSs(Core& core, std::uint16_t selector, Segment& segment) {
  if (IsNull(selector)) {
    if (!core.code_64() || core.cpl == 3 || (selector & 3) != core.cpl) return core.Raise(kGp, 0);
    segment = NullStack(core.cpl);
    segment.selector = selector;
    return true;
  }
  return PrepareStack(core, selector, core.cpl, kGp, segment);
}

bool PrepareData(Core& core, SegmentName name, std::uint16_t selector, Segment& segment) {
  if (IsNull(selector)) {
    segment = NullSegment(core, name, selector);
    return true;
  }
  Descriptor descriptor;
  if (!Fetch(core, selector, kGp, descriptor)) return false;
  const unsigned rpl = selector & 3;
  const unsigned level = rpl > core.cpl ? rpl : core.cpl;
  if (!descriptor.is_readable() || (!descriptor.is_conforming() && level > descriptor.dpl())) {
    return core.Raise(kGp, SelectorError(selector));
  }
  if (!descriptor.present()) return core.Raise(kNp, SelectorError(selector));
  segment = descriptor.ToSegment(selector);
  return MarkAccessed(core, descriptor, segment);
}

}  // namespace

Lookup LookUp(Core& core, std::uint16_t selector, Descriptor& descriptor) {
  if (!Locate(core, selector, 8, descriptor.address)) return Lookup::kOutside;
  descriptor.high = 0;
  return LoadSystem(core, descriptor.address, descriptor.low) ? Lookup::kFound : Lookup::kStopped;
}

Lookup LookUpHigh(Core& core, std::uint16_t selector, Descriptor& descriptor) {
  if (!Locate(core, selector, 16, descriptor.address)) return Lookup::kOutside;
  return LoadSystem(core, descriptor.address + 8, descriptor.high) ? Lookup::kFound
                                                                   : Lookup::kStopped;
}

bool Fetch(Core& core, std::uint16_t selector, Vector vector, Descriptor& descriptor) {
  const Lookup found = LookUp(core, selector, descriptor);
  if (found == Lookup::kOutside) return core.Raise(vector, SelectorError(selector));
  return found == Lookup::kFound;
}

bool FetchWide(Core& core, std::uint16_t selector, Vector vector, Descriptor& descriptor) {
  if (!Fetch(core, selector, vector, descriptor)) return false;
  if (!core.long_mode()) return true;
  const Lookup found = LookUpHigh(core, selector, descriptor);
  if (found == Lookup::kOutside) return core.Raise(vector, SelectorError(selector));
  return found == Lookup::kFound;
}

bool MarkAccessed(Core& core, const Descriptor& descriptor, Segment& segment) {
  segment.attributes |= 1;
  if ((descriptor.type() & 1) != 0) return true;
  return WriteType(core, descriptor, descriptor.type() | 1);
}

bool WriteType(Core& core, const Descriptor& descriptor, unsigned type) {
  const auto byte = static_cast<std::uint8_t>((descriptor.low >> 40 & 0xf0) | type);
  return StoreSystem(core, descriptor.address + 5, byte);
}

Segment RealModeSegment(const Core& core, SegmentName name, std::uint16_t selector) {
  Segment segment = core.segments[name];
  segment.selector = selector;
  segment.base = std::uint64_t{selector} << 4;
  if (core.virtual_8086()) {
    segment.limit = 0xffff;
    segment.attributes = 0xf3;
  } else {
    // The limit stays what it was, so that real mode can keep large segments.
    segment.attributes = (segment.attributes & 0xf000) | (name == kCs ? 0x9b : 0x93);
  }
  return segment;
}

bool PrepareSegment(Core& core, SegmentName name, std::uint16_t selector, Segment& segment) {
  if (core.real_mode() || core.virtual_8086()) {
    segment = RealModeSegment(core, name, selector);
    return true;
  }
  return name == kSs ? PrepareSs(core, selector, segment)
                     : PrepareData(core, name, selector, segment);
}

bool PrepareStack(Core& core, std::uint16_t selector, unsigned cpl, Vector vector,
                  Segment& segment) {
  if (IsNull(selector)) return core.Raise(vector, SelectorError(selector));
  Descriptor descriptor;
  if (!Fetch(core, selector, vector, descriptor)) return false;
  if ((selector & 3u) != cpl || !descriptor.is_writable() || descriptor.dpl() != cpl) {
    return core.Raise(vector, SelectorError(selector));
  }
  if (!descriptor.present()) return core.Raise(kSsVector, SelectorError(selector));
  segment = descriptor.ToSegment(selector);
  return MarkAccessed(core, descriptor, segment);
}

Segment NullStack(unsigned cpl) {
  Segment segment;
  segment.selector = static_cast<std::uint16_t>(cpl);
  segment.attributes = static_cast<std::uint16_t>(cpl << 5);  // SS.DPL is the CPL
  segment.limit = 0;
  return segment;
}

bool PrepareCode(Core& core, std::uint16_t selector, const Descriptor& descriptor, unsigned cpl,
                 Segment& segment) {
  if (!descriptor.present()) return core.Raise(kNp, SelectorError(selector));
  segment = descriptor.ToSegment(static_cast<std::uint16_t>((selector & ~3u) | cpl));
  return MarkAccessed(core, descriptor, segment);
}

bool FetchReturnCode(Core& core, std::uint16_t selector, Descriptor& code) {
  if (IsNull(selector)) return core.Raise(kGp, 0);
  if (!Fetch(core, selector, kGp, code)) return false;
  const unsigned rpl = selector & 3;
  const bool privileges = code.is_conforming() ? code.dpl() <= rpl : code.dpl() == rpl;
  if (!code.is_code() || rpl < core.cpl || !privileges ||
      (core.long_mode() && code.long_mode() && code.big())) {
    return core.Raise(kGp, SelectorError(selector));
  }
  return true;
}

bool PrepareReturnStack(Core& core, std::uint16_t selector, unsigned cpl, bool to_64,
                        Segment& segment) {
  if (!IsNull(selector)) return PrepareStack(core, selector, cpl, kGp, segment);
  if (!to_64 || cpl == 3 || (selector & 3u) != cpl) return core.Raise(kGp, 0);
  segment = NullStack(cpl);
  return true;
}

void SetSegment(Core& core, SegmentName name, const Segment& segment) {
  Segment& current = core.segments[name];
  if (name == kCs && (current.base != segment.base || current.limit != segment.limit)) {
    core.ForgetJumps();
  }
  current = segment;
}

void DropInnerSegments(Core& core, unsigned cpl) {
  for (const SegmentName name : {kEs, kDs, kFs, kGs}) {
    const Segment& segment = core.segments[name];
    const bool conforming = segment.is_code() && (segment.type() & 4) != 0;
    if (!segment.present() || segment.dpl() >= cpl || conforming) continue;
    // Only the selector is said to become null: the base survives, as that of a null selector does
    // that an MSR has set.
    core.segments[name] = {.selector = 0, .attributes = 0, .limit = 0, .base = segment.base};
  }
}

bool IsCanonicalBase(const Core& core, std::uint64_t linear) {
  return IsCanonical(Gva(linear), core.model->linear_bits());
}

}  // namespace pagesaw::cpu
