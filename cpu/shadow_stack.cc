module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
module pagesaw.cpu.shadow_stack;

import pagesaw.cpu.segmentation;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kBusy = 1;    // in a supervisor's token
constexpr unsigned kFrameBytes = 24;  // CS, linear instruction pointer and SSP of a far transfer

By ByLevel(unsigned level) {
  return level == 3 ? By::kUserShadowStack : By::kSupervisorShadowStack;
}

// Whether `ssp` can be the pointer of a shadow stack of code that is 64-bit or not.
bool FitsMode(const Core& core, bool wide, std::uint64_t ssp) {
  return wide ? IsCanonicalNow(core, ssp) : ssp >> 32 == 0;
}

// What IA32_PL3_SSP takes of a pointer: bits above the widest linear address repeat the one below.
std::uint64_t Adjusted(const Core& core, std::uint64_t ssp) {
  if (!core.long_mode()) return ssp;
  const unsigned unused = 64 - core.model->linear_bits();
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(ssp << unused) >> unused);
}

// The frame below `top`, which is aligned to 8.
bool PushFrame(Core& core, const ShadowCall& call, std::uint64_t top) {
  const std::uint64_t selector = core.segments[kCs].selector;
  return StoreShadow(core, call.level, call.wide, top - 8, selector) &&
         StoreShadow(core, call.level, call.wide, top - 16, LinearIp(core, call.return_rip)) &&
         StoreShadow(core, call.level, call.wide, top - kFrameBytes, core.cet.ssp);
}

// The entry of the table of shadow stacks that an IST gate names.
bool LoadInterruptSsp(Core& core, unsigned ist, std::uint64_t& ssp) {
  const std::uint64_t at = core.cet.interrupt_ssp_table + std::uint64_t{8} * ist;
  if (!IsCanonicalNow(core, at)) return core.Raise(kGp, 0);
  return LoadSystem(core, at, ssp);
}

// Switches to the supervisor's shadow stack whose token is at `ssp`, to push a frame if `frame`.
bool Switch(Core& core, const ShadowCall& call, std::uint64_t ssp, bool frame) {
  if ((ssp & 7) != 0 || !FitsMode(core, call.wide, ssp)) return core.Raise(kGp, 0);
  // [intel/vol1] "Supervisor Shadow Stack Token": token and frame lie in 32 aligned bytes.
  constexpr std::uint64_t kLine = ~std::uint64_t{31};
  if (frame && !core.model->amd_rules() && (ssp & kLine) != ((ssp - kFrameBytes) & kLine)) {
    return core.Raise(kGp, 0);
  }
  // A token that has been taken stays so whatever faults afterwards.
  std::uint64_t below = ssp - kFrameBytes;
  if (frame && (!ShadowStackAddress(core, call.wide, below) ||
                !ProbeWrite(core, below, kFrameBytes, ByLevel(call.level)))) {
    return false;
  }
  bool refused = false;
  if (!AcquireToken(core, ssp, refused)) return false;
  return !refused || core.Raise(kGp, 0);
}

bool CallInner(Core& core, const ShadowCall& call, ShadowSwitch& result) {
  if (core.shadow_stack && core.cpl == 3) {
    result.sets_user_ssp = true;
    result.user_ssp = Adjusted(core, core.cet.ssp);
  }
  if (!core.ShadowStackEnabled(call.level)) return true;
  std::uint64_t ssp = core.cet.privilege_ssp[call.level];
  if (call.ist != 0 && !LoadInterruptSsp(core, call.ist, ssp)) return false;
  const bool frame = core.cpl != 3;
  if (!Switch(core, call, ssp, frame)) return false;
  result.sets_ssp = true;
  result.ssp = ssp;
  if (!frame) return true;
  result.ssp -= kFrameBytes;
  return PushFrame(core, call, ssp);
}

