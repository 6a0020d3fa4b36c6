// VMCALL and VMMCALL of a guest that is no hypervisor itself and has one: calls to the outside.
// Either instruction does on processors of either vendor, so that one image serves both.
// [intel/vol3] "VMCALL"; [amd/vol3] "VMMCALL"
module;
export module pagesaw.cpu.hypercall;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// A call of the number in RAX, whose answer goes to RAX; EAX outside 64-bit mode. #UD for programs
// (CPL above 0), as on a processor without a hypervisor.
bool CallHypervisor(Core& core, const Op& op);

}  // namespace pagesaw::cpu
