// Short instructions: flags, sign extension, fences, cache control, hints.
module;
export module pagesaw.cpu.miscellany;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// CLC, STC, CMC, CLD, STD, LAHF, SAHF.
Selection SelectFlags(const Decoded& decoded, Op& op);
// CBW, CWDE, CDQE, CWD, CDQ, CQO.
Selection SelectConversion(const Decoded& decoded, Op& op);
// Fences, cache lines, prefetches, hints that do nothing, MOVNTI, RDPID, and UD0 to UD2.
Selection SelectHint(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
