// SETcc and CMOVcc.
module;
export module pagesaw.cpu.conditions;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectCondition(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
