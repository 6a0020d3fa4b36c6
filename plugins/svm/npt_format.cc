module;
#include <cstdint>
module pagesaw.plugins.svm.npt_format;

import pagesaw.core.paging_state;
import pagesaw.mmu.legacy_format;

namespace pagesaw::svm {

PageFormat MakeNptFormat(unsigned physical_bits) {
  return MakeLegacyFormat({.features = {.physical_bits = static_cast<std::uint8_t>(physical_bits),
                                        .root_bit8_reserved = true},
                           .permissions = {.second_stage = true}});
}

}  // namespace pagesaw::svm
