module;
#include <Zydis/Zydis.h>
#include <bit>
#include <cstdint>
#include <cstring>
module pagesaw.cpu.vector;

import pagesaw.cpu.control_bits;
import pagesaw.cpu.kernels;
import pagesaw.cpu.vector_operand;

namespace pagesaw::cpu {
namespace {

// What an operand is; kCount: a shift count, which the immediate is.
enum class Kind : std::uint8_t { kNone, kGpr, kMmx, kVector, kCount };
// The elements of a floating-point result.
enum class Lane : std::uint8_t { kNone, kHalf, kSingle, kDouble };

// How an instruction is executed: Op::immediate. Op::first and Op::second are the numbers of the
// registers that ModRM.reg and ModRM.rm name.
struct Form {
  std::uint64_t kernel : 20;
  std::uint64_t entry : 3;
  std::uint64_t reg : 3;  // Kind
  std::uint64_t rm : 3;   // Kind; of the register that a memory operand stands for
  std::uint64_t memory_log2 : 3;
  std::uint64_t reg_written : 1;
  std::uint64_t rm_written : 1;
  std::uint64_t implicit : 4;  // the register in XMM0: VEX.vvvv; 0 where it is XMM0 itself
  std::uint64_t is4 : 4;
  std::uint64_t aligned : 1;
  std::uint64_t vex : 1;
  std::uint64_t sse : 1;    // obeys the rules of SSE
  std::uint64_t mmx : 1;    // and those of MMX, whose state it enters
  std::uint64_t flags : 1;  // writes RFLAGS
  std::uint64_t index_out : 1;
  std::uint64_t mask_out : 1;  // PCMPxSTRI writes ECX, PCMPxSTRM writes XMM0
  std::uint64_t lane : 2;
  std::uint64_t scalar : 1;
  std::uint64_t count : 8;
  std::uint64_t unused : 2;
};
static_assert(sizeof(Form) == 8);

Form FormOf(const Op& op) { return std::bit_cast<Form>(op.immediate); }

constexpr std::uint32_t kFlags = 0x3f, kAllMasked = 0x1f80, kFlushToZero = 0x8000;
constexpr std::uint32_t kBeforeComputation = 7;  // invalid, denormal, divide by zero
constexpr std::uint32_t kUnderflow = 0x10;
constexpr unsigned kMaskShift = 7;

bool Ready(Core& core, const Form& form) {
  if (form.vex != 0) return AvxReady(core);
  if (form.sse != 0 && !SseReady(core)) return false;
  return form.mmx == 0 || MmxReady(core);
}

bool Writable(Core& core, const Op& op, const Form& form) {
  const unsigned bytes = 1u << form.memory_log2;
  std::uint64_t linear = 0;
  return VectorAddress(core, op, bytes, form.aligned != 0, true, linear) &&
         ProbeWrite(core, linear, bytes, By::kProgram);
}

// Reads ModRM.rm into each register that it could be.
bool ReadRm(Core& core, const Op& op, const Form& form, KernelFrame& frame) {
  if (static_cast<Kind>(form.rm) == Kind::kCount) {
    frame.rm[0] = frame.mmx_rm = form.count;
    frame.rm[1] = 0;
    return true;
  }
  if (op.memory != 0) {
    WideVector value;
    if (form.rm_written == 0) {
      if (!LoadVector(core, op, 1u << form.memory_log2, form.aligned != 0, value.lanes)) {
        return false;
      }
    } else if (!Writable(core, op, form)) {  // a fault comes before #XM
      return false;
    }
    std::memcpy(frame.rm, value.lanes, sizeof(frame.rm));
    frame.gpr_rm = frame.mmx_rm = value.lanes[0];
    return true;
  }
  switch (static_cast<Kind>(form.rm)) {
    case Kind::kGpr:
      frame.gpr_rm = core.gpr[op.second];
      break;
    case Kind::kMmx:
      frame.mmx_rm = ReadMmx(core, op.second);
      break;
    default:
      std::memcpy(frame.rm, ReadWide(core, op.second).lanes, sizeof(frame.rm));
      break;
  }
  return true;
}

// Whether a result element is denormal, which is an unmasked underflow even if it is exact.
// [intel/vol1] "Numeric Underflow Exception (#U)"
bool HasTinyLane(const Form& form, const KernelFrame& frame) {
  const auto lane = static_cast<Lane>(form.lane);
  if (lane == Lane::kNone) return false;
  const unsigned bytes = lane == Lane::kDouble ? 8 : lane == Lane::kSingle ? 4 : 2;
  const std::uint64_t exponent = lane == Lane::kDouble   ? 0x7ff0'0000'0000'0000
                                 : lane == Lane::kSingle ? 0x7f80'0000
                                                         : 0x7c00;
  const std::uint64_t fraction = (exponent & (0 - exponent)) - 1;
  const auto* from = reinterpret_cast<const char*>(form.rm_written != 0 ? frame.rm : frame.reg);
  const unsigned end = form.scalar != 0 ? bytes : form.vex != 0 ? 32 : 16;
  for (unsigned at = 0; at < end; at += bytes) {
    std::uint64_t value = 0;
    std::memcpy(&value, from + at, bytes);
    if ((value & exponent) == 0 && (value & fraction) != 0) return true;
  }
  return false;
}

// Executes with every exception masked, then asks what would have been raised. On #XM the flags
// change and nothing else; the precision flag that an unmasked overflow or underflow leaves may
// be set where only a bounded exponent makes the result inexact.
// [intel/vol1] "SIMD Floating-Point Exception Conditions"
bool Compute(Core& core, const Form& form, KernelFrame& frame) {
  const std::uint32_t mxcsr = core.extended.mxcsr;
  const std::uint32_t unmasked = ~(mxcsr >> kMaskShift) & kFlags;
  frame.mxcsr = (mxcsr & ~kFlags) | kAllMasked;
  // Only the masked response to underflow may be zero.
  if ((unmasked & kUnderflow) != 0) frame.mxcsr &= ~kFlushToZero;
  RunKernel(static_cast<KernelEntry>(form.entry), form.kernel, frame);
  std::uint32_t raised = frame.mxcsr & kFlags;
  frame.mxcsr = mxcsr | raised;
  if (unmasked == 0) [[likely]]
    return true;
  if ((raised & unmasked & kBeforeComputation) != 0) {
    raised &= kBeforeComputation;
  } else if ((unmasked & kUnderflow) != 0 && HasTinyLane(form, frame)) {
    raised |= kUnderflow;
  }
  if ((raised & unmasked) == 0) return true;
  core.extended.mxcsr = mxcsr | raised;
  return core.Raise((core.cr4 & kCr4Osxmmexcpt) != 0 ? kXm : kUd);
}

bool WriteRm(Core& core, const Op& op, const Form& form, const KernelFrame& frame) {
  const auto kind = static_cast<Kind>(form.rm);
  if (op.memory != 0) {
    const void* from = kind == Kind::kGpr   ? static_cast<const void*>(&frame.gpr_rm)
                       : kind == Kind::kMmx ? static_cast<const void*>(&frame.mmx_rm)
                                            : static_cast<const void*>(frame.rm);
    return StoreVector(core, op, 1u << form.memory_log2, form.aligned != 0, from);
  }
  switch (kind) {
    case Kind::kGpr:
      core.gpr[op.second] = frame.gpr_rm;
      break;
    case Kind::kMmx:
      EnterMmx(core);
      WriteMmx(core, op.second, frame.mmx_rm);
      break;
    default:
      WriteVector(core, op.second, frame.rm, form.vex != 0);
      break;
  }
  return true;
}

void WriteReg(Core& core, const Op& op, const Form& form, const KernelFrame& frame) {
  switch (static_cast<Kind>(form.reg)) {
    case Kind::kGpr:
      core.gpr[op.first] = frame.gpr_reg;
      break;
    case Kind::kMmx:
      WriteMmx(core, op.first, frame.mmx_reg);
      break;
    default:
      WriteVector(core, op.first, frame.reg, form.vex != 0);
      break;
  }
}

template <bool kFloat>
bool Execute(Core& core, const Op& op) {
  const Form form = FormOf(op);
  if (!Ready(core, form)) return false;
  KernelFrame frame;
  if (!ReadRm(core, op, form, frame)) return false;
  std::memcpy(frame.implicit, ReadWide(core, form.implicit).lanes, sizeof(frame.implicit));
  frame.rax = core.gpr[kRax];
  frame.gpr_reg = core.gpr[kRdx];  // PCMPESTRx reads it
  if (static_cast<Kind>(form.reg) == Kind::kMmx) {
    frame.mmx_reg = ReadMmx(core, op.first);
  } else {
    std::memcpy(frame.reg, ReadWide(core, op.first & 15).lanes, sizeof(frame.reg));
  }
  if (form.vex != 0) std::memcpy(frame.is4, ReadWide(core, form.is4).lanes, sizeof(frame.is4));
  if constexpr (kFloat) {
    if (!Compute(core, form, frame)) {
      if (form.mmx != 0) EnterMmx(core);
      return false;
    }
  } else {
    frame.mxcsr = core.extended.mxcsr | kAllMasked;
    RunKernel(static_cast<KernelEntry>(form.entry), form.kernel, frame);
  }
  if (form.rm_written != 0 && !WriteRm(core, op, form, frame)) return false;
  if constexpr (kFloat) core.extended.mxcsr = frame.mxcsr;
  if (form.mmx != 0) EnterMmx(core);
  if (form.reg_written != 0) WriteReg(core, op, form, frame);
  if (form.flags != 0) core.flags.SetEager(frame.rflags & kArithmeticFlags);
  if (form.index_out != 0) core.gpr[kRcx] = frame.gpr_rm;
  if (form.mask_out != 0) WriteVector(core, 0, frame.implicit, form.vex != 0);
  return true;
}

// -- selection

Encoding EncodingOf(const Decoded& decoded) {
  const ZydisDecodedInstruction& instruction = decoded.instruction;
  Encoding encoding;
  encoding.vex = instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
  encoding.map = static_cast<std::uint8_t>(instruction.opcode_map);
  static_assert(ZYDIS_OPCODE_MAP_0F == 1 && ZYDIS_OPCODE_MAP_0F3A == 3);
  encoding.opcode = instruction.opcode;
  encoding.immediate = static_cast<std::uint8_t>(instruction.raw.imm[0].value.u);
  if (encoding.vex) {
    encoding.prefix = instruction.raw.vex.pp;
    encoding.w = instruction.raw.vex.W != 0;
    encoding.l = instruction.raw.vex.L != 0;
  } else {
    encoding.w = instruction.raw.rex.W != 0;
    for (unsigned i = 0; i < instruction.raw.prefix_count; ++i) {
      if (instruction.raw.prefixes[i].type != ZYDIS_PREFIX_TYPE_MANDATORY) continue;
      const std::uint8_t value = instruction.raw.prefixes[i].value;
      encoding.prefix = value == 0x66 ? 1 : value == 0xf3 ? 2 : 3;
    }
  }
  return encoding;
}

// Whether it looks at MXCSR.
bool IsFloat(const Encoding& encoding) {
  const unsigned op = encoding.opcode;
  switch (encoding.map) {
    case 1:
      return op == 0x2a || (op >= 0x2c && op <= 0x2f) || (op >= 0x51 && op <= 0x53) ||
             (op >= 0x58 && op <= 0x5f) || op == 0x7c || op == 0x7d || op == 0xc2 || op == 0xd0 ||
             op == 0xe6;
    case 2:
      return (encoding.vex && op == 0x13) ||
             (encoding.vex && op >= 0x96 && op <= 0xbf && (op & 15) >= 6);
    default:
      return (op >= 0x08 && op <= 0x0b) || op == 0x1d || op == 0x40 || op == 0x41;
  }
}

// What can be tiny in a result.
void NoteLanes(const Encoding& encoding, Form& form) {
  const unsigned op = encoding.opcode;
  const auto set = [&form](Lane lane, bool scalar) {
    form.lane = static_cast<unsigned>(lane) & 3;
    form.scalar = scalar ? 1 : 0;
  };
  if (encoding.map == 1) {
    const bool arithmetic = op == 0x58 || op == 0x59 || op == 0x5c || op == 0x5e;
    const bool pairs = op == 0x7c || op == 0x7d || op == 0xd0;
    if (arithmetic) {
      set((encoding.prefix & 1) != 0 ? Lane::kDouble : Lane::kSingle, encoding.prefix >= 2);
    } else if (pairs) {
      set(encoding.prefix == 1 ? Lane::kDouble : Lane::kSingle, false);
    } else if (op == 0x5a && (encoding.prefix & 1) != 0) {
      set(Lane::kSingle, encoding.prefix == 3);
    }
  } else if (encoding.map == 2 && op >= 0x96) {
    const bool packed = (op & 15) <= 8 || (op & 15) == 10 || (op & 15) == 12 || (op & 15) == 14;
    set(encoding.w ? Lane::kDouble : Lane::kSingle, !packed);
  } else if (encoding.map == 3) {
    if (op == 0x1d) set(Lane::kHalf, false);
    if (op == 0x40) set(Lane::kSingle, false);
    if (op == 0x41) set(Lane::kDouble, false);
  }
}

bool WritesFlags(const Encoding& encoding) {
  const unsigned op = encoding.opcode;
  if (encoding.map == 1) return op == 0x2e || op == 0x2f;
  if (encoding.map == 2) return op == 0x17 || (encoding.vex && (op == 0x0e || op == 0x0f));
  return op >= 0x60 && op <= 0x63;
}

Kind KindOf(ZydisRegister reg) {
  switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
      return Kind::kGpr;
    case ZYDIS_REGCLASS_MMX:
      return Kind::kMmx;
    case ZYDIS_REGCLASS_XMM:
    case ZYDIS_REGCLASS_YMM:
      return Kind::kVector;
    default:
      return Kind::kNone;
  }
}

// The kind of register that an operand in memory stands for where it is written.
Kind KindOfMemory(const Encoding& encoding, Kind reg) {
  const bool gpr = (encoding.map == 1 && encoding.opcode == 0x7e) ||
                   (encoding.map == 3 && encoding.opcode >= 0x14 && encoding.opcode <= 0x17);
  return gpr ? Kind::kGpr : reg;
}

// Those of 16 bytes that need no alignment though old encodings otherwise do. AMD's processors do
// not ask it of SHA.
bool IsUnaligned(const Decoded& decoded, const Encoding& encoding) {
  if (decoded.instruction.meta.isa_set == ZYDIS_ISA_SET_SHA) return decoded.model->amd_rules();
  return encoding.map == 3 && encoding.opcode >= 0x60 && encoding.opcode <= 0x63;
}

void FillOperand(const Decoded& decoded, const ZydisDecodedOperand& operand,
                 const Encoding& encoding, Op& op, Form& form) {
  const bool written = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
  const bool memory = operand.type == ZYDIS_OPERAND_TYPE_MEMORY;
  const auto number = [&] {
    return static_cast<std::uint8_t>(ZydisRegisterGetId(operand.reg.value) & 15);
  };
  switch (operand.encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
      op.first = number();
      form.reg = static_cast<unsigned>(KindOf(operand.reg.value)) & 7;
      form.reg_written = written ? 1 : 0;
      break;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
      form.rm_written = written ? 1 : 0;
      if (memory) {
        const unsigned bytes = operand.size / 8;
        form.memory_log2 = static_cast<unsigned>(std::countr_zero(bytes)) & 7;
        form.aligned = !encoding.vex && bytes == 16 && !IsUnaligned(decoded, encoding) ? 1 : 0;
      } else {
        op.second = number();
        form.rm = static_cast<unsigned>(KindOf(operand.reg.value)) & 7;
      }
      break;
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
      form.implicit = number() & 15u;
      break;
    case ZYDIS_OPERAND_ENCODING_IS4:
      form.is4 = number() & 15u;
      break;
    default:
      break;
  }
}

// Shifts by an immediate become shifts by the low half of a register.
// [intel/vol2] "PSLLW/PSLLD/PSLLQ"
void ReplaceShift(const Decoded& decoded, Encoding& encoding, Op& op, Form& form) {
  if (encoding.map != 1 || encoding.opcode < 0x71 || encoding.opcode > 0x73) return;
  static constexpr std::uint8_t kBases[] = {0, 0, 0xd0, 0, 0xe0, 0, 0xf0, 0};
  const unsigned digit = decoded.instruction.raw.modrm.reg;
  form.count = encoding.immediate;
  encoding.opcode = static_cast<std::uint8_t>(kBases[digit] + (encoding.opcode - 0x70));
  const std::uint8_t source = op.second;
  op.first = encoding.vex ? static_cast<std::uint8_t>(form.implicit) : source;
  form.implicit = encoding.vex ? source & 15u : 0;
  form.reg = form.rm;
  form.reg_written = 1;
  form.rm_written = 0;
  form.rm = static_cast<unsigned>(Kind::kCount) & 7;
}

// Bits of the encoding that choose nothing in the current mode, or for memory operands.
void Normalize(const Decoded& decoded, const Op& op, Encoding& encoding) {
  const bool gpr_width =
      (encoding.map == 1 && (encoding.opcode == 0x6e || encoding.opcode == 0x7e ||
                             (encoding.opcode & 0xfc) == 0x2c || encoding.opcode == 0x2a)) ||
      (encoding.map == 3 && (encoding.opcode == 0x16 || encoding.opcode == 0x22));
  if (gpr_width && decoded.code_size != CodeSize::k64) encoding.w = false;
  // INSERTPS takes the one element that is there.
  if (encoding.map == 3 && encoding.opcode == 0x21 && op.memory != 0) encoding.immediate &= 0x3f;
  const bool is4 =
      encoding.vex && encoding.map == 3 && encoding.opcode >= 0x4a && encoding.opcode <= 0x4c;
  if (is4) encoding.immediate = 0x30;
}

KernelEntry EntryOf(const Encoding& encoding, const Form& form, bool is_float) {
  const bool converts_mmx =
      !encoding.vex && encoding.map == 1 && encoding.opcode == 0x2a && encoding.prefix < 2;
  if (form.mmx != 0 || converts_mmx) return KernelEntry::kMmx;
  if (encoding.vex) return is_float ? KernelEntry::kAvxFloat : KernelEntry::kAvx;
  return is_float ? KernelEntry::kSseFloat : KernelEntry::kSse;
}

}  // namespace

