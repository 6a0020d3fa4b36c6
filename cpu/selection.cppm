// What the decoder hands to the modules that know instructions, and what they give back.
module;
#include <Zydis/Zydis.h>
export module pagesaw.cpu.selection;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// One instruction as Zydis sees it. The op already has addressing, immediate, registers, sizes and
// prefixes filled in; a module chooses the handler and may correct them.
//   first, second: offsets of the first and second explicit general-purpose register operands; for
//   a segment, control or debug register operand its number instead.
struct Decoded {
  ZydisDecodedInstruction instruction;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  CodeSize code_size = CodeSize::k64;
  AddressKind address_kind = AddressKind::kFlat;
  const CpuModel* model = nullptr;
  bool cet = false;  // for code whose control flow is checked
};

// A module's choice. `run` null: not an instruction of that module. `ends_block`: control or mode
// may change, the handler is an `Ending` one.
struct Selection {
  Handler run = nullptr;
  bool ends_block = false;
  bool direct_branch = false;  // reserves the op behind it for the target's block
};

}  // namespace pagesaw::cpu
