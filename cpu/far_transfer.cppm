// Transfers of control that change the code segment: far JMP, CALL and RET, SYSCALL and SYSENTER
// with their returns.
module;
export module pagesaw.cpu.far_transfer;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// Direct: `immediate` is the offset, with the selector in bits 47:32. Indirect: memory.
bool FarJump(Core& core, const Op& op);
bool FarCall(Core& core, const Op& op);
bool FarJumpIndirect(Core& core, const Op& op);
bool FarCallIndirect(Core& core, const Op& op);
// `immediate`: bytes to take from the stack besides.
bool FarReturn(Core& core, const Op& op);

bool Syscall(Core& core, const Op& op);
bool Sysret(Core& core, const Op& op);
bool Sysenter(Core& core, const Op& op);
bool Sysexit(Core& core, const Op& op);

}  // namespace pagesaw::cpu
