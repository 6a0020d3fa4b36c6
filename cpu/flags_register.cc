module;
#include <cstdint>
module pagesaw.cpu.flags_register;

import pagesaw.cpu.control_bits;
import pagesaw.cpu.intercept;
import pagesaw.cpu.memory;

namespace pagesaw::cpu {
namespace {

// In virtual-8086 mode PUSHF and POPF are the monitor's, unless IOPL is 3.
bool RefusedByMonitor(const Core& core, const Op& op) {
  return core.virtual_8086() && !MayDoIo(core) &&
         !(HasVirtualInterrupts(core) && op.operand_bytes == 2);
}

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

bool HasVirtualInterrupts(const Core& core) {
  if (core.real_mode() || core.cpl != 3 || MayDoIo(core)) return false;
  return (core.cr4 & (core.virtual_8086() ? kCr4Vme : kCr4Pvi)) != 0;
}

std::uint64_t VirtualFlags(const Core& core) {
  const std::uint64_t flags = (core.Rflags() & ~kFlagIf) | kFlagIopl;
  return ((core.rflags & kFlagVif) != 0 ? flags | kFlagIf : flags) & 0xffff;
}

bool LoadVirtualFlags(Core& core, std::uint64_t value) {
  const bool wakes = (value & kFlagIf) != 0 && (core.rflags & kFlagVip) != 0;
  if (wakes || (value & kFlagTf) != 0) return core.Raise(kGp, 0);
  const std::uint64_t mask = LoadableFlags(core, 2);
  const std::uint64_t virtual_if = (value & kFlagIf) != 0 ? kFlagVif : 0;
  core.SetRflags((core.Rflags() & ~(mask | kFlagRf | kFlagVif)) | (value & mask) | virtual_if);
  return true;
}

bool Pushf(Core& core, const Op& op) {
  if (RefusedByMonitor(core, op)) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kPushf)) return false;
  const bool is_virtual = core.virtual_8086() && !MayDoIo(core);
  const std::uint64_t image =
      is_virtual ? VirtualFlags(core) : core.Rflags() & ~(kFlagVm | kFlagRf);
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
  if (RefusedByMonitor(core, op)) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kPopf)) return false;
  std::uint64_t linear = 0;
  std::uint64_t value = 0;
  if (!StackAddress(core, 0, op.operand_bytes, false, linear) ||
      !LoadSlow(core, linear, &value, op.operand_bytes, By::kProgram)) {
    return false;
  }
  if (core.virtual_8086() && !MayDoIo(core)) {
    if (!LoadVirtualFlags(core, value)) return false;
    MoveStack(core, op.operand_bytes);
    return true;
  }
  MoveStack(core, op.operand_bytes);
  const std::uint64_t mask = LoadableFlags(core, op.operand_bytes);
  core.SetRflags((core.Rflags() & ~(mask | kFlagRf)) | (value & mask));
  core.UpdateMode();
  return true;
}

bool Cli(Core& core, const Op&) {
  if (HasVirtualInterrupts(core)) {
    core.rflags &= ~kFlagVif;
    return true;
  }
  if (!MayDoIo(core)) return core.Raise(kGp, 0);
  core.rflags &= ~kFlagIf;
  return true;
}

bool Sti(Core& core, const Op&) {
  if (HasVirtualInterrupts(core)) {
    if ((core.rflags & kFlagVip) != 0) return core.Raise(kGp, 0);
    core.rflags |= kFlagVif;
    return true;
  }
  if (!MayDoIo(core)) return core.Raise(kGp, 0);
  if ((core.rflags & kFlagIf) == 0) core.interrupt_shadow = true;
  core.rflags |= kFlagIf;
  return true;
}

bool Clac(Core& core, const Op&) { return SetAc(core, false); }
bool Stac(Core& core, const Op&) { return SetAc(core, true); }

}  // namespace pagesaw::cpu