bool CallSame(Core& core, const ShadowCall& call, ShadowSwitch& result) {
  if (!core.shadow_stack) return true;
  std::uint64_t ssp = core.cet.ssp;
  if (call.ist != 0) {
    if (!LoadInterruptSsp(core, call.ist, ssp) || !Switch(core, call, ssp, true)) return false;
  } else if (!call.event && !call.wide && ssp >> 32 != 0) {
    return core.Raise(kGp, 0);
  }
  // What lies between the frame and a pointer that is not aligned is cleared.
  if ((ssp & 7) != 0 && !StoreShadow<std::uint32_t>(core, call.level, call.wide, ssp - 4, 0))
    return false;
  const std::uint64_t top = ssp & ~std::uint64_t{7};
  result.sets_ssp = true;
  result.ssp = top - kFrameBytes;
  return PushFrame(core, call, top);
}

// The frame that a far transfer pushed, checked against where this one goes.
bool PopFrame(Core& core, const ShadowReturn& to, std::uint64_t& previous) {
  std::uint64_t cs = 0;
  std::uint64_t linear = 0;
  const std::uint64_t ssp = core.cet.ssp;
  const bool wide = core.code_64();
  if (!LoadShadow(core, core.cpl, wide, ssp + 16, cs) ||
      !LoadShadow(core, core.cpl, wide, ssp + 8, linear) ||
      !LoadShadow(core, core.cpl, wide, ssp, previous)) {
    return false;
  }
  const bool matches = cs == to.selector && linear == to.linear && (previous & 3) == 0;
  return matches || RaiseControlProtection(core, ControlProtection::kFarReturn);
}

// Shadow-stack instructions other than RDSSP. [intel/vol2] "INCSSPD"
bool Enabled(Core& core) { return core.shadow_stack || core.Raise(kUd); }

// Those of supervisors. [intel/vol2] "SETSSBSY"
bool SupervisorEnabled(Core& core) {
  if ((core.cr4 & kCr4Cet) == 0 || (core.cet.supervisor & kCetShadowStack) == 0 ||
      core.real_mode() || core.virtual_8086()) {
    return core.Raise(kUd);
  }
  return core.cpl == 0 || core.Raise(kGp, 0);
}

// The memory operand: 8 bytes aligned to 8 for a token, or what WRSS writes.
bool Operand(Core& core, const Op& op, unsigned bytes, std::uint64_t& linear) {
  return OperandAddress(core, op, bytes, true, linear) &&
         ((linear & (bytes - 1)) == 0 || core.Raise(kGp, 0));
}

bool StoreOperandToShadow(Core& core, const Op& op, unsigned level) {
  std::uint64_t linear = 0;
  if (!Operand(core, op, op.operand_bytes, linear)) return false;
  const std::uint64_t value = core.Read<std::uint64_t>(op.first);
  return StoreSlow(core, linear, &value, op.operand_bytes, ByLevel(level));
}

}  // namespace

bool RaiseControlProtection(Core& core, ControlProtection cause) {
  return core.Raise(kCp, static_cast<std::uint32_t>(cause));
}

bool ShadowStackAddress(Core& core, bool wide, std::uint64_t& address) {
  if (!wide) address = static_cast<std::uint32_t>(address);
  return !wide || IsCanonicalNow(core, address) || core.Raise(kGp, 0);
}

std::uint64_t LinearIn(const Segment& cs, bool wide, std::uint64_t rip) {
  return wide ? rip : static_cast<std::uint32_t>(cs.base + rip);
}

std::uint64_t LinearIp(const Core& core, std::uint64_t rip) {
  return LinearIn(core.segments[kCs], core.code_64(), rip);
}

bool ExchangeShadow(Core& core, unsigned level, std::uint64_t address, std::uint64_t expected,
                    std::uint64_t desired, bool& equal) {
  std::byte* host = nullptr;
  if (!HostForModify(core, address, 8, host, ByLevel(level))) return false;
  if (host != nullptr) {
    std::atomic_ref word(*reinterpret_cast<std::uint64_t*>(host));
    equal = word.compare_exchange_strong(expected, desired);
    return true;
  }
  std::uint64_t found = 0;
  if (!LoadSlow(core, address, &found, 8, ByLevel(level))) return false;
  equal = found == expected;
  return !equal || StoreSlow(core, address, &desired, 8, ByLevel(level));
}

