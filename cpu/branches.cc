module;
#include <Zydis/Zydis.h>
#include <array>
#include <atomic>
#include <cstdint>
#include <utility>
module pagesaw.cpu.branches;

import pagesaw.cpu.branch_forms;

namespace pagesaw::cpu {
namespace {

template <class T, bool kMemory>
inline bool IndirectTarget(Core& core, const Op& op, T& target) {
  if constexpr (kMemory) {
    if (!LoadOperand<T>(core, op, target)) return false;
  } else {
    target = core.Read<T>(op.first);
  }
  return BranchTargetAllowed(core, target);
}

template <class T, bool kMemory>
void JumpIndirect(Core& core, const Op* op) [[clang::preserve_none]] {
  T target;
  if (!IndirectTarget<T, kMemory>(core, *op, target)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  core.rip = target;
  [[clang::musttail]] return JumpToRip(core, op);
}

template <class T, bool kMemory, bool kFlat>
void CallIndirect(Core& core, const Op* op) [[clang::preserve_none]] {
  T target;
  if (!IndirectTarget<T, kMemory>(core, *op, target) ||
      !PushFast<T, kFlat>(core, static_cast<T>(core.NextRip(op)))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  core.rip = target;
  [[clang::musttail]] return JumpToRip(core, op);
}

// -- selection

template <class T, unsigned... kCodes>
constexpr std::array<Handler, 16> JumpIfTable(std::integer_sequence<unsigned, kCodes...>) {
  return {&JumpIf<T, kCodes>...};
}

template <class T>
Handler JumpIfFor(unsigned code) {
  static constexpr std::array<Handler, 16> kTable =
      JumpIfTable<T>(std::make_integer_sequence<unsigned, 16>());
  return kTable[code];
}

// The condition code of a Jcc, or 16.
unsigned ConditionOf(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_JO:
      return 0;
    case ZYDIS_MNEMONIC_JNO:
      return 1;
    case ZYDIS_MNEMONIC_JB:
      return 2;
    case ZYDIS_MNEMONIC_JNB:
      return 3;
    case ZYDIS_MNEMONIC_JZ:
      return 4;
    case ZYDIS_MNEMONIC_JNZ:
      return 5;
    case ZYDIS_MNEMONIC_JBE:
      return 6;
    case ZYDIS_MNEMONIC_JNBE:
      return 7;
    case ZYDIS_MNEMONIC_JS:
      return 8;
    case ZYDIS_MNEMONIC_JNS:
      return 9;
    case ZYDIS_MNEMONIC_JP:
      return 10;
    case ZYDIS_MNEMONIC_JNP:
      return 11;
    case ZYDIS_MNEMONIC_JL:
      return 12;
    case ZYDIS_MNEMONIC_JNL:
      return 13;
    case ZYDIS_MNEMONIC_JLE:
      return 14;
    case ZYDIS_MNEMONIC_JNLE:
      return 15;
    default:
      return 16;
  }
}

// The operand size of a near branch: 64 bits in 64-bit mode whatever the prefixes say.
// [intel/vol2] "JMP"; the 66h prefix is ignored there.
unsigned BranchBytes(const Decoded& decoded) {
  if (decoded.code_size == CodeSize::k64) return 8;
  return decoded.instruction.operand_width == 16 ? 2 : 4;
}

template <class T>
Selection SelectOfSize(const Decoded& decoded) {
  constexpr bool kFlat = sizeof(T) == 8;
  const ZydisDecodedInstruction& instruction = decoded.instruction;
  const ZydisOperandType operand =
      instruction.operand_count_visible > 0 ? decoded.operands[0].type : ZYDIS_OPERAND_TYPE_UNUSED;
  const bool memory = operand == ZYDIS_OPERAND_TYPE_MEMORY;
  if (const unsigned code = ConditionOf(instruction.mnemonic); code < 16) {
    return {.run = JumpIfFor<T>(code), .direct_branch = true};
  }
  switch (instruction.mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
      if (operand == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        return {.run = &TakeDirect<T>, .ends_block = true, .direct_branch = true};
      }
      return {.run = memory ? &JumpIndirect<T, true> : &JumpIndirect<T, false>, .ends_block = true};
    case ZYDIS_MNEMONIC_CALL:
      if (operand == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        return {.run = &CallDirect<T, kFlat>, .ends_block = true, .direct_branch = true};
      }
      return {.run = memory ? &CallIndirect<T, true, kFlat> : &CallIndirect<T, false, kFlat>,
              .ends_block = true};
    case ZYDIS_MNEMONIC_RET:
      return {.run = &Return<T, kFlat>, .ends_block = true};
    default:
      return {};
  }
}

}  // namespace

Selection SelectBranch(const Decoded& decoded, Op& op) {
  const ZydisBranchType type = decoded.instruction.meta.branch_type;
  const bool is_return =
      decoded.instruction.mnemonic == ZYDIS_MNEMONIC_RET && type != ZYDIS_BRANCH_TYPE_FAR;
  if ((type != ZYDIS_BRANCH_TYPE_SHORT && type != ZYDIS_BRANCH_TYPE_NEAR && !is_return) ||
      op.lock != 0) {
    return {};
  }
  if (is_return) op.immediate &= 0xffff;
  if (decoded.cet) {
    const Selection checked = SelectCheckedBranch(decoded, op, BranchBytes(decoded));
    if (checked.run != nullptr) return checked;
  }
  switch (BranchBytes(decoded)) {
    case 2:
      return SelectOfSize<std::uint16_t>(decoded);
    case 4:
      return SelectOfSize<std::uint32_t>(decoded);
    default:
      return SelectOfSize<std::uint64_t>(decoded);
  }
}

}  // namespace pagesaw::cpu
