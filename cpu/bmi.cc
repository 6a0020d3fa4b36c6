// BMI1 and BMI2. [intel/vol2] each by its name
module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <type_traits>
module pagesaw.cpu.bits;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

template <class T>
constexpr unsigned kBits = sizeof(T) * 8;

// Each takes r/m, then the other source. Flags stay where none are set.
struct Andn {
  template <class T>
  static T Apply(T value, T other, LazyFlags& flags) {
    const T result = static_cast<T>(~other & value);
    flags.SetLogic<T>(result);
    return result;
  }
};
struct Bextr {
  template <class T>
  static T Apply(T value, T control, LazyFlags& flags) {
    const unsigned start = control & 0xff;
    const unsigned length = control >> 8 & 0xff;
    T result = start < kBits<T> ? static_cast<T>(value >> start) : T{0};
    if (length < kBits<T>) result &= static_cast<T>((T{1} << length) - 1);
    // SF, AF and PF are undefined.
    flags.SetEager((ResultFlags(result) & (kFlagZf | kFlagPf)) | kFlagAf);
    return result;
  }
};
template <class T>
void SetBlsFlags(T result, bool carry, LazyFlags& flags) {
  flags.SetEager(ResultFlags(result) | (carry ? kFlagCf : 0));
}
struct Blsi {
  template <class T>
  static T Apply(T value, T, LazyFlags& flags) {
    const T result = static_cast<T>(value & (T{0} - value));
    SetBlsFlags(result, value != 0, flags);
    return result;
  }
};
struct Blsmsk {
  template <class T>
  static T Apply(T value, T, LazyFlags& flags) {
    const T result = static_cast<T>(value ^ (value - 1));
    SetBlsFlags(result, value == 0, flags);
    return result;
  }
};
struct Blsr {
  template <class T>
  static T Apply(T value, T, LazyFlags& flags) {
    const T result = static_cast<T>(value & (value - 1));
    SetBlsFlags(result, value == 0, flags);
    return result;
  }
};
struct Bzhi {
  template <class T>
  static T Apply(T value, T index, LazyFlags& flags) {
    const unsigned bits = index & 0xff;
    const T result = bits < kBits<T> ? static_cast<T>(value & ((T{1} << bits) - 1)) : value;
    SetBlsFlags(result, bits >= kBits<T>, flags);
    return result;
  }
};
struct Pdep {
  template <class T>
  static T Apply(T mask, T source, LazyFlags&) {
    T result = 0;
    for (; mask != 0; mask &= mask - 1, source >>= 1) {
      if ((source & 1) != 0) result |= mask & (T{0} - mask);
    }
    return result;
  }
};
struct Pext {
  template <class T>
  static T Apply(T mask, T source, LazyFlags&) {
    T result = 0;
    for (T bit = 1; mask != 0; mask &= mask - 1, bit = static_cast<T>(bit << 1)) {
      if ((source & mask & (T{0} - mask)) != 0) result |= bit;
    }
    return result;
  }
};
struct Rorx {
  template <class T>
  static T Apply(T value, T count, LazyFlags&) {
    const unsigned turn = count & (kBits<T> - 1);
    return turn == 0 ? value : static_cast<T>(value >> turn | value << (kBits<T> - turn));
  }
};
struct Shlx {
  template <class T>
  static T Apply(T value, T count, LazyFlags&) {
    return static_cast<T>(value << (count & (kBits<T> - 1)));
  }
};
struct Shrx {
  template <class T>
  static T Apply(T value, T count, LazyFlags&) {
    return static_cast<T>(value >> (count & (kBits<T> - 1)));
  }
};
struct Sarx {
  template <class T>
  static T Apply(T value, T count, LazyFlags&) {
    return static_cast<T>(static_cast<std::make_signed_t<T>>(value) >> (count & (kBits<T> - 1)));
  }
};

