module;
#include <Zydis/Zydis.h>
#include <cstdint>
module pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

bool Undefined(Core& core, const Op&) { return core.Raise(kUd); }

}  // namespace

RegisterOffset GprOffset(ZydisRegister reg) {
  if (ZydisRegisterGetClass(reg) != ZYDIS_REGCLASS_GPR8) {
    return static_cast<RegisterOffset>(ZydisRegisterGetId(reg) * 8);
  }
  // AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8B to R15B
  const int number = reg - ZYDIS_REGISTER_AL;
  if (number < 4) return static_cast<RegisterOffset>(number * 8);
  return static_cast<RegisterOffset>((number - 4) * 8 + (number < 8 ? 1 : 0));
}

void PlaceRegisters(const Decoded& decoded, Op& op) {
  const auto take = [&](unsigned index, RegisterOffset& to) {
    if (index >= decoded.instruction.operand_count_visible) return;
    const ZydisDecodedOperand& operand = decoded.operands[index];
    if (operand.type == ZYDIS_OPERAND_TYPE_REGISTER) to = GprOffset(operand.reg.value);
  };
  take(0, op.first);
  take(1, op.second);
}

SegmentName SegmentOfImplicit(const Decoded& decoded, Gpr base) {
  for (unsigned i = 0; i < decoded.instruction.operand_count; ++i) {
    const ZydisDecodedOperand& operand = decoded.operands[i];
    if (operand.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    if (ZydisRegisterGetId(operand.mem.base) != static_cast<int>(base)) continue;
    return static_cast<SegmentName>(ZydisRegisterGetId(operand.mem.segment));
  }
  return kDs;
}

bool VexIsLegal(Core& core) {
  return (core.protected_mode() && !core.virtual_8086()) || core.Raise(kUd);
}

Selection UndefinedInstruction() { return {&Ending<&Undefined>, true}; }

}  // namespace pagesaw::cpu
