module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <initializer_list>
#include <type_traits>
module pagesaw.cpu.integer;

import pagesaw.cpu.integer_forms;

namespace pagesaw::cpu {
namespace {

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
