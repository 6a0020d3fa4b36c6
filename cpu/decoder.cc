module;
#include <Zydis/Zydis.h>
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
module pagesaw.cpu.decoder;

import pagesaw.cpu.branches;
import pagesaw.cpu.cet_selection;
import pagesaw.cpu.dispatch;
import pagesaw.cpu.extended_state;
import pagesaw.cpu.fusion;
import pagesaw.cpu.general_selection;
import pagesaw.cpu.host_bytes;
import pagesaw.cpu.integer;
import pagesaw.cpu.selection;
import pagesaw.cpu.stack;
import pagesaw.cpu.system_selection;
import pagesaw.cpu.vector;
import pagesaw.cpu.x87;

namespace pagesaw::cpu {
namespace {

ZydisDecoder MakeZydis(ZydisMachineMode mode, ZydisStackWidth width, const CpuModel& model) {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, mode, width);
  // Without the feature, the opcodes mean what they meant before it.
  ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_LZCNT, model.Has(Feature::kLzcnt));
  ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_TZCNT, model.Has(Feature::kBmi1));
  ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
  ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_CET, ZYAN_TRUE);
  ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
  return decoder;
}

ZydisDecoder ZydisFor(CodeMode mode, const CpuModel& model) {
  switch (mode.size) {
    case CodeSize::k64:
      return MakeZydis(ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64, model);
    case CodeSize::k32:
      return MakeZydis(ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32, model);
    case CodeSize::k16:
      break;
  }
  return mode.protected_mode ? MakeZydis(ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16, model)
                             : MakeZydis(ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16, model);
}

bool Undefined(Core& core, const Op&) { return core.Raise(kUd); }
// An instruction of more than 15 bytes.
bool TooLong(Core& core, const Op&) { return core.Raise(kGp, 0); }

// What a GPR operand is as an offset into Core::gpr; for other registers their number.
RegisterOffset OffsetOf(ZydisRegister reg) {
  const auto offset = [](int number) { return static_cast<RegisterOffset>(number * 8); };
  if (ZydisRegisterGetClass(reg) == ZYDIS_REGCLASS_GPR8) {
    const int number = reg - ZYDIS_REGISTER_AL;  // AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8B ...
    if (number < 4) return offset(number);
    if (number < 8) return static_cast<RegisterOffset>(offset(number - 4) + 1);
    return offset(number - 4);
  }
  switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
      return offset(ZydisRegisterGetId(reg));
    default:
      return static_cast<RegisterOffset>(ZydisRegisterGetId(reg));
  }
}

std::uint8_t Log2(unsigned scale) { return scale < 2 ? 0 : scale == 2 ? 1 : scale == 4 ? 2 : 3; }

// A SIB byte that names no base does so whatever REX.B says, which Zydis 4.0 misses where addresses
// have 32 bits in 64-bit code. [intel/vol2] "Special Cases of REX Encodings"
bool SibWithoutBase(const ZydisDecodedInstruction& instruction) {
  return (instruction.attributes & ZYDIS_ATTRIB_HAS_SIB) != 0 && instruction.raw.modrm.mod == 0 &&
         instruction.raw.sib.base == 5;
}

void FillMemory(const ZydisDecodedInstruction& instruction, const ZydisDecodedOperand& operand,
                Op& op) {
  ZydisDecodedOperandMem memory = operand.mem;
  if (SibWithoutBase(instruction)) {
    memory.base = ZYDIS_REGISTER_NONE;
    memory.disp.value = instruction.raw.disp.value;
  }
  op.memory = 1;
  op.segment = static_cast<std::uint8_t>(ZydisRegisterGetId(memory.segment));
  op.displacement = static_cast<std::int32_t>(memory.disp.value);
  if (memory.base == ZYDIS_REGISTER_RIP || memory.base == ZYDIS_REGISTER_EIP) {
    // ip_base stands where a register offset reaches it.
    op.base = kIpBaseRegister;
    op.displacement += op.ip + op.length;
  } else if (memory.base != ZYDIS_REGISTER_NONE) {
    op.base = OffsetOf(memory.base);
  }
  if (memory.index != ZYDIS_REGISTER_NONE) {
    op.index = OffsetOf(memory.index);
    op.scale = Log2(memory.scale);
  }
}

