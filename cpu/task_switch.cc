module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
module pagesaw.cpu.task_switch;

import pagesaw.cpu.branch_tracking;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.intercept;
import pagesaw.cpu.page_directory_pointers;
import pagesaw.cpu.shadow_stack;
import pagesaw.cpu.transfer_stack;

namespace pagesaw::cpu {
namespace {

// Where a TSS keeps what. [intel/vol3] "Task-State Segment (TSS)", "16-Bit Task-State Segment"
struct TssLayout {
  unsigned bytes;       // of a register
  std::uint32_t limit;  // the least that it must have
  std::uint32_t saved;  // first byte and byte behind what a switch away stores
  std::uint32_t end;
  std::uint32_t cr3, eip, eflags, registers, segments, segment_step, segment_count, ldt;
  std::uint32_t trap;  // where bit 0 is the T flag; 0: nowhere
};
constexpr TssLayout kLayout32 = {4,    0x67, 0x20, 0x60, 0x1c, 0x20, 0x24,
                                 0x28, 0x48, 4,    6,    0x60, 0x64};
constexpr TssLayout kLayout16 = {2, 0x2b, 0x0e, 0x2a, 0, 0x0e, 0x10, 0x12, 0x22, 2, 4, 0x2a, 0};

// The registers of a task.
struct Task {
  std::array<std::uint64_t, 8> gpr = {};
  std::array<std::uint16_t, 6> selectors = {};
  std::uint64_t eip = 0;
  std::uint64_t eflags = 0;
  std::uint64_t cr3 = 0;
  std::uint16_t ldt = 0;
  bool traps = false;  // #DB comes before its first instruction
};

// What the new task's registers become, after all checks.
struct Loaded {
  std::array<Segment, 6> segments = {};
  Segment ldt;
  std::array<std::uint64_t, 4> pdptes = {};
  ShadowSwitch shadow;
};

// The new task as the shadow stacks see it.
struct TaskShadow {
  Segment tss;
  TaskSwitchKind kind = TaskSwitchKind::kJump;
  std::uint64_t return_rip = 0;
  // IRET: whether the old shadow stack says where it goes, what it says, and the pointer to go on
  // with.
  bool verifies = false;
  std::uint64_t cs = 0, linear = 0, previous = 0;
  std::uint64_t top = 0;  // where the old shadow stack's token is then
};

unsigned CplOf(const Task& task) {
  return (task.eflags & kFlagVm) != 0 ? 3 : task.selectors[kCs] & 3;
}

const TssLayout& LayoutOf(unsigned type) { return (type & 8) != 0 ? kLayout32 : kLayout16; }

std::uint64_t At(const Segment& tss, std::uint32_t offset) {
  return static_cast<std::uint32_t>(tss.base + offset);
}

bool LoadField(Core& core, const Segment& tss, std::uint32_t offset, unsigned bytes,
               std::uint64_t& value) {
  value = 0;
  return LoadSlow(core, At(tss, offset), &value, bytes, By::kProcessor);
}
bool StoreField(Core& core, const Segment& tss, std::uint32_t offset, unsigned bytes,
                std::uint64_t value) {
  return StoreSlow(core, At(tss, offset), &value, bytes, By::kProcessor);
}

bool LoadTask(Core& core, const Segment& tss, const TssLayout& layout, Task& task) {
  for (unsigned i = 0; i < 8; ++i) {
    const std::uint32_t at = layout.registers + i * layout.bytes;
    if (!LoadField(core, tss, at, layout.bytes, task.gpr[i])) return false;
  }
  for (unsigned i = 0; i < layout.segment_count; ++i) {
    std::uint64_t selector = 0;
    if (!LoadField(core, tss, layout.segments + i * layout.segment_step, 2, selector)) {
      return false;
    }
    task.selectors[i] = static_cast<std::uint16_t>(selector);
  }
  std::uint64_t ldt = 0;
  std::uint64_t trap = 0;
  task.cr3 = core.cr3;
  if (layout.cr3 != 0 && (core.cr0 & kCr0Pg) != 0 &&
      !LoadField(core, tss, layout.cr3, 4, task.cr3)) {
    return false;
  }
  if (!LoadField(core, tss, layout.eip, layout.bytes, task.eip) ||
      !LoadField(core, tss, layout.eflags, layout.bytes, task.eflags) ||
      !LoadField(core, tss, layout.ldt, 2, ldt) ||
      (layout.trap != 0 && !LoadField(core, tss, layout.trap, 2, trap))) {
    return false;
  }
  task.ldt = static_cast<std::uint16_t>(ldt);
  task.traps = (trap & 1) != 0;
  return true;
}

// Stores the running task. IRET leaves NT clear behind.
bool SaveTask(Core& core, const TaskSwitch& to) {
  const Segment& tss = core.segments[kTr];
  const TssLayout& layout = LayoutOf(tss.type());
  std::uint64_t flags = core.Rflags();
  if (to.kind == TaskSwitchKind::kReturn) flags &= ~kFlagNt;
  if (!StoreField(core, tss, layout.eip, layout.bytes, to.return_rip) ||
      !StoreField(core, tss, layout.eflags, layout.bytes, flags)) {
    return false;
  }
  for (unsigned i = 0; i < 8; ++i) {
    const std::uint32_t at = layout.registers + i * layout.bytes;
    if (!StoreField(core, tss, at, layout.bytes, core.gpr[i])) return false;
  }
  for (unsigned i = 0; i < layout.segment_count; ++i) {
    const std::uint32_t at = layout.segments + i * layout.segment_step;
    if (!StoreField(core, tss, at, 2, core.segments[i].selector)) return false;
  }
  return true;
}

// A code segment whose selector's RPL is the new CPL.
bool PrepareTaskCode(Core& core, std::uint16_t selector, Segment& cs) {
  Descriptor code;
  if (IsNull(selector)) return core.Raise(kTs, 0);
  if (!Fetch(core, selector, kTs, code)) return false;
  const unsigned rpl = selector & 3;
  const bool privileges = code.is_conforming() ? code.dpl() <= rpl : code.dpl() == rpl;
  if (!code.is_code() || !privileges) return core.Raise(kTs, SelectorError(selector));
  return PrepareCode(core, selector, code, rpl, cs);
}

bool PrepareTaskData(Core& core, std::uint16_t selector, unsigned cpl, Segment& segment) {
  if (IsNull(selector)) {
    segment = Segment{.selector = selector, .attributes = 0, .limit = 0, .base = 0};
    return true;
  }
  Descriptor descriptor;
  if (!Fetch(core, selector, kTs, descriptor)) return false;
  const bool visible = descriptor.is_conforming() ||
                       (descriptor.dpl() >= cpl && descriptor.dpl() >= (selector & 3u));
  if (!descriptor.is_readable() || !visible) return core.Raise(kTs, SelectorError(selector));
  if (!descriptor.present()) return core.Raise(kNp, SelectorError(selector));
  segment = descriptor.ToSegment(selector);
  return MarkAccessed(core, descriptor, segment);
}

bool PrepareTaskLdt(Core& core, std::uint16_t selector, Segment& ldt) {
  ldt = Segment{.selector = selector, .attributes = 0, .limit = 0, .base = 0};
  if (IsNull(selector)) return true;
  Descriptor descriptor;
  if ((selector & kTi) != 0) return core.Raise(kTs, SelectorError(selector));
  if (!Fetch(core, selector, kTs, descriptor)) return false;
  if (!descriptor.is_system() || descriptor.type() != kLdt || !descriptor.present()) {
    return core.Raise(kTs, SelectorError(selector));
  }
  ldt = descriptor.ToSegment(selector);
  return true;
}

bool PrepareSegments(Core& core, const Task& task, Loaded& loaded) {
  if ((task.eflags & kFlagVm) != 0) {
    for (unsigned i = 0; i < 6; ++i) {
      loaded.segments[i] = Segment{.selector = task.selectors[i],
                                   .attributes = 0xf3,
                                   .limit = 0xffff,
                                   .base = std::uint64_t{task.selectors[i]} << 4};
    }
    return task.eip <= 0xffff || core.Raise(kGp, 0);
  }
  const unsigned cpl = task.selectors[kCs] & 3;
  if (!PrepareTaskCode(core, task.selectors[kCs], loaded.segments[kCs]) ||
      !PrepareStack(core, task.selectors[kSs], cpl, kTs, loaded.segments[kSs])) {
    return false;
  }
  for (const unsigned name : {0u + kEs, 0u + kDs, 0u + kFs, 0u + kGs}) {
    if (!PrepareTaskData(core, task.selectors[name], cpl, loaded.segments[name])) return false;
  }
  return task.eip <= loaded.segments[kCs].limit || core.Raise(kGp, 0);
}

// Takes the shadow stack that the new TSS names, by its token, and pushes on it where a nested task
// returns to. [intel/vol1] "Shadow Stack Usage on Task Switch"
bool TakeTaskShadowStack(Core& core, const Task& task, const TaskShadow& to, Loaded& loaded) {
  const bool virtual_8086 = (task.eflags & kFlagVm) != 0;
  const unsigned cpl = CplOf(task);
  const std::uint32_t error = SelectorError(to.tss.selector);
  if (virtual_8086 && (core.ShadowStackEnabled(3) || core.BranchTrackingEnabled(3))) {
    return core.Raise(kTs, error);
  }
  const std::uint64_t linear = LinearIn(loaded.segments[kCs], false, task.eip);
  if (to.verifies &&
      (to.cs != task.selectors[kCs] || to.linear != linear || (to.previous & 3) != 0)) {
    return RaiseControlProtection(core, ControlProtection::kFarReturn);
  }
  // A call from a program to a kernel pushes nothing: the pointer is kept elsewhere.
  const bool calls = to.kind == TaskSwitchKind::kCall && core.shadow_stack;
  const bool pushes = calls && !(core.cpl == 3 && cpl < 3);
  if (calls && !pushes) {
    loaded.shadow.sets_user_ssp = true;
    loaded.shadow.user_ssp = core.cet.ssp;
  }
  if (!core.ShadowStackEnabled(cpl)) return true;
  loaded.shadow.sets_ssp = true;
  if (to.kind == TaskSwitchKind::kReturn) {
    loaded.shadow.ssp = to.previous;
    return to.previous >> 32 == 0 || core.Raise(kGp, 0);
  }
  constexpr std::uint32_t kSspOffset = 104;
  std::uint64_t ssp = 0;
  if ((to.tss.type() & 8) == 0 || to.tss.limit < kSspOffset + 3) return core.Raise(kTs, error);
  if (!LoadField(core, to.tss, kSspOffset, 4, ssp)) return false;
  bool equal = false;
  if ((ssp & 7) != 0) return core.Raise(kTs, error);
  if (!ExchangeShadow(core, cpl, ssp, ssp, ssp | 1, equal)) return false;
  if (!equal) return core.Raise(kTs, error);
  loaded.shadow.ssp = ssp;
  if (!pushes) return true;
  loaded.shadow.ssp = ssp - 24;
  const std::uint64_t selector = core.segments[kCs].selector;
  return StoreShadow(core, cpl, false, ssp - 8, selector) &&
         StoreShadow(core, cpl, false, ssp - 16, LinearIp(core, to.return_rip)) &&
         StoreShadow(core, cpl, false, ssp - 24, core.cet.ssp);
}

// Reads what the shadow stack of a task that IRET leaves says about the one it returns to, `task`.
bool LeaveTaskShadowStack(Core& core, const Task& task, TaskShadow& to) {
  const std::uint64_t ssp = core.cet.ssp;
  if (to.kind != TaskSwitchKind::kReturn) return true;
  to.top = ssp;
  const bool to_program = core.cpl < 3 && CplOf(task) == 3;
  if (to_program) to.previous = core.cet.privilege_ssp[3];
  if (!core.shadow_stack) return true;
  if ((ssp & 7) != 0) return RaiseControlProtection(core, ControlProtection::kFarReturn);
  if (to_program) return true;
  to.verifies = true;
  to.top = ssp + 24;
  return LoadShadow(core, core.cpl, false, ssp + 16, to.cs) &&
         LoadShadow(core, core.cpl, false, ssp + 8, to.linear) &&
         LoadShadow(core, core.cpl, false, ssp, to.previous);
}

// The new task's segments, seen through its own LDT and tables. What it changes to look is put
// back.
bool Prepare(Core& core, const Task& task, const TaskShadow& shadow, Loaded& loaded) {
  const bool new_cr3 = task.cr3 != core.cr3;
  loaded.pdptes = core.pdptes;
  if (new_cr3 && !LoadPdptes(core, task.cr3, core.cr0, core.cr4, loaded.pdptes)) return false;
  if (!PrepareTaskLdt(core, task.ldt, loaded.ldt)) return false;
  const Segment old_ldt = core.segments[kLdtr];
  const std::uint64_t old_cr3 = core.cr3;
  const std::array<std::uint64_t, 4> old_pdptes = core.pdptes;
  core.segments[kLdtr] = loaded.ldt;
  if (new_cr3 && core.tables.second_stage) {
    core.cr3 = task.cr3;
    core.pdptes = loaded.pdptes;
    core.UpdatePaging();
  }
  const bool done =
      PrepareSegments(core, task, loaded) && TakeTaskShadowStack(core, task, shadow, loaded);
  core.segments[kLdtr] = old_ldt;
  if (new_cr3 && core.tables.second_stage) {
    core.cr3 = old_cr3;
    core.pdptes = old_pdptes;
    core.UpdatePaging();
  }
  return done;
}

void Enter(Core& core, const Task& task, const Loaded& loaded, const TaskSwitch& to) {
  for (unsigned i = 0; i < 8; ++i) core.gpr[i] = task.gpr[i];
  for (unsigned i = 0; i < 6; ++i) {
    SetSegment(core, static_cast<SegmentName>(i), loaded.segments[i]);
  }
  core.segments[kLdtr] = loaded.ldt;
  constexpr std::uint64_t kLoadable = kArithmeticFlags | kFlagTf | kFlagIf | kFlagDf | kFlagIopl |
                                      kFlagNt | kFlagRf | kFlagVm | kFlagAc | kFlagVif | kFlagVip |
                                      kFlagId;
  std::uint64_t flags = task.eflags & kLoadable;
  if (to.kind == TaskSwitchKind::kCall) flags |= kFlagNt;
  core.SetRflags(flags);
  core.cr0 |= kCr0Ts;
  core.dr7 &= ~kDr7Local;
  core.UpdateBreakpoints();
  if (task.traps) core.debug_causes |= kDr6Bt;
  core.rip = task.eip;
  if (task.cr3 != core.cr3) {
    core.cr3 = task.cr3;
    core.pdptes = loaded.pdptes;
    core.UpdatePaging();
    if (!core.tables.second_stage) {
      core.exit = Exit{};
      core.exit.invalidation = {.scope = Invalidation::Scope::kAddressSpace,
                                .pcid = core.paging.pcid()};
      core.LeaveWith(ExitReason::kPagingChanged);
    }
  }
  loaded.shadow.Commit(core);
  if (to.kind != TaskSwitchKind::kReturn && (task.eflags & kFlagVm) == 0) {
    TrackFar(core, task.selectors[kCs] & 3);
  }
  core.UpdateMode();
}

// Finds the new TSS and checks that it may be switched to.
bool FindTss(Core& core, const TaskSwitch& to, Descriptor& descriptor) {
  // A return through a bad link is a fault of the TSS, other ways of the selector's giver.
  const Vector vector = to.kind == TaskSwitchKind::kReturn ? kTs : kGp;
  const std::uint32_t error = SelectorError(to.selector);
  if (IsNull(to.selector) || (to.selector & kTi) != 0) return core.Raise(vector, error);
  if (!Fetch(core, to.selector, vector, descriptor)) return false;
  const unsigned type = descriptor.type();
  const bool busy = type == kTss16Busy || type == kTss32Busy;
  const bool available = type == kTss16 || type == kTss32;
  if (!descriptor.is_system() || !(to.kind == TaskSwitchKind::kReturn ? busy : available)) {
    return core.Raise(vector, error);
  }
  if (!descriptor.present()) return core.Raise(kNp, error);
  if (descriptor.ToSegment(0).limit < LayoutOf(type).limit) return core.Raise(kTs, error);
  return true;
}

// Marks the tasks busy and available in the GDT, and links the new one to the old.
bool MarkTasks(Core& core, const TaskSwitch& to, const Descriptor& descriptor, const Segment& tss) {
  const Segment& old = core.segments[kTr];
  if (to.kind != TaskSwitchKind::kCall) {
    Descriptor old_descriptor;
    if (!Fetch(core, old.selector, kTs, old_descriptor) ||
        !WriteType(core, old_descriptor, old_descriptor.type() & ~2u)) {
      return false;
    }
  } else if (!StoreField(core, tss, 0, 2, old.selector)) {
    return false;
  }
  return to.kind == TaskSwitchKind::kReturn || WriteType(core, descriptor, descriptor.type() | 2);
}

// The stack of the new task takes the error code before the task runs.
bool PushErrorCode(Core& core, Task& task, const Loaded& loaded, unsigned bytes,
                   std::uint32_t error_code) {
  StackWriter stack(core, loaded.segments[kSs], task.gpr[kRsp], false, By::kProcessor, 0);
  if (!stack.Push(error_code, bytes)) return false;
  task.gpr[kRsp] = stack.sp();
  return true;
}

bool LeavesForTaskSwitch(Core& core, const TaskSwitch& to) {
  if (!core.guest.intercepts.Has(Intercept::kTaskSwitch)) return false;
  auto source = TaskSwitchSource::kJump;
  if (to.kind == TaskSwitchKind::kReturn) source = TaskSwitchSource::kIret;
  if (to.kind == TaskSwitchKind::kCall) {
    source = core.delivering ? TaskSwitchSource::kGate : TaskSwitchSource::kCall;
  }
  return AskUnit(core, {.what = Intercept::kTaskSwitch,
                        .number = static_cast<std::uint32_t>(source),
                        .value = to.selector,
                        .has_error_code = to.error_code.has_value(),
                        .error_code = to.error_code.value_or(0)});
}

}  // namespace

bool SwitchTask(Core& core, const TaskSwitch& to) {
  Descriptor descriptor;
  if (!FindTss(core, to, descriptor) || LeavesForTaskSwitch(core, to)) return false;
  Segment tss = descriptor.ToSegment(to.selector);
  const TssLayout& layout = LayoutOf(tss.type());
  const Segment& old = core.segments[kTr];
  if (old.limit < LayoutOf(old.type()).limit) return core.Raise(kTs, SelectorError(old.selector));
  if (!ProbeWrite(core, At(old, 0), LayoutOf(old.type()).limit + 1, By::kProcessor)) return false;
  Task task;
  Loaded loaded;
  TaskShadow shadow = {.tss = tss, .kind = to.kind, .return_rip = to.return_rip};
  if (!LoadTask(core, tss, layout, task) || !LeaveTaskShadowStack(core, task, shadow) ||
      !Prepare(core, task, shadow, loaded)) {
    return false;
  }
  if (to.error_code && !PushErrorCode(core, task, loaded, layout.bytes, *to.error_code)) {
    return false;
  }
  // Giving back a token that is given back already does nothing: it may be done again.
  // [intel/vol3] "Task-State Segment (TSS)": IRET frees it, a jump away does not.
  if (core.shadow_stack && to.kind == TaskSwitchKind::kReturn && !ReleaseToken(core, shadow.top)) {
    return false;
  }
  if (!SaveTask(core, to) || !MarkTasks(core, to, descriptor, tss)) return false;
  tss.attributes |= 2;
  core.segments[kTr] = tss;
  Enter(core, task, loaded, to);
  return true;
}

bool SwitchTaskByGate(Core& core, const Descriptor& gate, TaskSwitchKind kind,
                      std::uint64_t return_rip, std::optional<std::uint32_t> error_code) {
  return SwitchTask(core, TaskSwitch{.selector = gate.gate_selector(),
                                     .kind = kind,
                                     .return_rip = return_rip,
                                     .error_code = error_code});
}

}  // namespace pagesaw::cpu
