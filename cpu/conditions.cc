module;
#include <Zydis/Zydis.h>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
module pagesaw.cpu.conditions;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

template <unsigned kCode, Place kPlace>
bool Set(Core& core, const Op& op) {
  return WriteOperand<std::uint8_t, kPlace>(core, op, op.first, core.flags.Test<kCode>() ? 1 : 0);
}

// Reads its source whatever the condition; a 32-bit destination loses its upper half even if it
// stays. [intel/vol2] "CMOVcc"
template <unsigned kCode, class T, Place kPlace>
bool Move(Core& core, const Op& op) {
  T value;
  if (!ReadOperand<T, kPlace>(core, op, op.second, value)) return false;
  core.Write<T>(op.first, core.flags.Test<kCode>() ? value : core.Read<T>(op.first));
  return true;
}

template <unsigned kCode>
Handler SetHandler(const Decoded& decoded, const Op& op) {
  return ByPlace(decoded, op,
                 []<Place kPlace>() -> Handler { return &Plain<&Set<kCode, kPlace>>; });
}
template <unsigned kCode>
Handler MoveHandler(const Decoded& decoded, const Op& op) {
  return ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
    return &Plain<&Move<kCode, T, kPlace>>;
  });
}

using Choice = Handler (*)(const Decoded&, const Op&);
template <std::size_t... kCodes>
constexpr std::array<std::array<Choice, 2>, 16> MakeChoices(std::index_sequence<kCodes...>) {
  return {{{&SetHandler<kCodes>, &MoveHandler<kCodes>}...}};
}

}  // namespace

// The condition code is the lower half of the opcode: 0F 90 to 9F and 0F 40 to 4F.
Selection SelectCondition(const Decoded& decoded, Op& op) {
  static constexpr auto kChoices = MakeChoices(std::make_index_sequence<16>());
  const ZydisDecodedInstruction& instruction = decoded.instruction;
  if (instruction.opcode_map != ZYDIS_OPCODE_MAP_0F ||
      instruction.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) {
    return {};
  }
  const bool set = (instruction.opcode & 0xf0) == 0x90;
  const bool move = (instruction.opcode & 0xf0) == 0x40;
  if (!set && !move) return {};
  if (move && !decoded.model->Has(Feature::kCmov)) return UndefinedInstruction();
  PlaceRegisters(decoded, op);
  return {kChoices[instruction.opcode & 15][move ? 1 : 0](decoded, op)};
}

}  // namespace pagesaw::cpu
