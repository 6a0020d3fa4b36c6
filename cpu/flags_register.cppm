// Instructions on the system flags of RFLAGS: PUSHF, POPF, CLI, STI, CLAC, STAC.
module;
#include <cstdint>
export module pagesaw.cpu.flags_register;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// The flags that POPF and IRET of `bytes` bytes may change at the current privilege, without RF.
// [intel/vol2] "POPF", "IRET"
std::uint64_t LoadableFlags(const Core& core, unsigned bytes);

// The privilege that I/O-sensitive instructions need: CPL <= IOPL, IOPL 3 in virtual-8086 mode.
inline bool MayDoIo(const Core& core) { return core.cpl <= ((core.rflags & kFlagIopl) >> 12); }

// Whether the program below IOPL has a virtual interrupt flag of its own, VIF: CR4.VME in
// virtual-8086 mode, CR4.PVI at CPL 3 of protected mode.
// [intel/vol3] "Protected-Mode Virtual Interrupts", "Class 3: Software Interrupt Handling"
bool HasVirtualInterrupts(const Core& core);
// The 16 bits of flags as such a program sees them in virtual-8086 mode: VIF in place of IF,
// IOPL 3.
std::uint64_t VirtualFlags(const Core& core);
// Takes flags that it loads there. Raises #GP(0) where the monitor must see them.
bool LoadVirtualFlags(Core& core, std::uint64_t value);

bool Pushf(Core& core, const Op& op);
bool Popf(Core& core, const Op& op);
bool Cli(Core& core, const Op& op);
bool Sti(Core& core, const Op& op);
bool Clac(Core& core, const Op& op);
bool Stac(Core& core, const Op& op);

}  // namespace pagesaw::cpu
