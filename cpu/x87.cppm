// The x87 floating-point unit.
module;
export module pagesaw.cpu.x87;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// Every x87 instruction, and WAIT.
Selection SelectX87(const Decoded& decoded, Op& op);

// FNSTENV, FNSAVE, FLDENV and FRSTOR, which store and load the state in the layouts of old.
bool Fnstenv(Core& core, const Op& op);
bool Fnsave(Core& core, const Op& op);
bool Fldenv(Core& core, const Op& op);
bool Frstor(Core& core, const Op& op);
// As FNINIT leaves it; the vector registers stay.
void ResetX87(ExtendedState& state);
// Makes the bits of `state` that follow from others do so: after a load from memory.
void NormalizeX87(ExtendedState& state);

}  // namespace pagesaw::cpu