void ShadowSwitch::Commit(Core& core) const {
  if (sets_user_ssp) core.cet.privilege_ssp[3] = user_ssp;
  if (sets_ssp) core.cet.ssp = ssp;
}

bool AcquireToken(Core& core, std::uint64_t ssp, bool& refused) {
  bool equal = false;
  if (!ExchangeShadow(core, 0, ssp, ssp, ssp | kBusy, equal)) return false;
  refused = !equal;
  return true;
}

bool ReleaseToken(Core& core, std::uint64_t ssp) {
  bool equal = false;
  return ShadowStackAddress(core, core.code_64(), ssp) &&
         ExchangeShadow(core, 0, ssp, ssp | kBusy, ssp, equal);
}

bool PrepareShadowCall(Core& core, const ShadowCall& call, ShadowSwitch& result) {
  return call.level != core.cpl ? CallInner(core, call, result) : CallSame(core, call, result);
}

// [intel/vol2] "IRET", "RET"
bool PrepareShadowReturn(Core& core, const ShadowReturn& to, ShadowSwitch& result) {
  const bool outer = to.level != core.cpl;
  std::uint64_t top = core.cet.ssp;
  std::uint64_t next = 0;
  if (core.shadow_stack) {
    if ((top & 7) != 0) return RaiseControlProtection(core, ControlProtection::kFarReturn);
    if (!outer || to.level != 3) {
      if (!PopFrame(core, to, next)) return false;
      top += kFrameBytes;
    }
  }
  if (outer && to.level == 3) next = core.cet.privilege_ssp[3];
  const bool enabled = outer ? core.ShadowStackEnabled(to.level) : core.shadow_stack;
  if (enabled) {
    if (!FitsMode(core, to.wide, next)) return core.Raise(kGp, 0);
    result.sets_ssp = true;
    result.ssp = next;
  }
  // An IRET to the same level leaves a shadow stack of its own if the event was given one.
  const bool leaves = outer || (to.event && core.long_mode() && next != top);
  return !core.shadow_stack || !leaves || ReleaseToken(core, top);
}

void EnterShadowStack(Core& core, bool kept) {
  if (kept) core.cet.privilege_ssp[3] = Adjusted(core, core.cet.ssp);
  if (core.ShadowStackEnabled(0)) core.cet.ssp = 0;
}

void LeaveShadowStack(Core& core) {
  if (core.ShadowStackEnabled(3)) core.cet.ssp = core.cet.privilege_ssp[3];
}

// Touches the first and the last element that it frees. [intel/vol2] "INCSSPD"
bool Incssp(Core& core, const Op& op) {
  if (!Enabled(core)) return false;
  const std::uint64_t count = core.Read<std::uint64_t>(op.first) & 0xff;
  const std::uint64_t last = count == 0 ? 0 : count - 1;
  const std::uint64_t bytes = op.operand_bytes;
  std::uint64_t element = 0;
  for (const std::uint64_t at : {std::uint64_t{0}, last * bytes}) {
    std::uint64_t address = core.cet.ssp + at;
    if (!ShadowStackAddress(core, core.code_64(), address) ||
        !LoadSlow(core, address, &element, op.operand_bytes, ByLevel(core.cpl))) {
      return false;
    }
  }
  core.cet.ssp += count * bytes;
  if (!core.code_64()) core.cet.ssp = static_cast<std::uint32_t>(core.cet.ssp);
  return true;
}

bool Rdssp(Core& core, const Op& op) {
  if (!core.shadow_stack) return true;
  if (op.operand_bytes == 8) {
    core.Write(op.first, core.cet.ssp);
  } else {
    core.Write(op.first, static_cast<std::uint32_t>(core.cet.ssp));
  }
  return true;
}

