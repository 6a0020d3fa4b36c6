// MONITOR and MWAIT, and AMD's MONITORX and MWAITX for programs. [intel/vol2] "MONITOR", "MWAIT";
// [amd/vol3] "MONITOR", "MWAIT", "MONITORX", "MWAITX"
module;
#include <cstdint>
export module pagesaw.cpu.monitor;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// The line that MONITOR arms and CPUID leaf 5 tells of, in bytes.
inline constexpr unsigned kMonitorLineBytes = 64;

// Whether they exist now: the feature is there and IA32_MISC_ENABLE has it on.
bool HasMonitor(const Core& core);

// `segment` is that of the line; the address is in RAX.
bool Monitor(Core& core, const Op& op);
// Wakes for any reason, after a short sleep of the host's if the monitor is armed: a program that
// waits for stores in a loop sees them late by no more than that, and does not burn the host's
// processor. Ends the Run, so that events of the outside are looked for.
bool Mwait(Core& core, const Op& op);
bool Monitorx(Core& core, const Op& op);
// If ECX bit 1 is set, no longer than EBX ticks of the time-stamp counter.
bool Mwaitx(Core& core, const Op& op);

}  // namespace pagesaw::cpu
