module;
#include <cstdint>
module pagesaw.cpu.flags_register;

import pagesaw.cpu.memory;

namespace pagesaw::cpu {
namespace {

// In virtual-8086 mode PUSHF and POPF are the monitor's, unless IOPL is 3.
bool RefusedByMonitor(const Core& core) { return core.virtual_8086() && !MayDoIo(core); }

bool SetAc(Core& core, bool on) {
  if (!core.model->Has(Feature::kSmap) || core.cpl > 0) return core.Raise(kUd);
  core.rflags = on ? core.rflags | kFlagAc : core.rflags & ~kFlagAc;
  core.UpdateMode();
  return true;
}

}  // namespace

std::uint64_t LoadableFlags(const Core& core, unsigned bytes) {
  std::uint64_t mask = kArithmeticFlags | kFlagTf | kFlagDf | kFlagNt;
  if (bytes > 2) mask |= kFlagAc | kFlagId;
  if (MayDoIo(core)) mask |= kFlagIf;
  if (core.cpl == 0) mask |= kFlagIopl;
  return mask;
}

bool Pushf(Core& core, const Op& op) {
  if (RefusedByMonitor(core)) return core.Raise(kGp, 0);
  const std::uint64_t image = core.Rflags() & ~(kFlagVm | kFlagRf);
  switch (op.operand_bytes) {
    case 2:
      return Push(core, static_cast<std::uint16_t>(image));
    case 4:
      return Push(core, static_cast<std::uint32_t>(image));
    default:
      return Push(core, image);
  }
}

bool Popf(Core& core, const Op& op) {
  if (RefusedByMonitor(core)) return core.Raise(kGp, 0);
  std::uint64_t linear = 0;
  std::uint64_t value = 0;
  if (!StackAddress(core, 0, op.operand_bytes, false, linear) ||
      !LoadSlow(core, linear, &value, op.operand_bytes, By::kProgram)) {
    return false;
  }
  MoveStack(core, op.operand_bytes);
  const std::uint64_t mask = LoadableFlags(core, op.operand_bytes);
  core.SetRflags((core.Rflags() & ~(mask | kFlagRf)) | (value & mask));
  core.UpdateMode();
  return true;
}

bool Cli(Core& core, const Op&) {
  if (!MayDoIo(core)) return core.Raise(kGp, 0);
  core.rflags &= ~kFlagIf;
  return true;
}

bool Sti(Core& core, const Op&) {
  if (!MayDoIo(core)) return core.Raise(kGp, 0);
  if ((core.rflags & kFlagIf) == 0) core.interrupt_shadow = true;
  core.rflags |= kFlagIf;
  return true;
}

bool Clac(Core& core, const Op&) { return SetAc(core, false); }
bool Stac(Core& core, const Op&) { return SetAc(core, true); }

}  // namespace pagesaw::cpu
