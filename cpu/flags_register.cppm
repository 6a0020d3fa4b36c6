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

bool Pushf(Core& core, const Op& op);
bool Popf(Core& core, const Op& op);
bool Cli(Core& core, const Op& op);
bool Sti(Core& core, const Op& op);
bool Clac(Core& core, const Op& op);
bool Stac(Core& core, const Op& op);

}  // namespace pagesaw::cpu
