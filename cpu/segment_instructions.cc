// The instructions of pagesaw.cpu.segmentation.
module;
#include <cstdint>
#include <utility>
module pagesaw.cpu.segmentation;

import pagesaw.cpu.control_bits;
import pagesaw.cpu.intercept;
import pagesaw.cpu.memory;

namespace pagesaw::cpu {
namespace {

bool RefusedByUmip(const Core& core) { return core.cpl > 0 && (core.cr4 & kCr4Umip) != 0; }
bool NoSelectors(const Core& core) { return core.real_mode() || core.virtual_8086(); }

// The selector that an instruction names: a register or 16 bits of memory.
bool LoadSelector(Core& core, const Op& op, std::uint16_t& selector) {
  if (op.memory) return LoadOperand(core, op, selector);
  selector = core.Read<std::uint16_t>(op.second);
  return true;
}

// Stores a selector: 16 bits in memory, zero-extended to the operand size in a register.
bool StoreSelector(Core& core, const Op& op, std::uint16_t selector) {
  if (op.memory) return StoreOperand(core, op, selector);
  if (op.operand_bytes == 2) {
    core.Write<std::uint16_t>(op.first, selector);
  } else {
    core.Write<std::uint64_t>(op.first, selector);
  }
  return true;
}

void SetZero(Core& core, bool zero) {
  core.flags.SetEager((core.flags.All() & ~kFlagZf) | (zero ? kFlagZf : 0));
}

template <class T>
bool PopSelector(Core& core, const Op& op) {
  const auto name = static_cast<SegmentName>(op.first);
  std::uint64_t linear = 0;
  T value = 0;
  if (!StackAddress(core, 0, sizeof(T), false, linear) || !Load(core, linear, value)) return false;
  Segment segment;
  if (!PrepareSegment(core, name, static_cast<std::uint16_t>(value), segment)) return false;
  MoveStack(core, sizeof(T));
  SetSegment(core, name, segment);
  if (name == kSs) {
    core.interrupt_shadow = core.stack_shadow = true;
    core.UpdateMode();
  }
  return true;
}

template <class T>
bool LoadPointer(Core& core, const Op& op) {
  const auto name = static_cast<SegmentName>(op.second);
  std::uint64_t linear = 0;
  T offset = 0;
  std::uint16_t selector = 0;
  if (!OperandAddress(core, op, sizeof(T) + 2, false, linear) || !Load(core, linear, offset) ||
      !Load(core, linear + sizeof(T), selector)) {
    return false;
  }
  Segment segment;
  if (!PrepareSegment(core, name, selector, segment)) return false;
  SetSegment(core, name, segment);
  core.Write<T>(op.first, offset);
  if (name == kSs) core.UpdateMode();
  return true;
}

// `reg`: of the operand, unless it is memory.
bool LeavesForSelector(Core& core, const Op& op, Intercept what, RegisterOffset reg) {
  return Leaves(core, op, {.what = what, .gpr = static_cast<std::uint8_t>(reg / 8)});
}

bool StoreTable(Core& core, const Op& op, const DescriptorTable& table, Intercept intercept) {
  if (RefusedByUmip(core)) return core.Raise(kGp, 0);
  if (Leaves(core, op, {.what = intercept, .operand_bytes = op.operand_bytes})) return false;
  std::uint8_t bytes[10];
  __builtin_memcpy(bytes, &table.limit, 2);
  __builtin_memcpy(bytes + 2, &table.base, 8);
  const unsigned count = core.code_64() ? 10 : 6;
  std::uint64_t linear = 0;
  if (!OperandAddress(core, op, count, true, linear) ||
      !ProbeWrite(core, linear, count, By::kProgram)) {
    return false;
  }
  // Limit and base are aligned each by itself. [intel/vol3] "Memory-Management Registers"
  for (unsigned at = 0; at < count;) {
    const unsigned piece = at == 0 ? 2 : 4;
    if (!StoreSlow(core, linear + at, bytes + at, piece, By::kProgram)) return false;
    at += piece;
  }
  return true;
}

bool LoadTable(Core& core, const Op& op, DescriptorTable& table, Intercept intercept) {
  if (core.cpl > 0) return core.Raise(kGp, 0);
  if (Leaves(core, op, {.what = intercept, .operand_bytes = op.operand_bytes})) return false;
  std::uint8_t bytes[10] = {};
  const unsigned count = core.code_64() ? 10 : 6;
  std::uint64_t linear = 0;
  if (!OperandAddress(core, op, count, false, linear) ||
      !LoadSlow(core, linear, bytes, count, By::kProgram)) {
    return false;
  }
  DescriptorTable loaded;
  __builtin_memcpy(&loaded.limit, bytes, 2);
  __builtin_memcpy(&loaded.base, bytes + 2, 8);
  if (!core.code_64() && op.operand_bytes == 2) loaded.base &= 0xff'ffff;
  if (core.code_64() && !IsCanonicalBase(core, loaded.base)) return core.Raise(kGp, 0);
  table = loaded;
  return true;
}

// Whether a program at the current level may ask about `selector`, for LAR, LSL, VERR and VERW.
Lookup Examine(Core& core, std::uint16_t selector, Descriptor& descriptor) {
  if (IsNull(selector)) return Lookup::kOutside;
  const Lookup found = LookUp(core, selector, descriptor);
  if (found != Lookup::kFound || descriptor.is_conforming()) return found;
  const bool visible = descriptor.dpl() >= core.cpl && descriptor.dpl() >= (selector & 3u);
  return visible ? Lookup::kFound : Lookup::kOutside;
}

bool Verify(Core& core, const Op& op, bool (Descriptor::*right)() const) {
  if (NoSelectors(core)) return core.Raise(kUd);
  std::uint16_t selector = 0;
  if (!LoadSelector(core, op, selector)) return false;
  Descriptor descriptor;
  const Lookup found = Examine(core, selector, descriptor);
  if (found == Lookup::kStopped) return false;
  SetZero(core, found == Lookup::kFound && (descriptor.*right)());
  return true;
}

// System types that LAR and LSL tell about, a bit each. [intel/vol2] "LAR", "LSL"
constexpr std::uint32_t kLarTypes = 0x1a3e;
constexpr std::uint32_t kLarTypesLong = 0x1a04;
constexpr std::uint32_t kLslTypes = 0x0a0e;
constexpr std::uint32_t kLslTypesLong = 0x0a04;

// LAR or LSL: what they load is `value(descriptor)`.
template <class Value>
bool Tell(Core& core, const Op& op, std::uint32_t types, Value value) {
  if (NoSelectors(core)) return core.Raise(kUd);
  std::uint16_t selector = 0;
  if (!LoadSelector(core, op, selector)) return false;
  Descriptor descriptor;
  const Lookup found = Examine(core, selector, descriptor);
  if (found == Lookup::kStopped) return false;
  const bool valid =
      found == Lookup::kFound && (!descriptor.is_system() || (types >> descriptor.type() & 1) != 0);
  SetZero(core, valid);
  if (!valid) return true;
  const std::uint32_t told = value(descriptor);
  if (op.operand_bytes == 2) {
    core.Write<std::uint16_t>(op.first, static_cast<std::uint16_t>(told));
  } else {
    core.Write<std::uint64_t>(op.first, told);
  }
  return true;
}

bool ReadBase(Core& core, const Op& op, SegmentName name) {
  if (!core.code_64() || (core.cr4 & kCr4Fsgsbase) == 0) return core.Raise(kUd);
  const std::uint64_t base = core.segments[name].base;
  core.Write<std::uint64_t>(op.first,
                            op.operand_bytes == 8 ? base : static_cast<std::uint32_t>(base));
  return true;
}

bool WriteBase(Core& core, const Op& op, SegmentName name) {
  if (!core.code_64() || (core.cr4 & kCr4Fsgsbase) == 0) return core.Raise(kUd);
  std::uint64_t base = core.Read<std::uint64_t>(op.first);
  if (op.operand_bytes != 8) base = static_cast<std::uint32_t>(base);
  if (!IsCanonicalBase(core, base)) return core.Raise(kGp, 0);
  core.segments[name].base = base;
  return true;
}

}  // namespace

bool MovToSegment(Core& core, const Op& op) {
  const auto name = static_cast<SegmentName>(op.first);
  if (name == kCs || name > kGs) return core.Raise(kUd);
  std::uint16_t selector = 0;
  Segment segment;
  if (!LoadSelector(core, op, selector) || !PrepareSegment(core, name, selector, segment)) {
    return false;
  }
  SetSegment(core, name, segment);
  if (name == kSs) {
    core.interrupt_shadow = core.stack_shadow = true;
    core.UpdateMode();
  }
  return true;
}

bool MovFromSegment(Core& core, const Op& op) {
  if (op.second > kGs) return core.Raise(kUd);
  return StoreSelector(core, op, core.segments[op.second].selector);
}

bool PushSegment(Core& core, const Op& op) {
  const std::uint16_t selector = core.segments[op.first].selector;
  switch (op.operand_bytes) {
    case 2:
      return Push<std::uint16_t>(core, selector);
    case 4:
      return Push<std::uint32_t>(core, selector);
    default:
      return Push<std::uint64_t>(core, selector);
  }
}

bool PopSegment(Core& core, const Op& op) {
  switch (op.operand_bytes) {
    case 2:
      return PopSelector<std::uint16_t>(core, op);
    case 4:
      return PopSelector<std::uint32_t>(core, op);
    default:
      return PopSelector<std::uint64_t>(core, op);
  }
}

bool LoadFarPointer(Core& core, const Op& op) {
  switch (op.operand_bytes) {
    case 2:
      return LoadPointer<std::uint16_t>(core, op);
    case 4:
      return LoadPointer<std::uint32_t>(core, op);
    default:
      return LoadPointer<std::uint64_t>(core, op);
  }
}

bool Sldt(Core& core, const Op& op) {
  if (NoSelectors(core)) return core.Raise(kUd);
  if (RefusedByUmip(core)) return core.Raise(kGp, 0);
  if (LeavesForSelector(core, op, Intercept::kReadLdtr, op.first)) return false;
  return StoreSelector(core, op, core.segments[kLdtr].selector);
}

bool Str(Core& core, const Op& op) {
  if (NoSelectors(core)) return core.Raise(kUd);
  if (RefusedByUmip(core)) return core.Raise(kGp, 0);
  if (LeavesForSelector(core, op, Intercept::kReadTr, op.first)) return false;
  return StoreSelector(core, op, core.segments[kTr].selector);
}

bool Lldt(Core& core, const Op& op) {
  if (NoSelectors(core)) return core.Raise(kUd);
  if (core.cpl > 0) return core.Raise(kGp, 0);
  if (LeavesForSelector(core, op, Intercept::kWriteLdtr, op.second)) return false;
  std::uint16_t selector = 0;
  if (!LoadSelector(core, op, selector)) return false;
  if (IsNull(selector)) {
    core.segments[kLdtr] = Segment{.selector = selector, .attributes = 0, .limit = 0, .base = 0};
    return true;
  }
  Descriptor descriptor;
  if ((selector & kTi) != 0) return core.Raise(kGp, SelectorError(selector));
  if (!FetchWide(core, selector, kGp, descriptor)) return false;
  const std::uint64_t base = descriptor.ToSegment(selector).base | descriptor.high << 32;
  if (!descriptor.is_system() || descriptor.type() != kLdt || (descriptor.high >> 40 & 0x1f) != 0 ||
      (core.long_mode() && !IsCanonicalBase(core, base))) {
    return core.Raise(kGp, SelectorError(selector));
  }
  if (!descriptor.present()) return core.Raise(kNp, SelectorError(selector));
  core.segments[kLdtr] = descriptor.ToSegment(selector);
  core.segments[kLdtr].base = base;
  return true;
}

bool Ltr(Core& core, const Op& op) {
  if (NoSelectors(core)) return core.Raise(kUd);
  if (core.cpl > 0) return core.Raise(kGp, 0);
  if (LeavesForSelector(core, op, Intercept::kWriteTr, op.second)) return false;
  std::uint16_t selector = 0;
  if (!LoadSelector(core, op, selector)) return false;
  if (IsNull(selector)) return core.Raise(kGp, 0);
  Descriptor descriptor;
  if ((selector & kTi) != 0) return core.Raise(kGp, SelectorError(selector));
  if (!FetchWide(core, selector, kGp, descriptor)) return false;
  const std::uint64_t base = descriptor.ToSegment(selector).base | descriptor.high << 32;
  const bool available =
      descriptor.type() == kTss32 || (descriptor.type() == kTss16 && !core.long_mode());
  if (!descriptor.is_system() || !available || (descriptor.high >> 40 & 0x1f) != 0 ||
      (core.long_mode() && !IsCanonicalBase(core, base))) {
    return core.Raise(kGp, SelectorError(selector));
  }
  if (!descriptor.present()) return core.Raise(kNp, SelectorError(selector));
  if (!WriteType(core, descriptor, descriptor.type() | 2)) return false;
  core.segments[kTr] = descriptor.ToSegment(selector);
  core.segments[kTr].attributes |= 2;
  core.segments[kTr].base = base;
  return true;
}

bool Verr(Core& core, const Op& op) { return Verify(core, op, &Descriptor::is_readable); }
bool Verw(Core& core, const Op& op) { return Verify(core, op, &Descriptor::is_writable); }

bool Lar(Core& core, const Op& op) {
  return Tell(core, op, core.long_mode() ? kLarTypesLong : kLarTypes,
              [](const Descriptor& descriptor) {
                return static_cast<std::uint32_t>(descriptor.low >> 32) & 0x00f0'ff00u;
              });
}

bool Lsl(Core& core, const Op& op) {
  return Tell(core, op, core.long_mode() ? kLslTypesLong : kLslTypes,
              [](const Descriptor& descriptor) { return descriptor.ToSegment(0).limit; });
}

bool Sgdt(Core& core, const Op& op) {
  return StoreTable(core, op, core.gdtr, Intercept::kReadGdtr);
}
bool Sidt(Core& core, const Op& op) {
  return StoreTable(core, op, core.idtr, Intercept::kReadIdtr);
}
bool Lgdt(Core& core, const Op& op) {
  return LoadTable(core, op, core.gdtr, Intercept::kWriteGdtr);
}
bool Lidt(Core& core, const Op& op) {
  return LoadTable(core, op, core.idtr, Intercept::kWriteIdtr);
}

bool Swapgs(Core& core, const Op&) {
  if (!core.code_64()) return core.Raise(kUd);
  if (core.cpl > 0) return core.Raise(kGp, 0);
  std::swap(core.segments[kGs].base, core.kernel_gs_base);
  return true;
}

bool ReadFsBase(Core& core, const Op& op) { return ReadBase(core, op, kFs); }
bool ReadGsBase(Core& core, const Op& op) { return ReadBase(core, op, kGs); }
bool WriteFsBase(Core& core, const Op& op) { return WriteBase(core, op, kFs); }
bool WriteGsBase(Core& core, const Op& op) { return WriteBase(core, op, kGs); }

}  // namespace pagesaw::cpu