Selection SelectVector(const Decoded& decoded, Op& op) {
  if (!IsVectorInstruction(decoded)) return {};
  if (!HasVectorFeature(decoded) || op.lock != 0) return UndefinedInstruction();
  Encoding encoding = EncodingOf(decoded);
  if (encoding.map == 0 || encoding.map > 3) return UndefinedInstruction();
  Form form = {};
  for (unsigned i = 0; i < decoded.instruction.operand_count; ++i) {
    FillOperand(decoded, decoded.operands[i], encoding, op, form);
  }
  const auto is = [](std::uint64_t kind, Kind wanted) {
    return kind == static_cast<unsigned>(wanted);
  };
  if (op.memory != 0) {
    form.rm = static_cast<unsigned>(KindOfMemory(encoding, static_cast<Kind>(form.reg))) & 7;
  }
  const bool memory = op.memory != 0;
  const bool mmx = is(form.reg, Kind::kMmx) || (!memory && is(form.rm, Kind::kMmx));
  const bool vector = is(form.reg, Kind::kVector) || (!memory && is(form.rm, Kind::kVector));
  form.vex = encoding.vex ? 1 : 0;
  form.mmx = mmx ? 1 : 0;
  // MMX to and from memory obeys the rules of MMX alone, unless it converts.
  const bool converts = encoding.map == 1 && (encoding.opcode == 0x2c || encoding.opcode == 0x2d);
  form.sse = !encoding.vex && (vector || !mmx || converts) ? 1 : 0;
  ReplaceShift(decoded, encoding, op, form);
  Normalize(decoded, op, encoding);
  form.flags = WritesFlags(encoding) ? 1 : 0;
  if (encoding.map == 3 && form.flags != 0) {
    form.mask_out = (encoding.opcode & 1) == 0 ? 1 : 0;
    form.index_out = (encoding.opcode & 1) != 0 ? 1 : 0;
  }
  NoteLanes(encoding, form);
  const bool is_float = IsFloat(encoding);
  form.entry = static_cast<unsigned>(EntryOf(encoding, form, is_float)) & 7;
  form.kernel = FindKernel(encoding);
  if (form.kernel == kNoKernel) return UndefinedInstruction();
  op.immediate = std::bit_cast<std::uint64_t>(form);
  return {is_float ? &Plain<&Execute<true>> : &Plain<&Execute<false>>};
}

}  // namespace pagesaw::cpu
