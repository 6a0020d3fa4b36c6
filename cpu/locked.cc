// LOCK forms of arithmetic and logic.
module;
#include <Zydis/Zydis.h>
#include <cstdint>
module pagesaw.cpu.exchange;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

struct Add {
  template <class T>
  static T Apply(T value, T source, LazyFlags& flags) {
    const T result = static_cast<T>(value + source);
    flags.Set<T>(FlagMaker::kAdd, result, value);
    return result;
  }
};
struct Adc {
  template <class T>
  static T Apply(T value, T source, LazyFlags& flags) {
    if (!flags.carry()) return Add::Apply<T>(value, source, flags);
    const T result = static_cast<T>(value + source + 1);
    flags.Set<T>(FlagMaker::kAdc, result, value);
    return result;
  }
};
struct Sub {
  template <class T>
  static T Apply(T value, T source, LazyFlags& flags) {
    const T result = static_cast<T>(value - source);
    flags.Set<T>(FlagMaker::kSub, result, value);
    return result;
  }
};
struct Sbb {
  template <class T>
  static T Apply(T value, T source, LazyFlags& flags) {
    if (!flags.carry()) return Sub::Apply<T>(value, source, flags);
    const T result = static_cast<T>(value - source - 1);
    flags.Set<T>(FlagMaker::kSbb, result, value);
    return result;
  }
};
struct And {
  template <class T>
  static T Apply(T value, T source, LazyFlags& flags) {
    const T result = value & source;
    flags.SetLogic<T>(result);
    return result;
  }
};
struct Or {
  template <class T>
  static T Apply(T value, T source, LazyFlags& flags) {
    const T result = value | source;
    flags.SetLogic<T>(result);
    return result;
  }
};
struct Xor {
  template <class T>
  static T Apply(T value, T source, LazyFlags& flags) {
    const T result = value ^ source;
    flags.SetLogic<T>(result);
    return result;
  }
};
struct Inc {
  template <class T>
  static T Apply(T value, T, LazyFlags& flags) {
    const T result = static_cast<T>(value + 1);
    flags.SetKeepingCarry<T>(FlagMaker::kInc, result, value);
    return result;
  }
};
struct Dec {
  template <class T>
  static T Apply(T value, T, LazyFlags& flags) {
    const T result = static_cast<T>(value - 1);
    flags.SetKeepingCarry<T>(FlagMaker::kDec, result, value);
    return result;
  }
};
struct Neg {
  template <class T>
  static T Apply(T value, T, LazyFlags& flags) {
    return Sub::Apply<T>(0, value, flags);
  }
};
struct Not {
  template <class T>
  static T Apply(T value, T, LazyFlags&) {
    return static_cast<T>(~value);
  }
};

enum class Source : std::uint8_t { kImmediate, kRegister };

template <class Operation, class T, Source kSource>
bool Locked(Core& core, const Op& op) {
  std::uint64_t linear = 0;
  const T source =
      kSource == Source::kRegister ? core.Read<T>(op.second) : static_cast<T>(op.immediate);
  if (!OperandAddress(core, op, sizeof(T), true, linear)) return false;
  return ModifyMemoryLocked<T>(core, linear, [source](T value, LazyFlags& flags) -> T {
    return Operation::template Apply<T>(value, source, flags);
  });
}

template <class Operation>
Selection SelectBy(const Decoded& decoded, Op& op) {
  if (!op.memory) return UndefinedInstruction();
  PlaceRegisters(decoded, op);
  if (decoded.instruction.operand_count_visible > 1 &&
      decoded.operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
    return {BySize(op.operand_bytes, []<class T>() -> Handler {
      return &Plain<&Locked<Operation, T, Source::kRegister>>;
    })};
  }
  return {BySize(op.operand_bytes, []<class T>() -> Handler {
    return &Plain<&Locked<Operation, T, Source::kImmediate>>;
  })};
}

}  // namespace

Selection SelectLocked(const Decoded& decoded, Op& op) {
  if (!op.lock) return {};
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
      return SelectBy<Add>(decoded, op);
    case ZYDIS_MNEMONIC_OR:
      return SelectBy<Or>(decoded, op);
    case ZYDIS_MNEMONIC_ADC:
      return SelectBy<Adc>(decoded, op);
    case ZYDIS_MNEMONIC_SBB:
      return SelectBy<Sbb>(decoded, op);
    case ZYDIS_MNEMONIC_AND:
      return SelectBy<And>(decoded, op);
    case ZYDIS_MNEMONIC_SUB:
      return SelectBy<Sub>(decoded, op);
    case ZYDIS_MNEMONIC_XOR:
      return SelectBy<Xor>(decoded, op);
    case ZYDIS_MNEMONIC_INC:
      return SelectBy<Inc>(decoded, op);
    case ZYDIS_MNEMONIC_DEC:
      return SelectBy<Dec>(decoded, op);
    case ZYDIS_MNEMONIC_NEG:
      return SelectBy<Neg>(decoded, op);
    case ZYDIS_MNEMONIC_NOT:
      return SelectBy<Not>(decoded, op);
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
