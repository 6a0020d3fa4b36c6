module;
#include <cstdint>
#include <optional>
module pagesaw.cpu.far_transfer;

import pagesaw.cpu.branch_tracking;
import pagesaw.cpu.segmentation;
import pagesaw.cpu.shadow_stack;
import pagesaw.cpu.task_switch;
import pagesaw.cpu.transfer_stack;

namespace pagesaw::cpu {
namespace {

struct FarPointer {
  std::uint16_t selector = 0;
  std::uint64_t offset = 0;
};

FarPointer ImmediatePointer(const Op& op) {
  return {static_cast<std::uint16_t>(op.immediate >> 32), op.immediate & 0xffff'ffff};
}

template <class T>
bool LoadPointer(Core& core, const Op& op, FarPointer& pointer) {
  std::uint64_t linear = 0;
  T offset = 0;
  if (!OperandAddress(core, op, sizeof(T) + 2, false, linear) || !Load(core, linear, offset) ||
      !Load(core, linear + sizeof(T), pointer.selector)) {
    return false;
  }
  pointer.offset = offset;
  return true;
}

bool MemoryPointer(Core& core, const Op& op, FarPointer& pointer) {
  switch (op.operand_bytes) {
    case 2:
      return LoadPointer<std::uint16_t>(core, op, pointer);
    case 4:
      return LoadPointer<std::uint32_t>(core, op, pointer);
    default:
      return LoadPointer<std::uint64_t>(core, op, pointer);
  }
}

bool Unprotected(const Core& core) { return core.real_mode() || core.virtual_8086(); }

// Whether `offset` may be an instruction pointer in `cs`.
bool CheckTarget(Core& core, const Segment& cs, std::uint64_t offset) {
  const bool wide = core.long_mode() && cs.long_mode();
  const bool fits = wide ? IsCanonicalNow(core, offset) : offset <= cs.limit;
  return fits || core.Raise(kGp, 0);
}

void Enter(Core& core, const Segment& cs, std::uint64_t offset) {
  SetSegment(core, kCs, cs);
  core.UpdateMode();
  core.rip = offset;
}

// Pushes CS and RIP as a call does, to the current stack.
bool PushReturn(Core& core, unsigned bytes, StackWriter& stack) {
  return stack.Push(core.segments[kCs].selector, bytes) && stack.Push(core.rip, bytes);
}

// Whether the shadow stack can be used where a jump leads: its pointer keeps its value.
bool ShadowStackFits(Core& core, const Segment& cs) {
  const bool narrow = !core.long_mode() || !cs.long_mode();
  return !core.shadow_stack || !narrow || core.cet.ssp >> 32 == 0 || core.Raise(kGp, 0);
}

StackWriter CurrentStack(Core& core) {
  return StackWriter(core, core.segments[kSs], core.gpr[kRsp], core.stack_64, By::kProgram, 0);
}

bool TransferUnprotected(Core& core, const FarPointer& to, bool call, unsigned bytes) {
  const Segment cs = RealModeSegment(core, kCs, to.selector);
  if (!CheckTarget(core, cs, to.offset)) return false;
  if (call) {
    StackWriter stack = CurrentStack(core);
    if (!PushReturn(core, bytes, stack)) return false;
    SetStackPointer(core, stack.sp());
  }
  Enter(core, cs, to.offset);
  return true;
}

bool JumpTo(Core& core, const Segment& cs, std::uint64_t offset) {
  if (!ShadowStackFits(core, cs)) return false;
  Enter(core, cs, offset);
  TrackFar(core, core.cpl);
  return true;
}

// A call that does not change the CPL.
bool CallSame(Core& core, const Segment& cs, std::uint64_t offset, unsigned bytes) {
  StackWriter stack = CurrentStack(core);
  ShadowSwitch shadow;
  const ShadowCall call = {
      .level = core.cpl, .wide = core.long_mode() && cs.long_mode(), .return_rip = core.rip};
  if (!PushReturn(core, bytes, stack) || !PrepareShadowCall(core, call, shadow)) return false;
  shadow.Commit(core);
  SetStackPointer(core, stack.sp());
  Enter(core, cs, offset);
  TrackFar(core, core.cpl);
  return true;
}

// A code segment named directly. [intel/vol3] "Direct Calls or Jumps to Code Segments"
bool TransferToCode(Core& core, const FarPointer& to, const Descriptor& code, bool call,
                    unsigned bytes) {
  const unsigned rpl = to.selector & 3;
  const bool allowed =
      code.is_conforming() ? code.dpl() <= core.cpl : rpl <= core.cpl && code.dpl() == core.cpl;
  if (!allowed || (core.long_mode() && code.long_mode() && code.big())) {
    return core.Raise(kGp, SelectorError(to.selector));
  }
  Segment cs;
  if (!PrepareCode(core, to.selector, code, core.cpl, cs)) return false;
  // Only an offset of 64 bits reaches beyond 4 GiB.
  if (!CheckTarget(core, cs, to.offset)) return false;
  return call ? CallSame(core, cs, to.offset, bytes) : JumpTo(core, cs, to.offset);
}

// What a call gate leads to.
struct GateTarget {
  Descriptor gate;
  Segment cs;
  std::uint64_t offset = 0;
  unsigned bytes = 4;  // of what is pushed
};

// The old stack's parameters, topmost last, as they are pushed again.
bool CopyParameters(Core& core, const GateTarget& target, StackWriter& stack) {
  const unsigned count = target.gate.gate_count();
  for (unsigned i = count; i > 0; --i) {
    StackReader reader(core, target.bytes);
    reader.Skip(static_cast<std::int64_t>((i - 1) * target.bytes));
    std::uint64_t parameter = 0;
    if (!reader.Pop(parameter) || !stack.Push(parameter, target.bytes)) return false;
  }
  return true;
}

bool CallInner(Core& core, const GateTarget& target, unsigned cpl) {
  const bool wide = core.long_mode();
  Segment ss = NullStack(cpl);
  std::uint64_t sp = 0;
  std::uint32_t error = 0;
  if (wide) {
    if (!LoadTssStack64(core, cpl, 0, sp)) return false;
  } else {
    std::uint16_t selector = 0;
    if (!LoadTssStack(core, cpl, selector, sp) || !PrepareStack(core, selector, cpl, kTs, ss)) {
      return false;
    }
    error = SelectorError(selector);
  }
  StackWriter stack(core, ss, sp, wide, By::kProcessor, error);
  if (!stack.Push(core.segments[kSs].selector, target.bytes) ||
      !stack.Push(core.gpr[kRsp], target.bytes) ||
      (!wide && !CopyParameters(core, target, stack)) || !PushReturn(core, target.bytes, stack) ||
      !CheckTarget(core, target.cs, target.offset)) {
    return false;
  }
  ShadowSwitch shadow;
  const ShadowCall call = {.level = cpl, .wide = wide, .return_rip = core.rip};
  if (!PrepareShadowCall(core, call, shadow)) return false;
  shadow.Commit(core);
  core.segments[kSs] = ss;
  Enter(core, target.cs, target.offset);
  SetStackPointer(core, stack.sp());
  TrackFar(core, cpl);
  return true;
}

bool TransferByGate(Core& core, const FarPointer& to, const Descriptor& gate, bool call) {
  GateTarget target;
  target.gate = gate;
  const std::uint32_t gate_error = SelectorError(to.selector);
  if (gate.dpl() < core.cpl || gate.dpl() < (to.selector & 3u)) return core.Raise(kGp, gate_error);
  if (!gate.present()) return core.Raise(kNp, gate_error);
  if (core.long_mode()) {
    const Lookup found = LookUpHigh(core, to.selector, target.gate);
    if (found == Lookup::kStopped) return false;
    if (found == Lookup::kOutside) return core.Raise(kGp, gate_error);
    if ((target.gate.high >> 40 & 0x1f) != 0) return core.Raise(kGp, gate_error);
    target.bytes = 8;
  } else if (gate.type() == kCallGate16) {
    target.bytes = 2;
  }
  target.offset = target.gate.gate_offset();
  if (target.bytes == 2) target.offset &= 0xffff;

  const std::uint16_t selector = gate.gate_selector();
  Descriptor code;
  if (IsNull(selector)) return core.Raise(kGp, 0);
  if (!Fetch(core, selector, kGp, code)) return false;
  const bool allowed =
      code.is_conforming() || call ? code.dpl() <= core.cpl : code.dpl() == core.cpl;
  if (!code.is_code() || !allowed || (core.long_mode() && (!code.long_mode() || code.big()))) {
    return core.Raise(kGp, SelectorError(selector));
  }
  const bool inner = call && !code.is_conforming() && code.dpl() < core.cpl;
  const unsigned cpl = inner ? code.dpl() : core.cpl;
  if (!PrepareCode(core, selector, code, cpl, target.cs)) return false;
  if (inner) return CallInner(core, target, cpl);
  if (!CheckTarget(core, target.cs, target.offset)) return false;
  return call ? CallSame(core, target.cs, target.offset, target.bytes)
              : JumpTo(core, target.cs, target.offset);
}

bool TransferToSystem(Core& core, const FarPointer& to, const Descriptor& descriptor, bool call) {
  const unsigned type = descriptor.type();
  if (type == kCallGate32 || (type == kCallGate16 && !core.long_mode())) {
    return TransferByGate(core, to, descriptor, call);
  }
  const bool task_gate = type == kTaskGate;
  const bool tss = type == kTss16 || type == kTss32;
  const bool visible = descriptor.dpl() >= core.cpl && descriptor.dpl() >= (to.selector & 3u);
  if (core.long_mode() || !(task_gate || tss) || !visible) {
    return core.Raise(kGp, SelectorError(to.selector));
  }
  if (!descriptor.present()) return core.Raise(kNp, SelectorError(to.selector));
  const TaskSwitchKind kind = call ? TaskSwitchKind::kCall : TaskSwitchKind::kJump;
  if (task_gate) return SwitchTaskByGate(core, descriptor, kind, core.rip, std::nullopt);
  return SwitchTask(
      core,
      TaskSwitch{.selector = to.selector, .kind = kind, .return_rip = core.rip, .error_code = {}});
}

bool Transfer(Core& core, const FarPointer& to, bool call, unsigned bytes) {
  if (Unprotected(core)) return TransferUnprotected(core, to, call, bytes);
  if (IsNull(to.selector)) return core.Raise(kGp, 0);
  Descriptor descriptor;
  if (!Fetch(core, to.selector, kGp, descriptor)) return false;
  if (descriptor.is_system()) return TransferToSystem(core, to, descriptor, call);
  if (!descriptor.is_code()) return core.Raise(kGp, SelectorError(to.selector));
  return TransferToCode(core, to, descriptor, call, bytes);
}

bool ReturnUnprotected(Core& core, const Op& op) {
  StackReader stack(core, op.operand_bytes);
  std::uint64_t offset = 0;
  std::uint64_t selector = 0;
  if (!stack.Pop(offset) || !stack.Pop(selector)) return false;
  const Segment cs = RealModeSegment(core, kCs, static_cast<std::uint16_t>(selector));
  if (!CheckTarget(core, cs, offset)) return false;
  MoveStack(core, stack.offset() + static_cast<std::int64_t>(op.immediate));
  Enter(core, cs, offset);
  return true;
}

}  // namespace

bool FarJump(Core& core, const Op& op) {
  return Transfer(core, ImmediatePointer(op), false, op.operand_bytes);
}
bool FarCall(Core& core, const Op& op) {
  return Transfer(core, ImmediatePointer(op), true, op.operand_bytes);
}
bool FarJumpIndirect(Core& core, const Op& op) {
  FarPointer to;
  return MemoryPointer(core, op, to) && Transfer(core, to, false, op.operand_bytes);
}
bool FarCallIndirect(Core& core, const Op& op) {
  FarPointer to;
  return MemoryPointer(core, op, to) && Transfer(core, to, true, op.operand_bytes);
}

bool FarReturn(Core& core, const Op& op) {
  if (Unprotected(core)) return ReturnUnprotected(core, op);
  StackReader stack(core, op.operand_bytes);
  const auto extra = static_cast<std::int64_t>(op.immediate);
  std::uint64_t offset = 0;
  std::uint64_t popped = 0;
  if (!stack.Pop(offset) || !stack.Pop(popped)) return false;
  const auto selector = static_cast<std::uint16_t>(popped);
  const unsigned cpl = selector & 3;
  Descriptor code;
  Segment cs;
  if (!FetchReturnCode(core, selector, code) || !PrepareCode(core, selector, code, cpl, cs)) {
    return false;
  }
  stack.Skip(extra);
  const bool to_64 = core.long_mode() && cs.long_mode();
  ShadowSwitch shadow;
  const ShadowReturn to = {
      .level = cpl, .wide = to_64, .selector = cs.selector, .linear = LinearIn(cs, to_64, offset)};
  if (cpl == core.cpl) {
    if (!CheckTarget(core, cs, offset) || !PrepareShadowReturn(core, to, shadow)) return false;
    shadow.Commit(core);
    MoveStack(core, stack.offset());
    Enter(core, cs, offset);
    return true;
  }
  std::uint64_t sp = 0;
  std::uint64_t ss_selector = 0;
  Segment ss;
  if (!stack.Pop(sp) || !stack.Pop(ss_selector) ||
      !PrepareReturnStack(core, static_cast<std::uint16_t>(ss_selector), cpl, to_64, ss) ||
      !CheckTarget(core, cs, offset) || !PrepareShadowReturn(core, to, shadow)) {
    return false;
  }
  shadow.Commit(core);
  core.segments[kSs] = ss;
  Enter(core, cs, offset);
  SetStackPointer(core, sp);
  MoveStack(core, extra);
  DropInnerSegments(core, cpl);
  return true;
}

}  // namespace pagesaw::cpu
