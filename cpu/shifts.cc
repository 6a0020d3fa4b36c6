module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <type_traits>
module pagesaw.cpu.shifts;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

template <class T>
constexpr unsigned kBits = sizeof(T) * 8;

template <class T>
bool TopBit(T value) {
  return (value >> (kBits<T> - 1)) != 0;
}

// Rotates change CF and OF only.
void SetRotateFlags(LazyFlags& flags, bool carry, bool overflow) {
  flags.SetEager((flags.All() & ~(kFlagCf | kFlagOf)) | (carry ? kFlagCf : 0) |
                 (overflow ? kFlagOf : 0));
}

// Each takes a count that is masked and not 0. AF, which is undefined, is set.
struct Shl {
  template <class T>
  static T Apply(T value, unsigned count, LazyFlags& flags) {
    bool carry = false;
    T result = 0;
    if constexpr (sizeof(T) == 8) {
      carry = (value >> (64 - count) & 1) != 0;
      result = value << count;
    } else {
      const std::uint64_t wide = std::uint64_t{value} << count;
      carry = (wide >> kBits<T> & 1) != 0;
      result = static_cast<T>(wide);
    }
    flags.SetShift(result, carry, TopBit(result) != carry);
    return result;
  }
};

struct Shr {
  template <class T>
  static T Apply(T value, unsigned count, LazyFlags& flags) {
    const std::uint64_t last = std::uint64_t{value} >> (count - 1);
    const T result = static_cast<T>(last >> 1);
    const bool overflow = TopBit(static_cast<T>(result ^ static_cast<T>(result << 1)));
    flags.SetShift(result, (last & 1) != 0, overflow);
    return result;
  }
};

struct Sar {
  template <class T>
  static T Apply(T value, unsigned count, LazyFlags& flags) {
    const std::int64_t last =
        std::int64_t{static_cast<std::make_signed_t<T>>(value)} >> (count - 1);
    const T result = static_cast<T>(last >> 1);
    flags.SetShift(result, (last & 1) != 0, false);
    return result;
  }
};

struct Rol {
  template <class T>
  static T Apply(T value, unsigned count, LazyFlags& flags) {
    const unsigned turn = count % kBits<T>;
    const T result = turn == 0 ? value : static_cast<T>(value << turn | value >> (kBits<T> - turn));
    const bool carry = (result & 1) != 0;
    SetRotateFlags(flags, carry, TopBit(result) != carry);
    return result;
  }
};

struct Ror {
  template <class T>
  static T Apply(T value, unsigned count, LazyFlags& flags) {
    const unsigned turn = count % kBits<T>;
    const T result = turn == 0 ? value : static_cast<T>(value >> turn | value << (kBits<T> - turn));
    SetRotateFlags(flags, TopBit(result), TopBit(static_cast<T>(result ^ result << 1)));
    return result;
  }
};

// Through carry: rotates of one bit more than T has.
struct Rcl {
  template <class T>
  static T Apply(T value, unsigned count, LazyFlags& flags) {
    bool carry = flags.carry();
    const unsigned turn = count % (kBits<T> + 1);
    T result = value;
    for (unsigned i = 0; i < turn; ++i) {
      const bool out = TopBit(result);
      result = static_cast<T>(result << 1 | (carry ? 1 : 0));
      carry = out;
    }
    SetRotateFlags(flags, carry, TopBit(result) != carry);
    return result;
  }
};

struct Rcr {
  template <class T>
  static T Apply(T value, unsigned count, LazyFlags& flags) {
    bool carry = flags.carry();
    const unsigned turn = count % (kBits<T> + 1);
    T result = value;
    for (unsigned i = 0; i < turn; ++i) {
      const bool out = (result & 1) != 0;
      result = static_cast<T>(result >> 1 | static_cast<T>(T{carry} << (kBits<T> - 1)));
      carry = out;
    }
    SetRotateFlags(flags, carry, TopBit(static_cast<T>(result ^ result << 1)));
    return result;
  }
};

template <class T>
constexpr unsigned kCountMask = sizeof(T) == 8 ? 63 : 31;

enum class Count : std::uint8_t { kImmediate, kCl };

template <class T, Count kCount>
unsigned CountOf(const Core& core, const Op& op) {
  if constexpr (kCount == Count::kImmediate) return op.immediate & kCountMask<T>;
  return core.Read<std::uint8_t>(kRcx * 8) & kCountMask<T>;
}

