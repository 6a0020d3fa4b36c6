// IRET of pagesaw.cpu.exceptions.
module;
#include <cstdint>
#include <initializer_list>
module pagesaw.cpu.exceptions;

import pagesaw.cpu.flags_register;
import pagesaw.cpu.intercept;
import pagesaw.cpu.segmentation;
import pagesaw.cpu.shadow_stack;
import pagesaw.cpu.task_switch;
import pagesaw.cpu.transfer_stack;

namespace pagesaw::cpu {
namespace {

// What IRET finds on the stack.
struct Image {
  std::uint64_t rip = 0;
  std::uint64_t cs = 0;
  std::uint64_t flags = 0;
  std::uint64_t sp = 0;
  std::uint64_t ss = 0;
  std::uint16_t code_selector() const { return static_cast<std::uint16_t>(cs); }
  std::uint16_t stack_selector() const { return static_cast<std::uint16_t>(ss); }
};

bool PopImage(StackReader& stack, Image& image) {
  return stack.Pop(image.rip) && stack.Pop(image.cs) && stack.Pop(image.flags);
}

// RF is kept while there are instruction breakpoints; without them it would cost time and have an
// effect on nothing.
void SetFlags(Core& core, std::uint64_t value, std::uint64_t mask, unsigned bytes) {
  const bool resumes = bytes > 2 && core.breakpoints.any_execute();
  // Only a kernel changes the virtual interrupt flags.
  if (bytes > 2 && core.protected_mode() && core.cpl == 0) mask |= kFlagVif | kFlagVip;
  const std::uint64_t loaded = mask | (resumes ? kFlagRf : 0);
  core.SetRflags((core.Rflags() & ~(mask | kFlagRf)) | (value & loaded));
}

// Real mode, and virtual-8086 mode with IOPL 3, where IOPL and VM stay.
bool ReturnUnprotected(Core& core, unsigned bytes) {
  StackReader stack(core, bytes);
  Image image;
  if (!PopImage(stack, image)) return false;
  if (image.rip > (core.virtual_8086() ? 0xffff : core.segments[kCs].limit)) {
    return core.Raise(kGp, 0);
  }
  const std::uint64_t mask = LoadableFlags(core, bytes);
  MoveStack(core, stack.offset());
  SetSegment(core, kCs, RealModeSegment(core, kCs, image.code_selector()));
  SetFlags(core, image.flags, mask, bytes);
  core.UpdateMode();
  core.rip = image.rip;
  return true;
}

// Virtual-8086 mode below IOPL 3, with virtual interrupts.
bool ReturnVirtual(Core& core) {
  StackReader stack(core, 2);
  Image image;
  if (!PopImage(stack, image) || !LoadVirtualFlags(core, image.flags)) return false;
  MoveStack(core, stack.offset());
  SetSegment(core, kCs, RealModeSegment(core, kCs, image.code_selector()));
  core.UpdateMode();
  core.rip = image.rip;
  return true;
}

bool ReturnToVirtual8086(Core& core, StackReader& stack, const Image& image) {
  std::uint64_t sp = 0;
  std::uint64_t ss = 0;
  std::uint64_t selectors[4] = {};
  if (!stack.Pop(sp) || !stack.Pop(ss)) return false;
  for (std::uint64_t& selector : selectors) {
    if (!stack.Pop(selector)) return false;
  }
  // Virtual-8086 mode has neither shadow stacks nor branch tracking.
  const bool user_cet = core.ShadowStackEnabled(3) || core.BranchTrackingEnabled(3);
  if (image.rip > 0xffff || user_cet) return core.Raise(kGp, 0);
  if (core.shadow_stack) {
    if ((core.cet.ssp & 7) != 0) return RaiseControlProtection(core, ControlProtection::kFarReturn);
    if (!ReleaseToken(core, core.cet.ssp)) return false;
  }
  SetFlags(core, image.flags, LoadableFlags(core, 4) | kFlagVm, 4);
  const auto set = [&core](SegmentName name, std::uint64_t selector) {
    SetSegment(core, name, RealModeSegment(core, name, static_cast<std::uint16_t>(selector)));
  };
  set(kCs, image.cs);
  set(kSs, ss);
  set(kEs, selectors[0]);
  set(kDs, selectors[1]);
  set(kFs, selectors[2]);
  set(kGs, selectors[3]);
  core.gpr[kRsp] = sp;
  core.UpdateMode();
  core.rip = image.rip;
  return true;
}

bool ReturnProtected(Core& core, unsigned bytes) {
  StackReader stack(core, bytes);
  Image image;
  if (!PopImage(stack, image)) return false;
  if (!core.long_mode() && core.cpl == 0 && bytes == 4 && (image.flags & kFlagVm) != 0) {
    return ReturnToVirtual8086(core, stack, image);
  }
  Descriptor code;
  Segment cs;
  const std::uint16_t selector = image.code_selector();
  const unsigned cpl = selector & 3;
  if (!FetchReturnCode(core, selector, code) || !PrepareCode(core, selector, code, cpl, cs)) {
    return false;
  }
  const bool to_64 = core.long_mode() && cs.long_mode();
  const bool outer = cpl > core.cpl;
  const bool with_stack = outer || core.code_64();
  Segment ss;
  if (with_stack && (!stack.Pop(image.sp) || !stack.Pop(image.ss) ||
                     !PrepareReturnStack(core, image.stack_selector(), cpl, to_64, ss))) {
    return false;
  }
  if (to_64 ? !IsCanonicalNow(core, image.rip) : image.rip > cs.limit) return core.Raise(kGp, 0);
  ShadowSwitch shadow;
  const ShadowReturn to = {.level = cpl,
                           .wide = to_64,
                           .event = true,
                           .selector = cs.selector,
                           .linear = LinearIn(cs, to_64, image.rip)};
  if (!PrepareShadowReturn(core, to, shadow)) return false;
  shadow.Commit(core);

  const std::uint64_t mask = LoadableFlags(core, bytes);
  if (!with_stack) MoveStack(core, stack.offset());
  SetSegment(core, kCs, cs);
  if (with_stack) core.segments[kSs] = ss;
  SetFlags(core, image.flags, mask, bytes);
  core.UpdateMode();
  if (with_stack) SetStackPointer(core, image.sp);
  if (outer) DropInnerSegments(core, cpl);
  core.rip = image.rip;
  return true;
}

bool ReturnToTask(Core& core) {
  std::uint64_t link = 0;
  if (!LoadTss(core, 0, 2, link)) return false;
  return SwitchTask(core, TaskSwitch{.selector = static_cast<std::uint16_t>(link),
                                     .kind = TaskSwitchKind::kReturn,
                                     .return_rip = core.rip,
                                     .error_code = {}});
}

bool Return(Core& core, unsigned bytes) {
  if (core.real_mode()) return ReturnUnprotected(core, bytes);
  if (core.virtual_8086()) {
    if (HasVirtualInterrupts(core) && bytes == 2) return ReturnVirtual(core);
    return MayDoIo(core) ? ReturnUnprotected(core, bytes) : core.Raise(kGp, 0);
  }
  if ((core.rflags & kFlagNt) != 0) {
    return core.long_mode() ? core.Raise(kGp, 0) : ReturnToTask(core);
  }
  return ReturnProtected(core, bytes);
}

}  // namespace

bool Iret(Core& core, const Op& op) {
  if (Leaves(core, op, Intercept::kIret) || !Return(core, op.operand_bytes)) return false;
  const bool keeps = core.guest.active && core.guest.interrupts.iret_keeps_nmi_blocked;
  if (!keeps) core.nmi_blocked = false;
  return true;
}

}  // namespace pagesaw::cpu
