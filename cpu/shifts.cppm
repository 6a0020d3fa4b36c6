// Shifts, rotates and double shifts. Flags that the manuals leave undefined are what AMD's current
// processors make of them.
module;
export module pagesaw.cpu.shifts;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
Selection SelectShift(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu
