// MOVS, STOS, LODS, CMPS and SCAS, alone and repeated. A repeated one counts its iterations in
// registers, so that it can stop after any of them and start again there.
module;
export module pagesaw.cpu.strings;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectString(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
