// Counted branches, XLAT and BOUND.
module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <type_traits>
module pagesaw.cpu.legacy;

import pagesaw.core.address;
import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

template <class T>
constexpr RegisterOffset kCounter = kRcx * 8;

// Goes on at the target of a relative branch. [intel/vol2] "LOOP", exceptions
bool BranchBy(Core& core, const Op& op) {
  const unsigned unused = 64 - 8u * op.operand_bytes;
  const std::uint64_t target = (core.NextRip(&op) + op.immediate) << unused >> unused;
  if (core.code_64()) {
    const unsigned width = (core.cr4 & kCr4La57) != 0 ? 57 : 48;
    if (!IsCanonical(Gva(target), width)) return core.Raise(kGp, 0);
  } else if (target > core.segments[kCs].limit) {
    return core.Raise(kGp, 0);
  }
  core.rip = target;
  return true;
}

enum class While : std::uint8_t { kAlways, kEqual, kNotEqual };

// T: the counter, by the address size.
template <class T, While kWhile>
bool Loop(Core& core, const Op& op) {
  const T count = static_cast<T>(core.Read<T>(kCounter<T>) - 1);
  const bool goes_on =
      count != 0 && (kWhile == While::kAlways || core.flags.zero() == (kWhile == While::kEqual));
  if (goes_on && !BranchBy(core, op)) return false;
  core.Write<T>(kCounter<T>, count);
  return true;
}

template <class T>
bool BranchIfCounterZero(Core& core, const Op& op) {
  return core.Read<T>(kCounter<T>) != 0 || BranchBy(core, op);
}

bool Xlat(Core& core, const Op& op) {
  const unsigned unused = 64 - 8u * op.address_bytes;
  const std::uint64_t sum = core.gpr[kRbx] + (core.gpr[kRax] & 0xff);
  std::uint64_t linear = 0;
  std::uint8_t value;
  if (!Linear(core, static_cast<SegmentName>(op.segment), sum << unused >> unused, 1, false,
              linear) ||
      !Load<std::uint8_t>(core, linear, value)) {
    return false;
  }
  core.Write<std::uint8_t>(kRax * 8, value);
  return true;
}

template <class T>
bool Bound(Core& core, const Op& op) {
  using Signed = std::make_signed_t<T>;
  std::uint64_t linear = 0;
  T lower, upper;
  if (!OperandAddress(core, op, 2 * sizeof(T), false, linear) || !Load<T>(core, linear, lower) ||
      !Load<T>(core, linear + sizeof(T), upper)) {
    return false;
  }
  const auto index = static_cast<Signed>(core.Read<T>(op.first));
  if (index < static_cast<Signed>(lower) || index > static_cast<Signed>(upper)) {
    return core.Raise(kBr);
  }
  return true;
}

template <While kWhile>
Selection SelectWhile(const Decoded& decoded, Op& op) {
  op.operand_bytes = static_cast<std::uint8_t>(decoded.instruction.operand_width / 8);
  return {
      ByWordSize(op.address_bytes, []<class T>() -> Handler { return &Ending<&Loop<T, kWhile>>; }),
      true};
}

}  // namespace

Selection SelectLoop(const Decoded& decoded, Op& op) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_LOOP:
      return SelectWhile<While::kAlways>(decoded, op);
    case ZYDIS_MNEMONIC_LOOPE:
      return SelectWhile<While::kEqual>(decoded, op);
    case ZYDIS_MNEMONIC_LOOPNE:
      return SelectWhile<While::kNotEqual>(decoded, op);
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
      op.operand_bytes = static_cast<std::uint8_t>(decoded.instruction.operand_width / 8);
      return {ByWordSize(op.address_bytes,
                         []<class T>() -> Handler { return &Ending<&BranchIfCounterZero<T>>; }),
              true};
    default:
      return {};
  }
}

Selection SelectTable(const Decoded& decoded, Op& op) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_XLAT:
      op.segment = SegmentOfImplicit(decoded, kRbx);
      return {&Plain<&Xlat>};
    case ZYDIS_MNEMONIC_BOUND:
      return {op.operand_bytes == 2 ? &Plain<&Bound<std::uint16_t>>
                                    : &Plain<&Bound<std::uint32_t>>};
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