bool SavePrevSsp(Core& core, const Op&) {
  if (!Enabled(core)) return false;
  const bool wide = core.code_64();
  const unsigned level = core.cpl;
  if ((core.cet.ssp & 7) != 0) return core.Raise(kGp, 0);
  std::uint64_t token = 0;
  if (!LoadShadow(core, level, wide, core.cet.ssp, token)) return false;
  std::uint64_t next = core.cet.ssp + 8;
  if (core.flags.carry()) {
    // A hole that kept the token aligned, which 64-bit code never leaves.
    std::uint32_t hole = 0;
    if (wide) return core.Raise(kGp, 0);
    if (!LoadShadow(core, level, wide, next, hole)) return false;
    if (hole != 0) return core.Raise(kGp, 0);
    next += 4;
  }
  if ((token & 2) == 0 || (!wide && token >> 32 != 0)) return core.Raise(kGp, 0);
  const std::uint64_t old = token & ~std::uint64_t{3};
  if ((old & 7) != 0 && !StoreShadow<std::uint32_t>(core, level, wide, old - 4, 0)) return false;
  const std::uint64_t top = old & ~std::uint64_t{7};
  if (!StoreShadow(core, level, wide, top - 8, old | (wide ? 1u : 0))) return false;
  core.cet.ssp = wide ? next : static_cast<std::uint32_t>(next);
  return true;
}

bool RestoreSsp(Core& core, const Op& op) {
  if (!Enabled(core)) return false;
  std::uint64_t linear = 0;
  if (!Operand(core, op, 8, linear)) return false;
  const bool wide = core.code_64();
  std::uint64_t token = 0;
  // The page must be writable even where the token turns out to be bad.
  if (!ProbeWrite(core, linear, 8, ByLevel(core.cpl)) ||
      !LoadSlow(core, linear, &token, 8, ByLevel(core.cpl))) {
    return false;
  }
  const std::uint64_t base = ((token & ~std::uint64_t{1}) - 8) & ~std::uint64_t{7};
  const bool good = (token & 3) == (wide ? 1u : 0u) && (wide || token >> 32 == 0) && base == linear;
  bool equal = false;
  const std::uint64_t previous = core.cet.ssp | (wide ? 1 : 0) | 2;
  if (good && !ExchangeShadow(core, core.cpl, linear, token, previous, equal)) return false;
  if (!equal) return RaiseControlProtection(core, ControlProtection::kRestore);
  core.cet.ssp = linear;
  core.flags.SetEager((token & 4) != 0 ? kFlagCf : 0);
  return true;
}

bool WriteShadowStack(Core& core, const Op& op) {
  if (!Enabled(core)) return false;
  if ((core.CetControls(core.cpl) & kCetWriteShadowStack) == 0) return core.Raise(kUd);
  return StoreOperandToShadow(core, op, core.cpl);
}

bool WriteUserShadowStack(Core& core, const Op& op) {
  if ((core.cr4 & kCr4Cet) == 0 || core.real_mode() || core.virtual_8086()) return core.Raise(kUd);
  if (core.cpl != 0) return core.Raise(kGp, 0);
  return StoreOperandToShadow(core, op, 3);
}

bool SetSsBusy(Core& core, const Op&) {
  if (!SupervisorEnabled(core)) return false;
  std::uint64_t ssp = core.cet.privilege_ssp[0];
  if ((ssp & 7) != 0) return core.Raise(kGp, 0);
  bool refused = false;
  if (!ShadowStackAddress(core, core.code_64(), ssp) || !AcquireToken(core, ssp, refused)) {
    return false;
  }
  if (refused) return RaiseControlProtection(core, ControlProtection::kSetBusy);
  core.cet.ssp = ssp;
  return true;
}

bool ClearSsBusy(Core& core, const Op& op) {
  if (!SupervisorEnabled(core)) return false;
  std::uint64_t linear = 0;
  bool equal = false;
  if (!Operand(core, op, 8, linear) ||
      !ExchangeShadow(core, 0, linear, linear | kBusy, linear, equal)) {
    return false;
  }
  core.flags.SetEager(equal ? 0 : kFlagCf);
  core.cet.ssp = 0;
  return true;
}

}  // namespace pagesaw::cpu
