// PUSHA, POPA, ENTER, LEAVE: several stack accesses each, all of which are tried before one is
// made.
module;
#include <Zydis/Zydis.h>
#include <array>
#include <cstdint>
module pagesaw.cpu.legacy;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

// The bits of a stack or frame pointer that count.
std::uint64_t StackMask(const Core& core) {
  return core.stack_64 ? ~std::uint64_t{0} : core.stack_32 ? 0xffff'ffffu : 0xffffu;
}
void SetStackRegister(Core& core, Gpr name, std::uint64_t value) {
  const std::uint64_t kept = core.stack_64 || core.stack_32 ? 0 : core.gpr[name] & ~StackMask(core);
  core.gpr[name] = kept | (value & StackMask(core));
}

template <class T>
bool Pusha(Core& core, const Op&) {
  std::array<std::uint64_t, 8> linear = {};
  for (unsigned i = 0; i < 8; ++i) {
    const auto offset = -static_cast<std::int64_t>((i + 1) * sizeof(T));
    if (!StackAddress(core, offset, sizeof(T), true, linear[i]) ||
        !ProbeWrite(core, linear[i], sizeof(T), By::kProgram)) {
      return false;
    }
  }
  for (unsigned i = 0; i < 8; ++i) {
    const auto name = static_cast<RegisterOffset>(i * 8);
    if (!Store<T>(core, linear[i], core.Read<T>(name))) return false;
  }
  MoveStack(core, -static_cast<std::int64_t>(8 * sizeof(T)));
  return true;
}

template <class T>
bool Popa(Core& core, const Op&) {
  std::array<T, 8> values = {};
  for (unsigned i = 0; i < 8; ++i) {
    std::uint64_t linear = 0;
    if (!StackAddress(core, static_cast<std::int64_t>(i * sizeof(T)), sizeof(T), false, linear) ||
        !Load<T>(core, linear, values[i])) {
      return false;
    }
  }
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned name = 7 - i;
    if (name != kRsp) core.Write<T>(static_cast<RegisterOffset>(name * 8), values[i]);
  }
  MoveStack(core, 8 * sizeof(T));
  return true;
}

// [intel/vol2] "ENTER": pushes the frame pointer, the pointers of the outer frames, and the new
// frame's; then makes room. `immediate` is room | nesting << 16.
template <class T>
bool Enter(Core& core, const Op& op) {
  const std::uint64_t room = op.immediate & 0xffff;
  const unsigned nesting = op.immediate >> 16 & 31;
  const unsigned pushes = nesting + 1;
  std::array<std::uint64_t, 32> from = {}, to = {};
  for (unsigned i = 1; i < nesting; ++i) {
    const std::uint64_t offset = (core.gpr[kRbp] - i * sizeof(T)) & StackMask(core);
    if (!Linear(core, kSs, offset, sizeof(T), false, from[i]) ||
        !ProbeRead(core, from[i], sizeof(T), By::kProgram)) {
      return false;
    }
  }
  for (unsigned i = 0; i < pushes; ++i) {
    const auto offset = -static_cast<std::int64_t>((i + 1) * sizeof(T));
    if (!StackAddress(core, offset, sizeof(T), true, to[i]) ||
        !ProbeWrite(core, to[i], sizeof(T), By::kProgram)) {
      return false;
    }
  }
  // The last stack pointer must be good for a store, though none is made.
  const auto depth = static_cast<std::int64_t>(pushes * sizeof(T) + room);
  std::uint64_t last = 0;
  if (!StackAddress(core, -depth, sizeof(T), true, last) ||
      !ProbeWrite(core, last, sizeof(T), By::kProgram)) {
    return false;
  }
  const std::uint64_t frame = core.gpr[kRsp] - sizeof(T);
  if (!Store<T>(core, to[0], core.Read<T>(kRbp * 8))) return false;
  for (unsigned i = 1; i < nesting; ++i) {
    T value;
    if (!Load<T>(core, from[i], value) || !Store<T>(core, to[i], value)) return false;
  }
  if (nesting != 0 && !Store<T>(core, to[nesting], static_cast<T>(frame))) return false;
  // BP is as wide as the operand, and SP as the stack.
  core.Write<T>(kRbp * 8, static_cast<T>(frame & StackMask(core)));
  MoveStack(core, -depth);
  return true;
}

template <class T>
bool Leave(Core& core, const Op&) {
  const std::uint64_t frame = core.gpr[kRbp] & StackMask(core);
  std::uint64_t linear = 0;
  T outer;
  if (!Linear(core, kSs, frame, sizeof(T), false, linear) || !Load<T>(core, linear, outer)) {
    return false;
  }
  SetStackRegister(core, kRsp, frame + sizeof(T));
  core.Write<T>(kRbp * 8, outer);
  return true;
}

}  // namespace

Selection SelectFrame(const Decoded& decoded, Op& op) {
  const unsigned bytes = decoded.instruction.operand_width / 8;
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_PUSHA:
      return {&Plain<&Pusha<std::uint16_t>>};
    case ZYDIS_MNEMONIC_PUSHAD:
      return {&Plain<&Pusha<std::uint32_t>>};
    case ZYDIS_MNEMONIC_POPA:
      return {&Plain<&Popa<std::uint16_t>>};
    case ZYDIS_MNEMONIC_POPAD:
      return {&Plain<&Popa<std::uint32_t>>};
    case ZYDIS_MNEMONIC_ENTER:
      op.immediate = (decoded.operands[0].imm.value.u & 0xffff) |
                     (decoded.operands[1].imm.value.u & 0xff) << 16;
      return {ByWordSize(bytes, []<class T>() -> Handler { return &Plain<&Enter<T>>; })};
    case ZYDIS_MNEMONIC_LEAVE:
      return {ByWordSize(bytes, []<class T>() -> Handler { return &Plain<&Leave<T>>; })};
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