// Where the other source is: nowhere, in the immediate, or in the register that it names.
enum class Other : std::uint8_t { kNone, kImmediate, kRegister };

template <class Operation, class T, Place kPlace, Other kOther>
bool Bmi(Core& core, const Op& op) {
  T value;
  if (!ReadOperand<T, kPlace>(core, op, op.second, value)) return false;
  T other = 0;
  if constexpr (kOther == Other::kImmediate) other = static_cast<T>(op.immediate);
  if constexpr (kOther == Other::kRegister) {
    other = core.Read<T>(static_cast<RegisterOffset>(op.immediate));
  }
  core.Write<T>(op.first, Operation::template Apply<T>(value, other, core.flags));
  return true;
}
template <class Operation, class T, Place kPlace, Other kOther>
bool BmiLegacy(Core& core, const Op& op) {
  return VexIsLegal(core) && Bmi<Operation, T, kPlace, kOther>(core, op);
}

// `source`: which operand is r/m; `other`: which one is the other source, 0 for none.
template <class Operation, Other kOther = Other::kRegister>
Selection SelectBy(const Decoded& decoded, Op& op, Feature feature, unsigned source,
                   unsigned other) {
  if (!decoded.model->Has(feature)) return UndefinedInstruction();
  op.first = GprOffset(decoded.operands[0].reg.value);
  if (!op.memory) op.second = GprOffset(decoded.operands[source].reg.value);
  if (kOther == Other::kRegister) op.immediate = GprOffset(decoded.operands[other].reg.value);
  const bool legacy = decoded.code_size != CodeSize::k64;
  return {ByWordSizeAndPlace(decoded, op, [legacy]<class T, Place kPlace>() -> Handler {
    if constexpr (sizeof(T) == 2) {
      return nullptr;
    } else {
      return legacy ? &Plain<&BmiLegacy<Operation, T, kPlace, kOther>>
                    : &Plain<&Bmi<Operation, T, kPlace, kOther>>;
    }
  })};
}

}  // namespace

Selection SelectBmi(const Decoded& decoded, Op& op) {
  constexpr Feature kBmi1 = Feature::kBmi1, kBmi2 = Feature::kBmi2;
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_ANDN:
      return SelectBy<Andn>(decoded, op, kBmi1, 2, 1);
    case ZYDIS_MNEMONIC_BEXTR:
      return SelectBy<Bextr>(decoded, op, kBmi1, 1, 2);
    case ZYDIS_MNEMONIC_BLSI:
      return SelectBy<Blsi, Other::kNone>(decoded, op, kBmi1, 1, 0);
    case ZYDIS_MNEMONIC_BLSMSK:
      return SelectBy<Blsmsk, Other::kNone>(decoded, op, kBmi1, 1, 0);
    case ZYDIS_MNEMONIC_BLSR:
      return SelectBy<Blsr, Other::kNone>(decoded, op, kBmi1, 1, 0);
    case ZYDIS_MNEMONIC_BZHI:
      return SelectBy<Bzhi>(decoded, op, kBmi2, 1, 2);
    case ZYDIS_MNEMONIC_PDEP:
      return SelectBy<Pdep>(decoded, op, kBmi2, 2, 1);
    case ZYDIS_MNEMONIC_PEXT:
      return SelectBy<Pext>(decoded, op, kBmi2, 2, 1);
    case ZYDIS_MNEMONIC_RORX:
      return SelectBy<Rorx, Other::kImmediate>(decoded, op, kBmi2, 1, 2);
    case ZYDIS_MNEMONIC_SARX:
      return SelectBy<Sarx>(decoded, op, kBmi2, 1, 2);
    case ZYDIS_MNEMONIC_SHLX:
      return SelectBy<Shlx>(decoded, op, kBmi2, 1, 2);
    case ZYDIS_MNEMONIC_SHRX:
      return SelectBy<Shrx>(decoded, op, kBmi2, 1, 2);
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
