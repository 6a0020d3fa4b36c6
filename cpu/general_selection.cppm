// Handlers for the general-purpose instructions that are neither the hottest nor the system's.
module;
export module pagesaw.cpu.general_selection;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectGeneral(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
