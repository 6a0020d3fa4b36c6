// Chooses handlers for system instructions, and for those of register files that the processor
// does not have, which raise what they must.
module;
export module pagesaw.cpu.system_selection;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectSystem(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
