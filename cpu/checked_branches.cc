// CALL, RET and indirect JMP where shadow stacks or branch tracking are on.
module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <type_traits>
module pagesaw.cpu.branches;

import pagesaw.cpu.branch_tracking;
import pagesaw.cpu.branch_forms;
import pagesaw.cpu.shadow_stack;

namespace pagesaw::cpu {
namespace {

// What a shadow stack keeps of an instruction pointer of type T.
template <class T>
using Slot = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;

void MoveShadowStack(Core& core, std::int64_t delta) {
  const std::uint64_t ssp = core.cet.ssp + static_cast<std::uint64_t>(delta);
  core.cet.ssp = core.code_64() ? ssp : static_cast<std::uint32_t>(ssp);
}

// Pushes the return address on both stacks. The store to the shadow stack comes before what cannot
// be taken back, and is made again if the instruction is.
template <class T>
bool PushReturn(Core& core, bool shadowed) {
  const T value = static_cast<T>(core.rip);
  if (shadowed) {
    std::uint64_t linear = 0;
    if (!StackAddress(core, -static_cast<std::int64_t>(sizeof(T)), sizeof(T), true, linear) ||
        !ProbeWrite(core, linear, sizeof(T), By::kProgram) ||
        !StoreShadow<Slot<T>>(core, core.cpl, core.code_64(), core.cet.ssp - sizeof(Slot<T>),
                              value)) {
      return false;
    }
  }
  if (!Push<T>(core, value)) return false;
  if (shadowed) MoveShadowStack(core, -static_cast<std::int64_t>(sizeof(Slot<T>)));
  return true;
}

template <class T>
bool Target(Core& core, const Op& op, T& target) {
  if (op.memory != 0) {
    if (!LoadOperand<T>(core, op, target)) return false;
  } else {
    target = core.Read<T>(op.first);
  }
  return BranchTargetAllowed(core, target);
}

// A CALL of the instruction behind it asks where it is, and is never returned from: it leaves the
// shadow stack alone. [intel/vol2] "CALL"
template <class T>
bool CallDirect(Core& core, const Op& op) {
  const std::uint64_t target = static_cast<T>(core.rip + op.immediate);
  if (!BranchTargetAllowed(core, target) ||
      !PushReturn<T>(core, core.shadow_stack && op.immediate != 0)) {
    return false;
  }
  core.rip = target;
  return true;
}

// `immediate`: the no-track prefix.
template <class T>
bool CallIndirect(Core& core, const Op& op) {
  T target = 0;
  if (!Target<T>(core, op, target) || !PushReturn<T>(core, core.shadow_stack)) return false;
  TrackNear(core, op.immediate != 0);
  core.rip = target;
  return true;
}

template <class T>
bool JumpIndirect(Core& core, const Op& op) {
  T target = 0;
  if (!Target<T>(core, op, target)) return false;
  TrackNear(core, op.immediate != 0);
  core.rip = target;
  return true;
}

template <class T>
bool Return(Core& core, const Op& op) {
  T target = 0;
  std::uint64_t linear = 0;
  if (!StackAddress(core, 0, sizeof(T), false, linear) || !Load<T>(core, linear, target) ||
      !BranchTargetAllowed(core, target)) {
    return false;
  }
  if (core.shadow_stack) {
    Slot<T> kept = 0;
    if (!LoadShadow(core, core.cpl, core.code_64(), core.cet.ssp, kept)) return false;
    if (kept != target) return RaiseControlProtection(core, ControlProtection::kNearReturn);
    MoveShadowStack(core, sizeof(kept));
  }
  MoveStack(core, static_cast<std::int64_t>(sizeof(T) + op.immediate));
  core.rip = target;
  return true;
}

// A branch behind which the next block follows at once, unless the tracker wants to see it.
template <Instruction kInstruction>
void Branching(Core& core, const Op* op) [[clang::preserve_none]] {
  core.rip = core.NextRip(op);
  if (!kInstruction(core, *op)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  if (WaitsForEndBranch(core)) {
    [[clang::musttail]] return Leave(core, op);
  }
  [[clang::musttail]] return JumpToRip(core, op);
}

// [intel/vol1] "No-track Prefix for Near Indirect CALL/JMP"
bool HasNoTrack(const Decoded& decoded) {
  const ZydisDecodedInstruction& instruction = decoded.instruction;
  std::uint8_t last = 0;
  bool no_track = false;
  bool fs_or_gs = false;
  for (unsigned i = 0; i < instruction.raw.prefix_count; ++i) {
    switch (instruction.raw.prefixes[i].value) {
      case 0x64:
      case 0x65:
        fs_or_gs = true;
        [[fallthrough]];
      case 0x26:
      case 0x2e:
      case 0x36:
      case 0x3e:
        last = instruction.raw.prefixes[i].value;
        no_track = no_track || last == 0x3e;
        break;
      default:
        break;
    }
  }
  if (decoded.code_size != CodeSize::k64) return last == 0x3e;
  return no_track && !fs_or_gs;
}

template <class T>
Selection SelectOfSize(const Decoded& decoded, Op& op) {
  const ZydisDecodedInstruction& instruction = decoded.instruction;
  const bool direct = instruction.operand_count_visible > 0 &&
                      decoded.operands[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
  switch (instruction.mnemonic) {
    case ZYDIS_MNEMONIC_RET:
      return {.run = &Branching<&Return<T>>, .ends_block = true};
    case ZYDIS_MNEMONIC_CALL:
      if (direct) return {.run = &Branching<&CallDirect<T>>, .ends_block = true};
      op.immediate = HasNoTrack(decoded) ? 1 : 0;
      return {.run = &Branching<&CallIndirect<T>>, .ends_block = true};
    case ZYDIS_MNEMONIC_JMP:
      if (direct) return {};
      op.immediate = HasNoTrack(decoded) ? 1 : 0;
      return {.run = &Branching<&JumpIndirect<T>>, .ends_block = true};
    default:
      return {};
  }
}

}  // namespace

Selection SelectCheckedBranch(const Decoded& decoded, Op& op, unsigned bytes) {
  switch (bytes) {
    case 2:
      return SelectOfSize<std::uint16_t>(decoded, op);
    case 4:
      return SelectOfSize<std::uint32_t>(decoded, op);
    default:
      return SelectOfSize<std::uint64_t>(decoded, op);
  }
}

}  // namespace pagesaw::cpu
