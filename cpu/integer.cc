module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <initializer_list>
#include <type_traits>
module pagesaw.cpu.integer;

import pagesaw.cpu.dispatch;
import pagesaw.cpu.memory;

namespace pagesaw::cpu {
namespace {

// -- operations: flags and result

struct Add {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a + b);
    core.flags.Set<T>(FlagMaker::kAdd, result, a);
    return result;
  }
};
struct Adc {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const bool carry = core.flags.carry();
    const T result = static_cast<T>(a + b + (carry ? 1 : 0));
    core.flags.Set<T>(carry ? FlagMaker::kAdc : FlagMaker::kAdd, result, a);
    return result;
  }
};
struct Sub {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a - b);
    core.flags.Set<T>(FlagMaker::kSub, result, a);
    return result;
  }
};
struct Sbb {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const bool carry = core.flags.carry();
    const T result = static_cast<T>(a - b - (carry ? 1 : 0));
    core.flags.Set<T>(carry ? FlagMaker::kSbb : FlagMaker::kSub, result, a);
    return result;
  }
};
struct Cmp : Sub {
  static constexpr bool kWrites = false;
};
struct And {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a & b);
    core.flags.SetLogic<T>(result);
    return result;
  }
};
struct Test : And {
  static constexpr bool kWrites = false;
};
struct Or {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a | b);
    core.flags.SetLogic<T>(result);
    return result;
  }
};
struct Xor {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a ^ b);
    core.flags.SetLogic<T>(result);
    return result;
  }
};
// One-operand operations take the operand twice.
struct Inc {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T) {
    const T result = static_cast<T>(a + 1);
    core.flags.SetKeepingCarry<T>(FlagMaker::kInc, result, a);
    return result;
  }
};
struct Dec {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T) {
    const T result = static_cast<T>(a - 1);
    core.flags.SetKeepingCarry<T>(FlagMaker::kDec, result, a);
    return result;
  }
};
struct Neg {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T) {
    const T result = static_cast<T>(0 - a);
    core.flags.Set<T>(FlagMaker::kSub, result, T{0});
    return result;
  }
};
struct Not {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core&, T a, T) {
    return static_cast<T>(~a);
  }
};

// -- addresses

struct Flat {
  static inline bool Address(Core& core, const Op& op, unsigned, bool, std::uint64_t& linear) {
    linear = core.Read<std::uint64_t>(op.base) + (core.Read<std::uint64_t>(op.index) << op.scale) +
             static_cast<std::uint64_t>(std::int64_t{op.displacement});
    return true;
  }
  // A flat address misses the TLB if it is not canonical; only then it is checked.
  template <class T>
  static inline bool Load(Core& core, const Op& op, T& value);
  template <class T>
  static inline bool Store(Core& core, const Op& op, T value);
};

template <class T>
[[gnu::noinline]] bool LoadChecked(Core& core, const Op& op, T& value) {
  return LoadOperand<T>(core, op, value);
}
template <class T>
[[gnu::noinline]] bool StoreChecked(Core& core, const Op& op, T value) {
  return StoreOperand<T>(core, op, value);
}

template <class T>
inline bool Flat::Load(Core& core, const Op& op, T& value) {
  std::uint64_t linear = 0;
  Address(core, op, sizeof(T), false, linear);
  const TlbEntry& entry = core.bank->At(linear);
  if (Hits<T>(entry.read_tag, linear)) [[likely]] {
    value = LoadHost<T>(reinterpret_cast<const void*>(linear + entry.addend));
    return true;
  }
  return LoadChecked<T>(core, op, value);
}
template <class T>
inline bool Flat::Store(Core& core, const Op& op, T value) {
  std::uint64_t linear = 0;
  Address(core, op, sizeof(T), true, linear);
  const TlbEntry& entry = core.bank->At(linear);
  if (Hits<T>(entry.write_tag, linear)) [[likely]] {
    StoreHost<T>(reinterpret_cast<void*>(linear + entry.addend), value);
    return true;
  }
  return StoreChecked<T>(core, op, value);
}

struct Segmented {
  template <class T>
  static inline bool Load(Core& core, const Op& op, T& value) {
    return LoadChecked<T>(core, op, value);
  }
  template <class T>
  static inline bool Store(Core& core, const Op& op, T value) {
    return StoreChecked<T>(core, op, value);
  }
};

