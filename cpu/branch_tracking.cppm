// Indirect branch tracking: behind an indirect branch stands an ENDBRANCH instruction, or #CP.
// [intel/vol1] "Indirect Branch Tracking"
module;
export module pagesaw.cpu.branch_tracking;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// Whether the instruction at RIP must be ENDBRANCH.
inline bool WaitsForEndBranch(const Core& core) {
  return core.branch_tracking && (core.CetControls(core.cpl) & kCetTracker) != 0;
}

// Behind a near indirect branch; `no_track`: it has the prefix.
void TrackNear(Core& core, bool no_track);
// Behind a far transfer or the delivery of an event to `level`, whose tracker waits even if it was
// suppressed. RFLAGS.VM is as it is afterwards.
void TrackFar(Core& core, unsigned level);

// Whether `op` is the ENDBRANCH of the current mode.
bool IsEndBranch(const Core& core, const Op& op);
// Whether the instruction at RIP may be executed though it is no ENDBRANCH: code of a page that the
// bitmap names as legacy. False: a fault.
bool AdmitLegacy(Core& core);

bool EndBranch32(Core& core, const Op& op);
bool EndBranch64(Core& core, const Op& op);

}  // namespace pagesaw::cpu