template <class Operation, class T, Place kPlace, Count kCount>
bool Shift(Core& core, const Op& op) {
  const unsigned count = CountOf<T, kCount>(core, op);
  return ModifyOperand<T, kPlace>(core, op, op.first, [count](T value, LazyFlags& flags) -> T {
    return count == 0 ? value : Operation::template Apply<T>(value, count, flags);
  });
}

// What a double shift takes its result from: `value` and `filler` behind one another. Counts above
// 16 of the 16-bit forms are undefined: another copy of the filler follows, and CF is clear.
template <class T>
T DoubleLeft(T value, T filler, unsigned count, LazyFlags& flags) {
  bool carry = false, overflow = false;
  T result = 0;
  if constexpr (sizeof(T) == 2) {
    const std::uint64_t train = std::uint64_t{value} << 32 | std::uint64_t{filler} << 16 | filler;
    result = static_cast<T>(train << count >> 32);
    carry = count <= 16 && (value >> (16 - count) & 1) != 0;
    overflow = count < 16 ? TopBit(result) != carry : carry;
  } else {
    result = static_cast<T>(value << count | filler >> (kBits<T> - count));
    carry = (value >> (kBits<T> - count) & 1) != 0;
    overflow = TopBit(result) != carry;
  }
  flags.SetShift(result, carry, overflow);
  return result;
}

template <class T>
T DoubleRight(T value, T filler, unsigned count, LazyFlags& flags) {
  bool carry = false;
  T result = 0;
  if constexpr (sizeof(T) == 2) {
    const std::uint64_t train = std::uint64_t{filler} << 32 | std::uint64_t{filler} << 16 | value;
    result = static_cast<T>(train >> count);
    carry = count <= 16 && (value >> (count - 1) & 1) != 0;
  } else {
    result = static_cast<T>(value >> count | filler << (kBits<T> - count));
    carry = (value >> (count - 1) & 1) != 0;
  }
  flags.SetShift(result, carry, TopBit(static_cast<T>(result ^ result << 1)));
  return result;
}

template <bool kLeft, class T, Place kPlace, Count kCount>
bool DoubleShift(Core& core, const Op& op) {
  const unsigned count = CountOf<T, kCount>(core, op);
  const T filler = core.Read<T>(op.second);
  return ModifyOperand<T, kPlace>(core, op, op.first, [=](T value, LazyFlags& flags) -> T {
    if (count == 0) return value;
    return kLeft ? DoubleLeft<T>(value, filler, count, flags)
                 : DoubleRight<T>(value, filler, count, flags);
  });
}

bool CountIsCl(const Decoded& decoded, unsigned operand) {
  return decoded.operands[operand].type == ZYDIS_OPERAND_TYPE_REGISTER;
}

template <class Operation>
Selection SelectBy(const Decoded& decoded, Op& op) {
  PlaceRegisters(decoded, op);
  if (CountIsCl(decoded, 1)) {
    return {BySizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
      return &Plain<&Shift<Operation, T, kPlace, Count::kCl>>;
    })};
  }
  op.immediate = decoded.operands[1].imm.value.u;
  return {BySizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
    return &Plain<&Shift<Operation, T, kPlace, Count::kImmediate>>;
  })};
}

template <bool kLeft>
Selection SelectDouble(const Decoded& decoded, Op& op) {
  PlaceRegisters(decoded, op);
  if (CountIsCl(decoded, 2)) {
    return {ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
      return &Plain<&DoubleShift<kLeft, T, kPlace, Count::kCl>>;
    })};
  }
  return {ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
    return &Plain<&DoubleShift<kLeft, T, kPlace, Count::kImmediate>>;
  })};
}

}  // namespace

Selection SelectShift(const Decoded& decoded, Op& op) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
      return SelectBy<Shl>(decoded, op);
    case ZYDIS_MNEMONIC_SHR:
      return SelectBy<Shr>(decoded, op);
    case ZYDIS_MNEMONIC_SAR:
      return SelectBy<Sar>(decoded, op);
    case ZYDIS_MNEMONIC_ROL:
      return SelectBy<Rol>(decoded, op);
    case ZYDIS_MNEMONIC_ROR:
      return SelectBy<Ror>(decoded, op);
    case ZYDIS_MNEMONIC_RCL:
      return SelectBy<Rcl>(decoded, op);
    case ZYDIS_MNEMONIC_RCR:
      return SelectBy<Rcr>(decoded, op);
    case ZYDIS_MNEMONIC_SHLD:
      return SelectDouble<true>(decoded, op);
    case ZYDIS_MNEMONIC_SHRD:
      return SelectDouble<false>(decoded, op);
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
