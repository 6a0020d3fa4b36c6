module;
#include <Zydis/Zydis.h>
#include <cstdint>
module pagesaw.cpu.stack;

import pagesaw.cpu.stack_forms;

namespace pagesaw::cpu {
namespace {

template <class T, bool kFlat>
void PushImmediate(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!PushFast<T, kFlat>(core, static_cast<T>(op->immediate))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class T>
bool PushMemory(Core& core, const Op& op) {
  T value;
  return LoadOperand<T>(core, op, value) && Push<T>(core, value);
}

// An address that uses SP sees it as it is after the pop. [intel/vol2] "POP"
template <class T>
bool PopMemory(Core& core, const Op& op) {
  std::uint64_t from = 0;
  T value;
  if (!StackAddress(core, 0, sizeof(T), false, from) || !Load<T>(core, from, value)) return false;
  const std::uint64_t rsp = core.gpr[kRsp];
  MoveStack(core, sizeof(T));
  if (StoreOperand<T>(core, op, value)) return true;
  core.gpr[kRsp] = rsp;
  return false;
}

template <class T>
Handler PushFor(const Decoded& decoded) {
  constexpr bool kFlat = sizeof(T) == 8;
  switch (decoded.operands[0].type) {
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
      return &PushImmediate<T, kFlat>;
    case ZYDIS_OPERAND_TYPE_MEMORY:
      return &Plain<PushMemory<T>>;
    default:
      return &PushRegister<T, kFlat>;
  }
}

template <class T>
Handler PopFor(const Decoded& decoded) {
  return decoded.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY ? &Plain<PopMemory<T>>
                                                               : &PopRegister < T,
         sizeof(T) == 8 > ;
}

bool OnGeneralOperand(const Decoded& decoded) {
  if (decoded.operands[0].type != ZYDIS_OPERAND_TYPE_REGISTER) return true;
  return ZydisRegisterGetClass(decoded.operands[0].reg.value) != ZYDIS_REGCLASS_SEGMENT;
}

}  // namespace

Selection SelectStack(const Decoded& decoded, Op& op) {
  const ZydisMnemonic mnemonic = decoded.instruction.mnemonic;
  const bool push = mnemonic == ZYDIS_MNEMONIC_PUSH;
  if ((!push && mnemonic != ZYDIS_MNEMONIC_POP) || op.lock != 0 || !OnGeneralOperand(decoded)) {
    return {};
  }
  switch (decoded.instruction.operand_width) {
    case 16:
      op.operand_bytes = 2;
      return {.run = push ? PushFor<std::uint16_t>(decoded) : PopFor<std::uint16_t>(decoded)};
    case 32:
      op.operand_bytes = 4;
      return {.run = push ? PushFor<std::uint32_t>(decoded) : PopFor<std::uint32_t>(decoded)};
    default:
      op.operand_bytes = 8;
      return {.run = push ? PushFor<std::uint64_t>(decoded) : PopFor<std::uint64_t>(decoded)};
  }
}

}  // namespace pagesaw::cpu
