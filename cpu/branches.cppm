// Near transfers of control: jumps, conditional jumps, calls and returns.
module;
export module pagesaw.cpu.branches;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectBranch(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
