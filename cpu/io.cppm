// Port I/O, with the permission bitmap of the TSS, and HLT.
module;
#include <cstdint>
export module pagesaw.cpu.io;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// Whether the program may use `bytes` ports from `port`; #GP(0) if not.
bool CheckPort(Core& core, std::uint16_t port, unsigned bytes);

// The port is `immediate`, or DX. `operand_bytes` is the width.
bool InImmediate(Core& core, const Op& op);
bool InDx(Core& core, const Op& op);
bool OutImmediate(Core& core, const Op& op);
bool OutDx(Core& core, const Op& op);
// With REP several iterations are made at once; each is finished before the next begins. May be
// interrupted in between: then RIP stays on the instruction.
bool Ins(Core& core, const Op& op);
bool Outs(Core& core, const Op& op);

bool Hlt(Core& core, const Op& op);

}  // namespace pagesaw::cpu
