module;
#include <Zydis/Zydis.h>
module pagesaw.cpu.cet_selection;

import pagesaw.cpu.branch_tracking;
import pagesaw.cpu.dispatch;
import pagesaw.cpu.shadow_stack;

namespace pagesaw::cpu {
namespace {

bool Undefined(Core& core, const Op&) { return core.Raise(kUd); }

template <Instruction kInstruction>
constexpr Selection Follows() {
  return {.run = &Plain<kInstruction>};
}

Selection SelectShadowStack(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_INCSSPD:
    case ZYDIS_MNEMONIC_INCSSPQ:
      return Follows<&Incssp>();
    case ZYDIS_MNEMONIC_SAVEPREVSSP:
      return Follows<&SavePrevSsp>();
    case ZYDIS_MNEMONIC_RSTORSSP:
      return Follows<&RestoreSsp>();
    case ZYDIS_MNEMONIC_WRSSD:
    case ZYDIS_MNEMONIC_WRSSQ:
      return Follows<&WriteShadowStack>();
    case ZYDIS_MNEMONIC_WRUSSD:
    case ZYDIS_MNEMONIC_WRUSSQ:
      return Follows<&WriteUserShadowStack>();
    case ZYDIS_MNEMONIC_SETSSBSY:
      return Follows<&SetSsBusy>();
    case ZYDIS_MNEMONIC_CLRSSBSY:
      return Follows<&ClearSsBusy>();
    default:
      return {};
  }
}

}  // namespace

Selection SelectCet(const Decoded& decoded, Op& op) {
  const ZydisMnemonic mnemonic = decoded.instruction.mnemonic;
  const bool shadow_stacks = decoded.model->Has(Feature::kShstk);
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_ENDBR32:
      return decoded.cet ? Follows<&EndBranch32>() : Selection{};
    case ZYDIS_MNEMONIC_ENDBR64:
      return decoded.cet ? Follows<&EndBranch64>() : Selection{};
    case ZYDIS_MNEMONIC_RDSSPD:
    case ZYDIS_MNEMONIC_RDSSPQ:
      return shadow_stacks ? Follows<&Rdssp>() : Selection{};
    default:
      break;
  }
  const Selection selection = SelectShadowStack(mnemonic);
  if (selection.run == nullptr || (shadow_stacks && op.lock == 0)) return selection;
  return {.run = &Ending<&Undefined>, .ends_block = true};
}

}  // namespace pagesaw::cpu
