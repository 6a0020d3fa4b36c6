// MMX, SSE, AVX and what belongs to them.
module;
export module pagesaw.cpu.vector;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// Every instruction on vector registers that computes: by the host's own processor.
Selection SelectVector(const Decoded& decoded, Op& op);
// Moves of whole registers, of halves, and what has no form without memory.
Selection SelectVectorMove(const Decoded& decoded, Op& op);
// Moves of the elements that a mask chooses, and gathers.
Selection SelectMaskedMove(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