// Fills in what an op has whatever its instruction does.
void FillOp(const Decoded& decoded, Op& op) {
  const ZydisDecodedInstruction& instruction = decoded.instruction;
  op.length = instruction.length;
  op.operand_bytes = static_cast<std::uint8_t>(instruction.operand_count_visible > 0
                                                   ? decoded.operands[0].size / 8
                                                   : instruction.operand_width / 8);
  op.address_bytes = static_cast<std::uint8_t>(instruction.address_width / 8) & 15;
  op.lock = (instruction.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
  if ((instruction.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) != 0) op.repeat = 1;
  if ((instruction.attributes & ZYDIS_ATTRIB_HAS_REPNE) != 0) op.repeat = 2;
  bool have_first = false;
  for (unsigned i = 0; i < instruction.operand_count_visible; ++i) {
    const ZydisDecodedOperand& operand = decoded.operands[i];
    switch (operand.type) {
      case ZYDIS_OPERAND_TYPE_REGISTER:
        (have_first ? op.second : op.first) = OffsetOf(operand.reg.value);
        have_first = true;
        break;
      case ZYDIS_OPERAND_TYPE_MEMORY:
        FillMemory(instruction, operand, op);
        break;
      case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        op.immediate = operand.imm.value.u;
        break;
      default:
        break;
    }
  }
}

Selection Select(const Decoded& decoded, Op& op) {
  using Selector = Selection (*)(const Decoded&, Op&);
  static constexpr std::array<Selector, 11> kSelectors = {
      SelectInteger,       SelectBranch,     SelectStack,      SelectCet,
      SelectGeneral,       SelectVectorMove, SelectMaskedMove, SelectX87,
      SelectExtendedState, SelectVector,     SelectSystem};
  for (const Selector selector : kSelectors) {
    if (const Selection selection = selector(decoded, op); selection.run != nullptr) {
      return selection;
    }
  }
  return {&Ending<Undefined>, true};
}

AddressKind AddressKindOf(const Op& op, CodeMode mode) {
  const bool flat =
      mode.size == CodeSize::k64 && op.address_bytes == 8 && op.segment != kFs && op.segment != kGs;
  return flat ? AddressKind::kFlat : AddressKind::kSegmented;
}

}  // namespace

DecodedBlock DecodeBlock(const CodeBytes& bytes, CodeMode mode, const CpuModel& model, Op* ops) {
  const ZydisDecoder zydis = ZydisFor(mode, model);
  const std::size_t limit = mode.single ? 1 : kMaxBlockInstructions;
  DecodedBlock block;
  std::size_t at = 0;
  bool ended = false;
  while (!ended && block.instructions < limit && at < bytes.count) {
    Op& op = *std::construct_at(ops + block.ops);
    Decoded decoded;
    decoded.code_size = mode.size;
    decoded.model = &model;
    decoded.cet = mode.cet;
    op.ip = static_cast<std::uint16_t>(bytes.page_offset + at);
    // Decoded from a copy: other processors may write to the bytes meanwhile.
    std::array<std::byte, ZYDIS_MAX_INSTRUCTION_LENGTH> copy;
    const std::size_t count = std::min(bytes.count - at, copy.size());
    CopyHost(copy.data(), bytes.first + at, count);
    ZyanStatus status =
        ZydisDecoderDecodeFull(&zydis, copy.data(), count, &decoded.instruction, decoded.operands);
    if (status == ZYDIS_STATUS_NO_MORE_DATA && count == copy.size()) {
      status = ZYDIS_STATUS_INSTRUCTION_TOO_LONG;
    }
    if (status == ZYDIS_STATUS_NO_MORE_DATA) break;
    Selection selection;
    if (ZYAN_SUCCESS(status)) {
      op.length = decoded.instruction.length;
      FillOp(decoded, op);
      decoded.address_kind = AddressKindOf(op, mode);
      selection = Select(decoded, op);
    } else {
      op.length = 1;
      selection = status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? Selection{&Ending<TooLong>, true}
                                                              : Selection{&Ending<Undefined>, true};
    }
    op.run = selection.run;
    at += op.length;
    ended = selection.ends_block;
    ++block.instructions;
    ++block.ops;
    if (selection.direct_branch) std::construct_at(ops + block.ops++);
  }
  if (block.instructions == 0) return block;
  block.bytes = at;
  if (!ended) {
    Op& end = *std::construct_at(ops + block.ops++);
    end.run = &EndOfBlock;
    end.ip = static_cast<std::uint16_t>(bytes.page_offset + at);
  }
  std::uint32_t remaining = block.instructions;
  for (std::size_t i = 0; i < block.ops; ++i) {
    if (ops[i].length == 0) continue;
    ops[i].remaining = static_cast<std::uint8_t>(remaining--);
  }
  Fuse({ops, block.ops});
  return block;
}

}  // namespace pagesaw::cpu
