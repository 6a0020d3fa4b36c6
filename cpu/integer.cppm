// The instructions that programs spend their time in: moves, LEA and two-operand arithmetic without
// LOCK. One handler for each operation, operand size, form and kind of address.
module;
export module pagesaw.cpu.integer;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectInteger(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
