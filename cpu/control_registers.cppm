// Control and debug registers and what else governs translation: MOV CR, MOV DR, LMSW, SMSW, CLTS,
// INVLPG, INVPCID, cache control, protection-key and extended-control registers.
module;
#include <cstdint>
export module pagesaw.cpu.control_registers;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// Notes that a register that paging depends on has changed, which invalidates what the scope says,
// of the current PCID: flushes and, where the processor's tables stand for the guest's linear
// addresses, ends the Run behind the current instruction. Then `core.stop` is kExit though the
// instruction is done: it returns true and must be an Ending one.
void PagingChanged(Core& core, Invalidation::Scope scope);

// The bits of CR0 that there are, and those of CR4, EFER and, in long mode, CR3 that the
// processor's features allow.
std::uint64_t AllowedCr0();
std::uint64_t AllowedCr4(const CpuModel& model);
std::uint64_t AllowedEfer(const CpuModel& model);
std::uint64_t AllowedCr3(const CpuModel& model);

// Operands: `first` the destination and `second` the source, a number for control and debug
// registers and an offset for general-purpose ones.
bool MovToControl(Core& core, const Op& op);
bool MovFromControl(Core& core, const Op& op);
bool MovToDebug(Core& core, const Op& op);
bool MovFromDebug(Core& core, const Op& op);
bool Lmsw(Core& core, const Op& op);
bool Smsw(Core& core, const Op& op);
bool Clts(Core& core, const Op& op);
bool Invlpg(Core& core, const Op& op);
bool Invpcid(Core& core, const Op& op);
bool Wbinvd(Core& core, const Op& op);  // no cache of ours holds what memory does not
bool Invd(Core& core, const Op& op);
bool Rdpkru(Core& core, const Op& op);
bool Wrpkru(Core& core, const Op& op);
bool Xgetbv(Core& core, const Op& op);
bool Xsetbv(Core& core, const Op& op);

}  // namespace pagesaw::cpu
