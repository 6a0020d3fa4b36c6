module;
#include <cstdint>
module pagesaw.cpu.branch_tracking;

import pagesaw.cpu.dispatch;
import pagesaw.cpu.memory;
import pagesaw.cpu.shadow_stack;

namespace pagesaw::cpu {
namespace {

std::uint64_t& Controls(Core& core, unsigned level) {
  return level == 3 ? core.cet.user : core.cet.supervisor;
}

bool EndBranch(Core& core) {
  if (core.branch_tracking) Controls(core, core.cpl) &= ~(kCetTracker | kCetSuppress);
  return true;
}

}  // namespace

void TrackNear(Core& core, bool no_track) {
  std::uint64_t& controls = Controls(core, core.cpl);
  if (!core.branch_tracking || (controls & kCetSuppress) != 0) return;
  if (no_track && (controls & kCetNoTrack) != 0) return;
  controls |= kCetTracker;
}

void TrackFar(Core& core, unsigned level) {
  if (!core.BranchTrackingEnabled(level)) return;
  std::uint64_t& controls = Controls(core, level);
  controls = (controls & ~kCetSuppress) | kCetTracker;
}

bool IsEndBranch(const Core& core, const Op& op) {
  return op.run == (core.code_64() ? &Plain<&EndBranch64> : &Plain<&EndBranch32>);
}

// [intel/vol1] "Legacy Compatibility Treatment"
bool AdmitLegacy(Core& core) {
  std::uint64_t& controls = Controls(core, core.cpl);
  if ((controls & kCetLegacyBitmap) == 0) {
    return RaiseControlProtection(core, ControlProtection::kEndBranch);
  }
  const bool wide = core.code_64();
  const unsigned width = !wide ? 32 : (core.cr4 & kCr4La57) != 0 ? 57 : 48;
  const std::uint64_t page = (LinearIp(core, core.rip) << (64 - width) >> (64 - width)) >> 12;
  std::uint64_t at = (controls & kCetBitmapBase) + (page >> 3);
  if (!core.long_mode()) at = static_cast<std::uint32_t>(at);
  std::uint8_t bits = 0;
  if (!ShadowStackAddress(core, core.long_mode(), at) || !Load(core, at, bits)) return false;
  if ((bits >> (page & 7) & 1) == 0) {
    return RaiseControlProtection(core, ControlProtection::kEndBranch);
  }
  controls &= ~kCetTracker;
  if ((controls & kCetSuppressDisable) == 0) controls |= kCetSuppress;
  return true;
}

bool EndBranch32(Core& core, const Op&) { return core.code_64() || EndBranch(core); }
bool EndBranch64(Core& core, const Op&) { return !core.code_64() || EndBranch(core); }

}  // namespace pagesaw::cpu
