// The instructions of control-flow enforcement: those on shadow stacks, and ENDBRANCH.
module;
export module pagesaw.cpu.cet_selection;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// Comes before whoever takes RDSSP and ENDBRANCH for the no-operations that they are otherwise.
Selection SelectCet(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
