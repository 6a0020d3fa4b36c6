module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <cstring>
module pagesaw.cpu.x87;

import pagesaw.cpu.control_bits;
import pagesaw.cpu.kernels;
import pagesaw.cpu.vector_operand;

namespace pagesaw::cpu {
namespace {

constexpr std::size_t kX87Bytes = 160;  // of ExtendedState, with MXCSR
// Unmasked, these keep the result from being stored: invalid, overflow, underflow.
constexpr unsigned kStopsStore = 0x19;
constexpr std::uint16_t kErrorSummary = 0x8080;  // ES and its copy, B

// How an instruction is executed: Op::immediate holds the escape's low bits, ModRM and these.
enum Trait : unsigned { kLoads = 1u << 16, kStores = 1u << 17 };

bool Available(Core& core) { return (core.cr0 & (kCr0Em | kCr0Ts)) == 0 || core.Raise(kNm); }
// The same for instructions that wait for exceptions.
bool Ready(Core& core) { return Available(core) && NoX87Error(core); }

bool Wait(Core& core, const Op&) {
  constexpr std::uint64_t kBoth = kCr0Mp | kCr0Ts;
  if ((core.cr0 & kBoth) == kBoth) return core.Raise(kNm);
  return NoX87Error(core);
}

void NotePointers(Core& core, const Op& op, ExtendedState& state) {
  const auto escape = static_cast<unsigned>(op.immediate & 7);
  const auto modrm = static_cast<unsigned>(op.immediate >> 8 & 0xff);
  state.fop = static_cast<std::uint16_t>(escape << 8 | modrm);
  state.fip = core.RipOf(&op);
  if (op.memory != 0) state.fdp = EffectiveAddress(core, op);
}

// `kPointers`: one that FIP, FDP and FOP remember.
template <bool kPointers>
bool Execute(Core& core, const Op& op) {
  if (!Ready(core)) return false;
  alignas(16) std::uint8_t operand[16] = {};
  if ((op.immediate & kLoads) != 0 && !LoadVector(core, op, op.operand_bytes, false, operand)) {
    return false;
  }
  ExtendedState state;
  std::memcpy(&state, &core.extended, kX87Bytes);
  // Errors that wait and are ignored would stop the host.
  const auto ignored = static_cast<std::uint16_t>(state.fsw & ~state.fcw & 0x3f);
  if (ignored != 0) state.fsw &= static_cast<std::uint16_t>(~(ignored | kErrorSummary));
  const std::uint64_t flags = RunX87(state, static_cast<std::uint8_t>(op.immediate & 7),
                                     static_cast<std::uint8_t>(op.immediate >> 8 & 0xff), operand,
                                     core.flags.All() | kFlagFixed);
  const unsigned unmasked = static_cast<unsigned>(state.fsw & ~state.fcw) & 0x3f;
  if ((op.immediate & kStores) != 0) {
    const bool stopped = (unmasked & kStopsStore) != 0;
    std::uint64_t linear = 0;
    // What would not be stored must not fault later either.
    if (stopped ? !OperandAddress(core, op, op.operand_bytes, true, linear) ||
                      !ProbeWrite(core, linear, op.operand_bytes, By::kProgram)
                : !StoreVector(core, op, op.operand_bytes, false, operand)) {
      return false;
    }
  }
  if (ignored != 0) state.fsw |= ignored | kErrorSummary;
  state.fop = core.extended.fop;
  state.fip = core.extended.fip;
  state.fdp = core.extended.fdp;
  state.mxcsr = core.extended.mxcsr;
  state.mxcsr_mask = core.extended.mxcsr_mask;
  if constexpr (kPointers) NotePointers(core, op, state);
  std::memcpy(&core.extended, &state, kX87Bytes);
  core.flags.SetEager(flags & kArithmeticFlags);
  return true;
}

bool Fninit(Core& core, const Op&) {
  if (!Available(core)) return false;
  ResetX87(core.extended);
  return true;
}
bool Fnclex(Core& core, const Op&) {
  if (!Available(core)) return false;
  core.extended.fsw &= 0x7f00;
  return true;
}
bool Fnstcw(Core& core, const Op& op) {
  return Available(core) && StoreOperand<std::uint16_t>(core, op, core.extended.fcw);
}
bool Fnstsw(Core& core, const Op& op) {
  if (!Available(core)) return false;
  if (op.memory != 0) return StoreOperand<std::uint16_t>(core, op, core.extended.fsw);
  core.Write<std::uint16_t>(kRax * 8, core.extended.fsw);
  return true;
}
bool Fldcw(Core& core, const Op& op) {
  std::uint16_t value;
  if (!Ready(core) || !LoadOperand<std::uint16_t>(core, op, value)) return false;
  core.extended.fcw = value;
  NormalizeX87(core.extended);
  return true;
}
// FENI, FDISI and FSETPM did something on an 8087 or 80287.
bool Nothing(Core& core, const Op&) { return Available(core); }

template <Instruction kInstruction>
bool WhenAvailable(Core& core, const Op& op) {
  return Available(core) && kInstruction(core, op);
}
template <Instruction kInstruction>
bool WhenReady(Core& core, const Op& op) {
  return Ready(core) && kInstruction(core, op);
}

Handler ChooseControl(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_FNINIT:
      return &Plain<&Fninit>;
    case ZYDIS_MNEMONIC_FNCLEX:
      return &Plain<&Fnclex>;
    case ZYDIS_MNEMONIC_FNSTCW:
      return &Plain<&Fnstcw>;
    case ZYDIS_MNEMONIC_FNSTSW:
      return &Plain<&Fnstsw>;
    case ZYDIS_MNEMONIC_FLDCW:
      return &Plain<&Fldcw>;
    case ZYDIS_MNEMONIC_FNSTENV:
      return &Plain<&WhenAvailable<&Fnstenv>>;
    case ZYDIS_MNEMONIC_FNSAVE:
      return &Plain<&WhenAvailable<&Fnsave>>;
    case ZYDIS_MNEMONIC_FLDENV:
      return &Plain<&WhenReady<&Fldenv>>;
    case ZYDIS_MNEMONIC_FRSTOR:
      return &Plain<&WhenReady<&Frstor>>;
    case ZYDIS_MNEMONIC_FENI8087_NOP:
    case ZYDIS_MNEMONIC_FDISI8087_NOP:
    case ZYDIS_MNEMONIC_FSETPM287_NOP:
      return &Plain<&Nothing>;
    default:
      return nullptr;
  }
}

}  // namespace

