// PUSH and POP of registers, immediates and memory. Those of segment registers and flags are not
// here: they change more than the stack.
module;
export module pagesaw.cpu.stack;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectStack(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
