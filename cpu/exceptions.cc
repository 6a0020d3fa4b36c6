module;
#include <cstdint>
#include <initializer_list>
#include <optional>
module pagesaw.cpu.exceptions;

import pagesaw.cpu.branch_tracking;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.flags_register;
import pagesaw.cpu.intercept;
import pagesaw.cpu.segmentation;
import pagesaw.cpu.shadow_stack;
import pagesaw.cpu.task_switch;
import pagesaw.cpu.transfer_stack;

namespace pagesaw::cpu {
namespace {

bool IsSoftware(const Pending& pending) {
  return pending.event_class == EventClass::kSoftwareInterrupt;
}

// Software interrupts, without ICEBP: what a gate's DPL restrains, and what is not "external".
bool IsFromProgram(const Pending& pending) {
  return IsSoftware(pending) && !pending.privileged_software;
}

bool IsException(const Pending& pending) {
  return pending.event_class == EventClass::kFault || pending.event_class == EventClass::kTrap;
}

// [intel/vol3] "Interrupt and Exception Classes", of double faults
bool IsContributory(const Pending& pending) {
  switch (pending.vector) {
    case kDe:
    case kTs:
    case kNp:
    case kSsVector:
    case kGp:
    case kCp:
      return IsException(pending);
    default:
      return false;
  }
}
bool IsPageFault(const Pending& pending) {
  return pending.vector == kPfVector && IsException(pending);
}
bool MakesDoubleFault(const Pending& first, const Pending& second) {
  return (IsContributory(first) && IsContributory(second)) ||
         (IsPageFault(first) && (IsContributory(second) || IsPageFault(second)));
}

// More events within events than any that ends has.
constexpr unsigned kMaxNested = 8;

// An event on its way, with what does not depend on the mode.
struct Delivering {
  Core& core;
  const Pending& pending;
  std::uint64_t return_rip;
  std::uint64_t flags;  // the image pushed

