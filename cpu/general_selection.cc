module;
#include <Zydis/Zydis.h>
#include <array>
#include <cstdint>
module pagesaw.cpu.general_selection;

import pagesaw.cpu.bits;
import pagesaw.cpu.conditions;
import pagesaw.cpu.exchange;
import pagesaw.cpu.legacy;
import pagesaw.cpu.miscellany;
import pagesaw.cpu.multiply;
import pagesaw.cpu.shifts;
import pagesaw.cpu.strings;

namespace pagesaw::cpu {

Selection SelectGeneral(const Decoded& decoded, Op& op) {
  using Selector = Selection (*)(const Decoded&, Op&);
  static constexpr std::array<Selector, 15> kSelectors = {
      SelectCondition, SelectShift, SelectMultiply, SelectString,     SelectBitTest,
      SelectExchange,  SelectBits,  SelectFlags,    SelectConversion, SelectLoop,
      SelectHint,      SelectBmi,   SelectFrame,    SelectDecimal,    SelectTable,
  };
  // What else may be locked is a matter of the modules below; Zydis refuses the rest.
  if (const Selection selection = SelectLocked(decoded, op); selection.run != nullptr) {
    return selection;
  }
  for (const Selector selector : kSelectors) {
    if (const Selection selection = selector(decoded, op); selection.run != nullptr) {
      return selection;
    }
  }
  return {};
}

}  // namespace pagesaw::cpu
