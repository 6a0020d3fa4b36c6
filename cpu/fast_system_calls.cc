// SYSCALL, SYSENTER and their returns, of pagesaw.cpu.far_transfer.
module;
#include <cstdint>
module pagesaw.cpu.far_transfer;

import pagesaw.cpu.branch_tracking;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.segmentation;
import pagesaw.cpu.shadow_stack;

namespace pagesaw::cpu {
namespace {

enum class Width : std::uint8_t { k32, k64 };

// The flat segments that these instructions load without a look at the descriptor tables.
Segment FlatCode(std::uint64_t selector, unsigned cpl, Width width) {
  Segment segment;
  segment.selector = static_cast<std::uint16_t>((selector & 0xfffc) | cpl);
  segment.attributes =
      static_cast<std::uint16_t>(0x809b | cpl << 5 | (width == Width::k64 ? 0x2000 : 0x4000));
  segment.limit = 0xffff'ffff;
  return segment;
}
Segment FlatStack(std::uint64_t selector, unsigned cpl) {
  Segment segment;
  segment.selector = static_cast<std::uint16_t>((selector & 0xfffc) | cpl);
  segment.attributes = static_cast<std::uint16_t>(0xc093 | cpl << 5);
  segment.limit = 0xffff'ffff;
  return segment;
}

void Enter(Core& core, const Segment& cs, const Segment& ss, std::uint64_t rip) {
  SetSegment(core, kCs, cs);
  core.segments[kSs] = ss;
  core.UpdateMode();
  core.rip = rip;
}

// What happens to shadow stacks and trackers on the way to level 0, after UpdateMode; `kept`: a
// shadow stack was in use.
void EnterKernel(Core& core, bool kept) {
  EnterShadowStack(core, kept);
  TrackFar(core, 0);
}

}  // namespace

// [intel/vol2] "SYSCALL"; [amd/vol3] "SYSCALL": Intel has it in 64-bit mode alone.
bool Syscall(Core& core, const Op&) {
  const bool in_this_mode =
      core.code_64() || (core.model->amd_rules() && core.protected_mode() && !core.virtual_8086());
  if ((core.efer & kEferSce) == 0 || !in_this_mode || !core.model->Has(Feature::kSyscall)) {
    return core.Raise(kUd);
  }
  const std::uint64_t selector = core.star >> 32;
  const bool kept = core.shadow_stack;
  if (core.long_mode()) {
    const std::uint64_t target = core.code_64() ? core.lstar : core.cstar;
    core.gpr[kRcx] = core.rip;
    core.gpr[kR11] = core.Rflags() & ~kFlagRf;
    core.SetRflags(core.Rflags() & ~core.sfmask & ~kFlagRf);
    core.trap_cancelled = (core.rflags & kFlagTf) == 0;  // TF as masked decides
    Enter(core, FlatCode(selector, 0, Width::k64), FlatStack(selector + 8, 0), target);
    EnterKernel(core, kept);
    return true;
  }
  core.gpr[kRcx] = core.rip;
  core.rflags &= ~(kFlagIf | kFlagRf);
  Enter(core, FlatCode(selector, 0, Width::k32), FlatStack(selector + 8, 0),
        core.star & 0xffff'ffff);
  EnterKernel(core, kept);
  return true;
}

bool Sysret(Core& core, const Op& op) {
  const bool in_this_mode =
      core.code_64() || (core.model->amd_rules() && core.protected_mode() && !core.virtual_8086());
  if ((core.efer & kEferSce) == 0 || !in_this_mode || !core.model->Has(Feature::kSyscall)) {
    return core.Raise(kUd);
  }
  if (core.cpl != 0) return core.Raise(kGp, 0);
  const bool wide = core.long_mode() && op.operand_bytes == 8;
  // Intel checks before it leaves CPL 0; on AMD the first fetch at CPL 3 faults.
  if (wide && !core.model->amd_rules() && !IsCanonicalNow(core, core.gpr[kRcx])) {
    return core.Raise(kGp, 0);
  }
  const std::uint64_t selector = core.star >> 48;
  const std::uint64_t rip = wide ? core.gpr[kRcx] : core.gpr[kRcx] & 0xffff'ffff;
  if (core.long_mode()) {
    constexpr std::uint64_t kKept =
        kArithmeticFlags | kFlagTf | kFlagIf | kFlagDf | kFlagIopl | kFlagNt | kFlagAc | kFlagId;
    core.SetRflags(core.gpr[kR11] & kKept);
    core.trap_forced = (core.rflags & kFlagTf) != 0;  // TF as loaded decides
  } else {
    core.rflags |= kFlagIf;
  }
  Segment ss = FlatStack(selector + 8, 3);
  // AMD leaves the hidden part of SS alone but for the level, which is the CPL.
  if (core.model->amd_rules()) {
    const std::uint16_t kept = static_cast<std::uint16_t>(core.segments[kSs].attributes & ~0x60);
    ss.attributes = static_cast<std::uint16_t>(kept | 0x60);
    ss.base = core.segments[kSs].base;
    ss.limit = core.segments[kSs].limit;
  }
  Enter(core, FlatCode(selector + (wide ? 16 : 0), 3, wide ? Width::k64 : Width::k32), ss, rip);
  LeaveShadowStack(core);
  return true;
}

// [intel/vol2] "SYSENTER"; [amd/vol3] "SYSENTER": AMD has it outside long mode alone.
bool Sysenter(Core& core, const Op&) {
  if (!core.model->Has(Feature::kSep) || (core.model->amd_rules() && core.long_mode())) {
    return core.Raise(kUd);
  }
  if (core.real_mode() || (core.sysenter_cs & 0xfffc) == 0) return core.Raise(kGp, 0);
  const Width width = core.long_mode() ? Width::k64 : Width::k32;
  const std::uint64_t mask = width == Width::k64 ? ~std::uint64_t{0} : 0xffff'ffff;
  const bool kept = core.shadow_stack;
  core.rflags &= ~(kFlagVm | kFlagIf | kFlagRf);
  Enter(core, FlatCode(core.sysenter_cs, 0, width), FlatStack(core.sysenter_cs + 8, 0),
        core.sysenter_eip & mask);
  core.gpr[kRsp] = core.sysenter_esp & mask;
  EnterKernel(core, kept);
  return true;
}

bool Sysexit(Core& core, const Op& op) {
  if (!core.model->Has(Feature::kSep) || (core.model->amd_rules() && core.long_mode())) {
    return core.Raise(kUd);
  }
  if (core.real_mode() || core.cpl != 0 || (core.sysenter_cs & 0xfffc) == 0) {
    return core.Raise(kGp, 0);
  }
  const bool wide = op.operand_bytes == 8;
  const std::uint64_t mask = wide ? ~std::uint64_t{0} : 0xffff'ffff;
  const std::uint64_t rip = core.gpr[kRdx] & mask;
  const std::uint64_t rsp = core.gpr[kRcx] & mask;
  if (wide && (!IsCanonicalNow(core, rip) || !IsCanonicalNow(core, rsp))) {
    return core.Raise(kGp, 0);
  }
  const std::uint64_t selector = core.sysenter_cs + (wide ? 32 : 16);
  Enter(core, FlatCode(selector, 3, wide ? Width::k64 : Width::k32), FlatStack(selector + 8, 3),
        rip);
  core.gpr[kRsp] = rsp;
  LeaveShadowStack(core);
  return true;
}

}  // namespace pagesaw::cpu
