// Between a processor's state as it is executed and as others read and write it.
module;
export module pagesaw.cpu.core_state;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

CpuState StateOf(const Core& core);

// Takes `state` but for the x87 and vector registers. What is derived from it (UpdateMode,
// UpdatePaging) and what is on its way is the caller's business.
void LoadState(Core& core, const CpuState& state);

}  // namespace pagesaw::cpu
