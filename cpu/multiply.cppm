// Multiplication and division.
module;
export module pagesaw.cpu.multiply;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// MUL, IMUL, DIV, IDIV, and BMI2's MULX.
Selection SelectMultiply(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