// -- forms of two-operand arithmetic

template <class Operation, class T>
void RegisterRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  const T result =
      Operation::template Do<T>(core, core.Read<T>(op->first), core.Read<T>(op->second));
  if constexpr (Operation::kWrites) core.Write<T>(op->first, result);
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class Operation, class T>
void RegisterImmediate(Core& core, const Op* op) [[clang::preserve_none]] {
  const T result =
      Operation::template Do<T>(core, core.Read<T>(op->first), static_cast<T>(op->immediate));
  if constexpr (Operation::kWrites) core.Write<T>(op->first, result);
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class Operation, class T, class Where>
void RegisterMemory(Core& core, const Op* op) [[clang::preserve_none]] {
  T value;
  if (!Where::template Load<T>(core, *op, value)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  const T result = Operation::template Do<T>(core, core.Read<T>(op->first), value);
  if constexpr (Operation::kWrites) core.Write<T>(op->first, result);
  [[clang::musttail]] return op[1].run(core, op + 1);
}

// The memory operand is the destination, in the slow way: everything is checked before it is read.
template <class Operation, class T>
[[gnu::noinline]] bool ModifyChecked(Core& core, const Op& op, T operand) {
  std::uint64_t linear = 0;
  T value;
  if (!OperandAddress(core, op, sizeof(T), true, linear) ||
      !ProbeWrite(core, linear, sizeof(T), By::kProgram) || !Load<T>(core, linear, value)) {
    return false;
  }
  const LazyFlags before = core.flags;
  const T result = Operation::template Do<T>(core, value, operand);
  if (Store<T>(core, linear, result)) return true;
  core.flags = before;
  return false;
}

template <class Operation, class T, class Where>
inline bool Modify(Core& core, const Op& op, T operand) {
  if constexpr (!Operation::kWrites) {
    T value;
    if (!Where::template Load<T>(core, op, value)) return false;
    Operation::template Do<T>(core, value, operand);
    return true;
  } else {
    if constexpr (std::is_same_v<Where, Flat>) {
      std::uint64_t linear = 0;
      Flat::Address(core, op, sizeof(T), true, linear);
      const TlbEntry& entry = core.bank->At(linear);
      if (Hits<T>(entry.write_tag, linear) && Hits<T>(entry.read_tag, linear)) [[likely]] {
        auto* host = reinterpret_cast<void*>(linear + entry.addend);
        StoreHost<T>(host, Operation::template Do<T>(core, LoadHost<T>(host), operand));
        return true;
      }
    }
    return ModifyChecked<Operation, T>(core, op, operand);
  }
}

template <class Operation, class T, class Where>
void MemoryRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!Modify<Operation, T, Where>(core, *op, core.Read<T>(op->first))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class Operation, class T, class Where>
void MemoryImmediate(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!Modify<Operation, T, Where>(core, *op, static_cast<T>(op->immediate))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}

// -- moves

template <class T>
void MoveRegisterRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  core.Write<T>(op->first, core.Read<T>(op->second));
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class T>
void MoveRegisterImmediate(Core& core, const Op* op) [[clang::preserve_none]] {
  core.Write<T>(op->first, static_cast<T>(op->immediate));
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class T, class Where>
void MoveRegisterMemory(Core& core, const Op* op) [[clang::preserve_none]] {
  T value;
  if (!Where::template Load<T>(core, *op, value)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  core.Write<T>(op->first, value);
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class T, class Where>
void MoveMemoryRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!Where::template Store<T>(core, *op, core.Read<T>(op->first))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class T, class Where>
void MoveMemoryImmediate(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!Where::template Store<T>(core, *op, static_cast<T>(op->immediate))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}

// MOVZX, MOVSX, MOVSXD: From is unsigned or signed.
template <class To, class From>
void ExtendRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  core.Write<To>(
      op->first,
      static_cast<To>(static_cast<From>(core.Read<std::make_unsigned_t<From>>(op->second))));
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class To, class From, class Where>
void ExtendMemory(Core& core, const Op* op) [[clang::preserve_none]] {
  std::make_unsigned_t<From> value;
  if (!Where::template Load<std::make_unsigned_t<From>>(core, *op, value)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  core.Write<To>(op->first, static_cast<To>(static_cast<From>(value)));
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class T>
void LoadAddress(Core& core, const Op* op) [[clang::preserve_none]] {
  core.Write<T>(op->first, static_cast<T>(EffectiveAddress(core, *op)));
  [[clang::musttail]] return op[1].run(core, op + 1);
}
void LoadAddressFlat(Core& core, const Op* op) [[clang::preserve_none]] {
  std::uint64_t linear = 0;
  Flat::Address(core, *op, 0, false, linear);
  core.gpr[op->first / 8] = linear;
  [[clang::musttail]] return op[1].run(core, op + 1);
}

// MOV between the accumulator and an address of 64 bits, which stands in `immediate`.
template <class T, bool kStore>
bool MoveWide(Core& core, const Op& op) {
  std::uint64_t linear = 0;
  if (!Linear(core, static_cast<SegmentName>(op.segment), op.immediate, sizeof(T), kStore,
              linear)) {
    return false;
  }
  if constexpr (kStore) {
    return Store<T>(core, linear, core.Read<T>(op.first));
  } else {
    T value;
    if (!Load<T>(core, linear, value)) return false;
    core.Write<T>(op.first, value);
    return true;
  }
}

void Nothing(Core& core, const Op* op) [[clang::preserve_none]] {
  [[clang::musttail]] return op[1].run(core, op + 1);
}

// -- selection

// Calls `f` with a value of the unsigned type of `bytes` bytes.
template <class F>
Handler WithType(unsigned bytes, F f) {
  switch (bytes) {
    case 1:
      return f(std::uint8_t{});
    case 2:
      return f(std::uint16_t{});
    case 4:
      return f(std::uint32_t{});
    default:
      return f(std::uint64_t{});
  }
}

template <class Operation, class T, class Where>
Handler ArithmeticOn(ZydisOperandType first, ZydisOperandType second) {
  if (first == ZYDIS_OPERAND_TYPE_MEMORY) {
    return second == ZYDIS_OPERAND_TYPE_IMMEDIATE ? &MemoryImmediate<Operation, T, Where>
                                                  : &MemoryRegister<Operation, T, Where>;
  }
  switch (second) {
    case ZYDIS_OPERAND_TYPE_MEMORY:
      return &RegisterMemory<Operation, T, Where>;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
      return &RegisterImmediate<Operation, T>;
    default:
      return &RegisterRegister<Operation, T>;
  }
}

template <class Operation>
Handler Arithmetic(const Decoded& decoded, const Op& op) {
  // A one-operand operation ignores the second.
  const ZydisOperandType first = decoded.operands[0].type;
  const ZydisOperandType second = decoded.instruction.operand_count_visible > 1
                                      ? decoded.operands[1].type
                                      : ZYDIS_OPERAND_TYPE_IMMEDIATE;
  const bool flat = decoded.address_kind == AddressKind::kFlat;
  return WithType(op.operand_bytes, [&](auto type) {
    using T = decltype(type);
    return flat ? ArithmeticOn<Operation, T, Flat>(first, second)
                : ArithmeticOn<Operation, T, Segmented>(first, second);
  });
}

Handler Move(const Decoded& decoded, Op& op) {
  const ZydisDecodedOperand& first = decoded.operands[0];
  const ZydisDecodedOperand& second = decoded.operands[1];
  const auto is_general = [](const ZydisDecodedOperand& operand) {
    if (operand.type != ZYDIS_OPERAND_TYPE_REGISTER) return true;
    const ZydisRegisterClass kind = ZydisRegisterGetClass(operand.reg.value);
    return kind == ZYDIS_REGCLASS_GPR8 || kind == ZYDIS_REGCLASS_GPR16 ||
           kind == ZYDIS_REGCLASS_GPR32 || kind == ZYDIS_REGCLASS_GPR64;
  };
  if (!is_general(first) || !is_general(second)) return nullptr;
  for (const ZydisDecodedOperand* operand : {&first, &second}) {
    if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    if (operand->mem.base != ZYDIS_REGISTER_NONE ||
        operand->mem.disp.value == std::int64_t{op.displacement}) {
      continue;
    }
    op.immediate = static_cast<std::uint64_t>(operand->mem.disp.value) &
                   (op.address_bytes == 8 ? ~std::uint64_t{0} : 0xffff'ffff);
    const bool store = operand == &first;
    return WithType(op.operand_bytes, [&](auto type) -> Handler {
      using T = decltype(type);
      return store ? &Plain<MoveWide<T, true>> : &Plain<MoveWide<T, false>>;
    });
  }
  const bool flat = decoded.address_kind == AddressKind::kFlat;
  return WithType(op.operand_bytes, [&](auto type) -> Handler {
    using T = decltype(type);
    if (first.type == ZYDIS_OPERAND_TYPE_MEMORY) {
      if (second.type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        return flat ? &MoveMemoryImmediate<T, Flat> : &MoveMemoryImmediate<T, Segmented>;
      }
      return flat ? &MoveMemoryRegister<T, Flat> : &MoveMemoryRegister<T, Segmented>;
    }
    switch (second.type) {
      case ZYDIS_OPERAND_TYPE_MEMORY:
        return flat ? &MoveRegisterMemory<T, Flat> : &MoveRegisterMemory<T, Segmented>;
      case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        return &MoveRegisterImmediate<T>;
      default:
        return &MoveRegisterRegister<T>;
    }
  });
}

template <class From>
Handler ExtendFrom(const Decoded& decoded, const Op& op) {
  const bool memory = decoded.operands[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
  const bool flat = decoded.address_kind == AddressKind::kFlat;
  return WithType(op.operand_bytes, [&](auto type) -> Handler {
    using T = decltype(type);
    if (!memory) return &ExtendRegister<T, From>;
    return flat ? &ExtendMemory<T, From, Flat> : &ExtendMemory<T, From, Segmented>;
  });
}

Handler Extend(const Decoded& decoded, const Op& op, bool is_signed) {
  switch (decoded.operands[1].size) {
    case 8:
      return is_signed ? ExtendFrom<std::int8_t>(decoded, op)
                       : ExtendFrom<std::uint8_t>(decoded, op);
    case 16:
      return is_signed ? ExtendFrom<std::int16_t>(decoded, op)
                       : ExtendFrom<std::uint16_t>(decoded, op);
    default:
      return ExtendFrom<std::int32_t>(decoded, op);
  }
}

Handler LoadAddressFor(const Decoded& decoded, const Op& op) {
  if (decoded.code_size == CodeSize::k64 && op.address_bytes == 8 && op.operand_bytes == 8) {
    return &LoadAddressFlat;
  }
  return WithType(op.operand_bytes,
                  [](auto type) -> Handler { return &LoadAddress<decltype(type)>; });
}

Handler HandlerFor(const Decoded& decoded, Op& op) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
      return Move(decoded, op);
    case ZYDIS_MNEMONIC_MOVZX:
      return Extend(decoded, op, false);
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD:
      return Extend(decoded, op, true);
    case ZYDIS_MNEMONIC_LEA:
      return LoadAddressFor(decoded, op);
    case ZYDIS_MNEMONIC_ADD:
      return Arithmetic<Add>(decoded, op);
    case ZYDIS_MNEMONIC_ADC:
      return Arithmetic<Adc>(decoded, op);
    case ZYDIS_MNEMONIC_SUB:
      return Arithmetic<Sub>(decoded, op);
    case ZYDIS_MNEMONIC_SBB:
      return Arithmetic<Sbb>(decoded, op);
    case ZYDIS_MNEMONIC_CMP:
      return Arithmetic<Cmp>(decoded, op);
    case ZYDIS_MNEMONIC_AND:
      return Arithmetic<And>(decoded, op);
    case ZYDIS_MNEMONIC_TEST:
      return Arithmetic<Test>(decoded, op);
    case ZYDIS_MNEMONIC_OR:
      return Arithmetic<Or>(decoded, op);
    case ZYDIS_MNEMONIC_XOR:
      return Arithmetic<Xor>(decoded, op);
    case ZYDIS_MNEMONIC_INC:
      return Arithmetic<Inc>(decoded, op);
    case ZYDIS_MNEMONIC_DEC:
      return Arithmetic<Dec>(decoded, op);
    case ZYDIS_MNEMONIC_NEG:
      return Arithmetic<Neg>(decoded, op);
    case ZYDIS_MNEMONIC_NOT:
      return Arithmetic<Not>(decoded, op);
    case ZYDIS_MNEMONIC_NOP:
      return &Nothing;
    default:
      return nullptr;
  }
}

}  // namespace

Selection SelectInteger(const Decoded& decoded, Op& op) {
  if (op.lock != 0) return {};
  return {.run = HandlerFor(decoded, op)};
}

}  // namespace pagesaw::cpu
