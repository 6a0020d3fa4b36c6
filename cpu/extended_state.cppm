// Instructions that save and restore the x87 and vector state whole: FXSAVE, the XSAVE family,
// LDMXCSR.
module;
#include <cstdint>
export module pagesaw.cpu.extended_state;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectExtendedState(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
