// Instructions of a past taste: decimal adjustment, stack frames, counted loops and table look-up.
module;
export module pagesaw.cpu.legacy;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// AAA, AAS, AAM, AAD, DAA, DAS, SALC.
Selection SelectDecimal(const Decoded& decoded, Op& op);
// PUSHA, POPA, ENTER, LEAVE.
Selection SelectFrame(const Decoded& decoded, Op& op);
// LOOP, LOOPE, LOOPNE, JCXZ, JECXZ, JRCXZ.
Selection SelectLoop(const Decoded& decoded, Op& op);
// XLAT, BOUND.
Selection SelectTable(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