void ResetX87(ExtendedState& state) {
  SetTop(state, 0);
  state.fcw = 0x37f;
  state.fsw = 0;
  state.ftw = 0;
  state.fop = 0;
  state.fip = state.fdp = 0;
}

void NormalizeX87(ExtendedState& state) {
  state.fcw = static_cast<std::uint16_t>((state.fcw & 0x1f3f) | 0x40);
  state.fsw &= 0x7f7f;
  if (X87Pending(state)) state.fsw |= kErrorSummary;
  state.unused = 0;
  for (ExtendedState::X87Register& st : state.st) st.unused = {};
}

Selection SelectX87(const Decoded& decoded, Op& op) {
  const ZydisDecodedInstruction& instruction = decoded.instruction;
  if (instruction.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT ||
      instruction.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) {
    return {};
  }
  if (instruction.mnemonic == ZYDIS_MNEMONIC_FWAIT) return {&Plain<&Wait>};
  if (instruction.opcode < 0xd8 || instruction.opcode > 0xdf) return {};
  if (op.lock != 0) return UndefinedInstruction();
  if (!decoded.model->Has(Feature::kFpu)) return {};
  if (instruction.mnemonic == ZYDIS_MNEMONIC_FISTTP && !decoded.model->Has(Feature::kSse3)) {
    return UndefinedInstruction();
  }
  op.operand_bytes = static_cast<std::uint8_t>(instruction.operand_width / 8);
  if (const Handler run = ChooseControl(instruction.mnemonic); run != nullptr) return {run};
  const auto modrm = static_cast<std::uint8_t>(
      instruction.raw.modrm.mod << 6 | instruction.raw.modrm.reg << 3 | instruction.raw.modrm.rm);
  op.immediate = (instruction.opcode & 7u) | std::uint64_t{modrm} << 8;
  for (unsigned i = 0; i < instruction.operand_count; ++i) {
    const ZydisDecodedOperand& operand = decoded.operands[i];
    if (operand.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    op.operand_bytes = static_cast<std::uint8_t>(operand.size / 8);
    const bool written = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    op.immediate |= written ? kStores : kLoads;
  }
  return {&Plain<&Execute<true>>};
}

}  // namespace pagesaw::cpu