  std::uint32_t gate_error() const { return pending.vector * 8u + 2; }
  bool Refuse(Vector vector) const { return core.Raise(vector, gate_error()); }
};

// RF in the image makes the restarted instruction immune to its own breakpoint; the breakpoint's
// own fault leaves that to its handler. [intel/vol3] "Instruction-Breakpoint Exception Condition"
std::uint64_t FlagsImage(const Core& core, const Pending& pending) {
  const std::uint64_t flags = core.Rflags();
  switch (pending.event_class) {
    case EventClass::kFault: {
      const bool breakpoint = pending.vector == kDb && (pending.dr6 & kDr6Bd) == 0;
      return breakpoint ? flags : flags | kFlagRf;
    }
    case EventClass::kTrap:
    case EventClass::kInterrupt:
      return core.in_repeat ? flags | kFlagRf : flags;
    case EventClass::kSoftwareInterrupt:
      break;
  }
  return flags;
}

// Pushes of a frame at `bytes` a value.
struct Frame {
  StackWriter& stack;
  unsigned bytes;
  bool ok = true;
  void Push(std::uint64_t value) { ok = ok && stack.Push(value, bytes); }
};

void EnterHandler(Core& core, std::uint64_t cleared) {
  core.rflags &= ~(kFlagTf | kFlagNt | kFlagRf | kFlagVm | cleared);
}

bool DeliverReal(const Delivering& event) {
  Core& core = event.core;
  const std::uint32_t at = event.pending.vector * 4u;
  if (at + 3 > core.idtr.limit) return event.Refuse(kGp);
  std::uint32_t target = 0;
  if (!LoadSystem(core, static_cast<std::uint32_t>(core.idtr.base + at), target)) return false;
  StackWriter stack(core, core.segments[kSs], core.gpr[kRsp], false, By::kProgram, 0);
  Frame frame{stack, 2};
  frame.Push(event.flags & ~kFlagRf);
  frame.Push(core.segments[kCs].selector);
  frame.Push(event.return_rip);
  if (!frame.ok) return false;
  SetSegment(core, kCs, RealModeSegment(core, kCs, static_cast<std::uint16_t>(target >> 16)));
  core.rflags &= ~(kFlagIf | kFlagTf | kFlagAc | kFlagRf);
  core.UpdateMode();
  SetStackPointer(core, stack.sp());
  core.rip = target & 0xffff;
  return true;
}

// Reads the gate and makes the checks that both protected-mode formats share.
bool ReadGate(const Delivering& event, bool wide, Descriptor& gate) {
  Core& core = event.core;
  const std::uint32_t bytes = wide ? 16 : 8;
  const std::uint32_t at = event.pending.vector * bytes;
  if (at + bytes - 1 > core.idtr.limit) return event.Refuse(kGp);
  gate.address = core.idtr.base + at;
  if (!wide) gate.address = static_cast<std::uint32_t>(gate.address);
  if (!LoadSystem(core, gate.address, gate.low)) return false;
  if (wide && !LoadSystem(core, gate.address + 8, gate.high)) return false;
  const unsigned type = gate.type();
  const bool is_32 = type == kInterruptGate32 || type == kTrapGate32;
  const bool is_legacy = type == kInterruptGate16 || type == kTrapGate16 || type == kTaskGate;
  if (!gate.is_system() || (!is_32 && (wide || !is_legacy))) return event.Refuse(kGp);
  if (IsFromProgram(event.pending) && gate.dpl() < core.cpl) return event.Refuse(kGp);
  return gate.present() || event.Refuse(kNp);
}

// Fetches the handler's code segment and checks privilege; gives the new CPL.
bool FetchHandler(Core& core, std::uint16_t selector, Descriptor& code, unsigned& cpl) {
  if (IsNull(selector)) return core.Raise(kGp, 0);
  if (!Fetch(core, selector, kGp, code)) return false;
  const bool fits = core.long_mode() ? code.long_mode() && !code.big() : true;
  if (!code.is_code() || code.dpl() > core.cpl || !fits) {
    return core.Raise(kGp, SelectorError(selector));
  }
  cpl = code.is_conforming() ? core.cpl : code.dpl();
  // From virtual-8086 mode the way leads to level 0 only.
  if (core.virtual_8086() && cpl != 0) return core.Raise(kGp, SelectorError(selector));
  return true;
}

std::uint64_t ClearedBy(const Descriptor& gate) { return (gate.type() & 1) == 0 ? kFlagIf : 0; }

bool DeliverLong(const Delivering& event) {
  Core& core = event.core;
  Descriptor gate;
  Descriptor code;
  Segment cs;
  unsigned cpl = 0;
  if (!ReadGate(event, true, gate) || !FetchHandler(core, gate.gate_selector(), code, cpl) ||
      !PrepareCode(core, gate.gate_selector(), code, cpl, cs)) {
    return false;
  }
  const std::uint64_t target = gate.gate_offset();
  if (!IsCanonicalNow(core, target)) return core.Raise(kGp, 0);

  const bool inner = cpl != core.cpl;
  const unsigned ist = (gate.low >> 32) & 7;
  std::uint64_t sp = core.gpr[kRsp];
  if ((inner || ist != 0) && !LoadTssStack64(core, cpl, ist, sp)) return false;
  const Segment ss = inner ? NullStack(cpl) : core.segments[kSs];
  StackWriter stack(core, ss, sp & ~std::uint64_t{15}, true, inner ? By::kProcessor : By::kProgram,
                    0);
  Frame frame{stack, 8};
  frame.Push(core.segments[kSs].selector);
  frame.Push(core.gpr[kRsp]);
  frame.Push(event.flags);
  frame.Push(core.segments[kCs].selector);
  frame.Push(event.return_rip);
  if (event.pending.has_error_code) frame.Push(event.pending.error_code);
  ShadowSwitch shadow;
  const ShadowCall call = {
      .level = cpl, .wide = true, .event = true, .ist = ist, .return_rip = event.return_rip};
  if (!frame.ok || !PrepareShadowCall(core, call, shadow)) return false;

  shadow.Commit(core);
  SetSegment(core, kCs, cs);
  core.segments[kSs] = ss;
  EnterHandler(core, ClearedBy(gate));
  TrackFar(core, cpl);
  core.UpdateMode();
  SetStackPointer(core, stack.sp());
  core.rip = target;
  return true;
}

// The frame of a 16- or 32-bit gate.
bool PushFrame(const Delivering& event, StackWriter& stack, unsigned bytes, bool inner) {
  const Core& core = event.core;
  Frame frame{stack, bytes};
  if (core.virtual_8086()) {
    for (const SegmentName name : {kGs, kFs, kDs, kEs}) frame.Push(core.segments[name].selector);
  }
  if (inner) {
    frame.Push(core.segments[kSs].selector);
    frame.Push(core.gpr[kRsp]);
  }
  frame.Push(event.flags);
  frame.Push(core.segments[kCs].selector);
  frame.Push(event.return_rip);
  if (event.pending.has_error_code) frame.Push(event.pending.error_code);
  return frame.ok;
}

bool DeliverProtected(const Delivering& event) {
  Core& core = event.core;
  Descriptor gate;
  if (!ReadGate(event, false, gate)) return false;
  if (gate.type() == kTaskGate) {
    // The old task's image has the flags that a frame would have.
    const std::uint64_t old_flags = core.rflags;
    core.rflags |= event.flags & kFlagRf;
    const bool done = SwitchTaskByGate(core, gate, TaskSwitchKind::kCall, event.return_rip,
                                       event.pending.has_error_code
                                           ? std::optional<std::uint32_t>(event.pending.error_code)
                                           : std::nullopt);
    if (!done) core.rflags = old_flags;
    return done;
  }
  Descriptor code;
  Segment cs;
  unsigned cpl = 0;
  if (!FetchHandler(core, gate.gate_selector(), code, cpl) ||
      !PrepareCode(core, gate.gate_selector(), code, cpl, cs)) {
    return false;
  }
  const bool inner = cpl != core.cpl;
  Segment ss = core.segments[kSs];
  std::uint64_t sp = core.gpr[kRsp];
  std::uint32_t stack_error = 0;
  if (inner) {
    std::uint16_t selector = 0;
    if (!LoadTssStack(core, cpl, selector, sp) || !PrepareStack(core, selector, cpl, kTs, ss)) {
      return false;
    }
    stack_error = SelectorError(selector);
  }
  const unsigned bytes = gate.type() >= kInterruptGate32 ? 4 : 2;
  StackWriter stack(core, ss, sp, false, inner ? By::kProcessor : By::kProgram, stack_error);
  if (!PushFrame(event, stack, bytes, inner)) return false;
  const std::uint64_t target = gate.gate_offset() & (bytes == 4 ? 0xffff'ffff : 0xffff);
  if (target > cs.limit) return core.Raise(kGp, 0);
  ShadowSwitch shadow;
  const ShadowCall call = {.level = cpl, .event = true, .return_rip = event.return_rip};
  if (!PrepareShadowCall(core, call, shadow)) return false;

  shadow.Commit(core);
  if (core.virtual_8086()) {
    for (const SegmentName name : {kGs, kFs, kDs, kEs}) {
      core.segments[name] = Segment{.selector = 0, .attributes = 0, .limit = 0, .base = 0};
    }
  }
  SetSegment(core, kCs, cs);
  core.segments[kSs] = ss;
  EnterHandler(core, ClearedBy(gate));
  TrackFar(core, cpl);
  core.UpdateMode();
  SetStackPointer(core, stack.sp());
  core.rip = target;
  return true;
}

bool TryDeliver(Core& core, const Pending& pending) {
  const Delivering event{core, pending, IsSoftware(pending) ? pending.return_rip : core.rip,
                         FlagsImage(core, pending)};
  const std::uint64_t from = core.rip;
  const bool done = core.real_mode()   ? DeliverReal(event)
                    : core.long_mode() ? DeliverLong(event)
                                       : DeliverProtected(event);
  if (!done) return false;
  core.interrupt_shadow = core.stack_shadow = core.in_repeat = false;
  core.trap_cancelled = true;
  core.activity = Activity::kActive;
  // Who injects an event has written these where they belong.
  if (IsPageFault(pending) && !pending.injected) core.cr2 = pending.cr2;
  if (pending.vector == kDb && !IsFromProgram(pending) && !pending.injected) {
    // ICEBP has no cause of its own; what it finds waiting it tells.
    if (IsException(pending) || pending.dr6 != 0) {
      core.dr6 = (core.dr6 & ~kDr6Breakpoints) | pending.dr6;
    }
    core.dr7 &= ~kDr7Gd;
    core.debugctl &= ~(kDebugctlLbr | kDebugctlBtf);
  }
  if (core.records_transfers()) core.records.NoteEvent(from, core.rip);
  if (pending.vector == kNmiVector && pending.event_class == EventClass::kInterrupt) {
    core.nmi_blocked = true;
  }
  return true;
}

bool SoftwareInterrupt(Core& core, const Op& op, std::uint8_t vector, bool privileged,
                       bool int_n = false) {
  const Pending pending{.vector = vector,
                        .event_class = EventClass::kSoftwareInterrupt,
                        .privileged_software = privileged,
                        .int_n = int_n,
                        .dr6 = privileged ? core.debug_causes : 0,
                        .return_rip = core.rip};
  core.rip = core.RipOf(&op);
  if (privileged) core.debug_causes = 0;
  if (Deliver(core, pending) == Delivery::kDone) return true;
  core.debug_causes |= pending.dr6;
  return false;
}

// Whether INT `vector` of virtual-8086 mode is the monitor's, by the redirection bitmap below the
// I/O permission bitmap. [intel/vol3] "Interrupt Redirection Bitmap"
bool IsMonitors(Core& core, std::uint8_t vector, bool& monitors) {
  constexpr std::uint32_t kBitmapBase = 0x66, kBitmapBytes = 32;
  const Segment& tr = core.segments[kTr];
  std::uint16_t end = 0;
  if ((tr.type() & 8) == 0 || tr.limit < kBitmapBase + 1) return core.Raise(kGp, 0);
  if (!LoadSystem(core, tr.base + kBitmapBase, end)) return false;
  const std::uint32_t at = end - kBitmapBytes + vector / 8u;
  if (end < kBitmapBytes || at > tr.limit) return core.Raise(kGp, 0);
  std::uint8_t bits = 0;
  if (!LoadSystem(core, tr.base + at, bits)) return false;
  monitors = (bits >> (vector & 7) & 1) != 0;
  return true;
}

// INT of virtual-8086 mode that the program's own handler takes, by the vector table at 0.
bool InterruptVirtual8086(Core& core, std::uint8_t vector) {
  std::uint32_t target = 0;
  if (!LoadSystem(core, vector * 4u, target)) return false;
  const bool is_virtual = !MayDoIo(core);
  StackWriter stack(core, core.segments[kSs], core.gpr[kRsp], false, By::kProgram, 0);
  Frame frame{stack, 2};
  frame.Push(is_virtual ? VirtualFlags(core) : core.Rflags());
  frame.Push(core.segments[kCs].selector);
  frame.Push(core.rip);
  if (!frame.ok) return false;
  SetSegment(core, kCs, RealModeSegment(core, kCs, static_cast<std::uint16_t>(target >> 16)));
  core.rflags &= ~(kFlagTf | (is_virtual ? kFlagVif : kFlagIf));
  core.trap_cancelled = true;
  core.UpdateMode();
  SetStackPointer(core, stack.sp());
  core.rip = target & 0xffff;
  return true;
}

}  // namespace

bool ExceptionLeaves(Core& core, const Pending& pending) {
  const bool exception = IsException(pending) || (IsSoftware(pending) && !pending.int_n);
  if (pending.injected || !exception || (core.guest.exceptions >> (pending.vector & 31) & 1) == 0) {
    return false;
  }
  const std::uint64_t length = IsSoftware(pending) ? pending.return_rip - core.rip : 0;
  return AskUnit(core, {.what = Intercept::kException,
                        .number = pending.vector,
                        .value = pending.vector == kPfVector ? pending.cr2 : pending.dr6,
                        .kind = DeliveredOf(pending).kind,
                        .has_error_code = pending.has_error_code,
                        .error_code = pending.error_code,
                        .instruction_bytes = static_cast<std::uint8_t>(length)});
}

bool ShutdownLeaves(Core& core) {
  return core.guest.intercepts.Has(Intercept::kShutdown) &&
         AskUnit(core, {.what = Intercept::kShutdown});
}

Delivery Deliver(Core& core, const Pending& pending) {
  Pending current = pending;
  const std::uint64_t old_cr2 = core.cr2;
  const std::uint64_t causes = core.debug_causes;  // without those of pushes that come to nothing
  core.delivering.reset();
  for (unsigned tries = 0;; ++tries) {
    core.stop = Stop::kNone;
    if (core.guest.active && ExceptionLeaves(core, current)) {
      core.cr2 = old_cr2;
      return Delivery::kIntercepted;
    }
    core.delivering = current;
    if (TryDeliver(core, current)) {
      core.delivering.reset();
      return Delivery::kDone;
    }
    core.debug_causes = causes;
    if (core.stop == Stop::kLeave) return Delivery::kIntercepted;
    if (core.stop != Stop::kException) return Delivery::kLeave;
    // A processor would be lost here: an exception such as #AC that raises itself is no double
    // fault.
    if (tries == kMaxNested) {
      core.exit = Exit{};
      core.LeaveWith(ExitReason::kBudget);
      return Delivery::kLeave;
    }
    // What the hypervisor wants to hear of comes before what two exceptions make together.
    if (core.guest.active && ExceptionLeaves(core, core.exception)) {
      core.cr2 = old_cr2;
      return Delivery::kIntercepted;
    }
    const std::optional<Pending> next = DuringDelivery(core, current, core.exception);
    if (!next) {
      if (ShutdownLeaves(core)) return Delivery::kIntercepted;
      core.exit = Exit{};
      core.LeaveWith(ExitReason::kShutdown);
      return Delivery::kShutdown;
    }
    current = *next;
  }
}

std::optional<Pending> DuringDelivery(Core& core, const Pending& current, Pending nested) {
  if (current.vector == kDf && IsException(current)) {
    core.activity = Activity::kShutdown;
    return std::nullopt;
  }
  // CR2 tells the last page fault even if it is never delivered as one.
  if (IsPageFault(nested)) core.cr2 = nested.cr2;
  const bool names_selector =
      IsContributory(nested) && nested.vector != kDe && nested.vector != kCp;
  if (names_selector && !IsFromProgram(current)) nested.error_code |= 1;  // EXT
  if (MakesDoubleFault(current, nested)) return Pending{.vector = kDf, .has_error_code = true};
  return nested;
}

bool Int(Core& core, const Op& op) {
  const auto vector = static_cast<std::uint8_t>(op.immediate);
  if (core.virtual_8086()) {
    bool monitors = true;
    if ((core.cr4 & kCr4Vme) != 0 && !IsMonitors(core, vector, monitors)) return false;
    if (!monitors) return InterruptVirtual8086(core, vector);
    if (!MayDoIo(core)) return core.Raise(kGp, 0);
  }
  if (Leaves(core, op, {.what = Intercept::kSoftwareInterrupt, .number = vector})) return false;
  return SoftwareInterrupt(core, op, vector, false, true);
}

bool Int1(Core& core, const Op& op) {
  return !Leaves(core, op, Intercept::kIcebp) && SoftwareInterrupt(core, op, kDb, true);
}
bool Int3(Core& core, const Op& op) { return SoftwareInterrupt(core, op, kBp, false); }

bool Into(Core& core, const Op& op) {
  if (core.code_64()) return core.Raise(kUd);
  if (!core.flags.overflow()) return true;
  return SoftwareInterrupt(core, op, kOfVector, false);
}

}  // namespace pagesaw::cpu
