module;
#include <unistd.h>
#include <chrono>
#include <cstdint>
#include <optional>
module pagesaw.cpu.msr;

import pagesaw.cpu.cet_registers;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.control_registers;
import pagesaw.cpu.intercept;
import pagesaw.cpu.monitor;
import pagesaw.cpu.segmentation;

namespace pagesaw::cpu {
namespace {

enum class Result : std::uint8_t { kDone, kRefused, kNotOurs };

std::uint64_t ClockNow(const Core& core) {
  if (core.virtual_time != nullptr) {
    return core.virtual_time->NsAt(core.retired +
                                   static_cast<std::uint64_t>(core.run_budget - core.budget));
  }
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                        std::chrono::steady_clock::now().time_since_epoch())
                                        .count());
}

constexpr std::uint64_t kApicBaseX2apic = 1u << 10;

// Nothing is executed ahead of time, so that nothing leaks: neither from the kernel's memory, the
// first-level cache, stores passed by loads, buffers of all kinds, nor from what predicts branches,
// whose predictions IBRS restricts once and for all. [intel/vol4] "IA32_ARCH_CAPABILITIES"
constexpr std::uint64_t kArchCapabilities = 0x4000'0000'0d10'e17b;
constexpr std::uint64_t kPredictionBarrier = 1;
bool HasPredictionBarrier(const CpuModel& model) {
  return model.Has(Feature::kSpecCtrl) || model.Has(Feature::kIbpb);
}

std::uint64_t MiscEnable(const Core& core) {
  return core.plain_msrs.Read(kMsrMiscEnable).value_or(0);
}

bool IsAmdPerformanceCounter(const Core& core, std::uint32_t index) {
  return core.model->amd_rules() && index >= kMsrAmdPerfFirst && index <= kMsrAmdPerfLast;
}

// Registers that need nothing but themselves.
Result ReadKept(const Core& core, std::uint32_t index, std::uint64_t& value) {
  if (MemoryTypeRanges::Owns(index)) {
    value = core.memory_type_ranges.Read(index);
    return core.model->Has(Feature::kMtrr) ? Result::kDone : Result::kRefused;
  }
  if (MachineCheckBanks::Owns(index)) {
    value = core.machine_check.Read(index);
    return core.model->Has(Feature::kMca) ? Result::kDone : Result::kRefused;
  }
  const std::optional<std::uint64_t> plain = core.plain_msrs.Read(index);
  value = plain.value_or(0);
  return plain ? Result::kDone : Result::kNotOurs;
}

Result WriteKept(Core& core, std::uint32_t index, std::uint64_t value) {
  bool done = false;
  if (MemoryTypeRanges::Owns(index)) {
    done = core.model->Has(Feature::kMtrr) &&
           core.memory_type_ranges.Write(index, value, core.model->physical_bits());
  } else if (MachineCheckBanks::Owns(index)) {
    const std::uint64_t hwcr = core.plain_msrs.Read(kMsrHwcr).value_or(0);
    done = core.model->Has(Feature::kMca) &&
           core.machine_check.Write(index, value, (hwcr & kHwcrMcStatusWritable) != 0);
  } else if (core.plain_msrs.Read(index)) {
    done = core.plain_msrs.Write(index, value);
  } else {
    return Result::kNotOurs;
  }
  return done ? Result::kDone : Result::kRefused;
}

// MSRs of the virtualization extension.
Result ResultOf(VirtUnit::MsrAnswer answer) {
  switch (answer) {
    case VirtUnit::MsrAnswer::kDone:
      return Result::kDone;
    case VirtUnit::MsrAnswer::kRefused:
      return Result::kRefused;
    case VirtUnit::MsrAnswer::kUnknown:
      return Result::kNotOurs;
  }
  return Result::kRefused;
}
Result ReadOfUnit(const Core& core, std::uint32_t index, std::uint64_t& value) {
  return core.unit != nullptr ? ResultOf(core.unit->ReadMsr(*core.unit_host, index, value))
                              : Result::kNotOurs;
}
Result WriteOfUnit(const Core& core, std::uint32_t index, std::uint64_t value) {
  if (core.unit == nullptr) return Result::kNotOurs;
  return ResultOf(core.unit->WriteMsr(*core.unit_host, index, value));
}

bool HasCet(const CpuModel& model) {
  return model.Has(Feature::kShstk) || model.Has(Feature::kIbt);
}

Result ReadOwn(Core& core, std::uint32_t index, std::uint64_t& value) {
  const CpuModel& model = *core.model;
  const auto gated = [&value](bool has, std::uint64_t held) {
    value = held;
    return has ? Result::kDone : Result::kRefused;
  };
  switch (index) {
    case kMsrTsc:
      return gated(model.Has(Feature::kTsc), ReadTsc(core));
    case kMsrTscAdjust:
      return model.Has(Feature::kTscAdjust) ? Result::kNotOurs : Result::kRefused;
    case kMsrTscDeadline:
      return model.Has(Feature::kTscDeadline) ? Result::kNotOurs : Result::kRefused;
    case kMsrSysenterCs:
      return gated(model.Has(Feature::kSep), core.sysenter_cs);
    case kMsrSysenterEsp:
      return gated(model.Has(Feature::kSep), core.sysenter_esp);
    case kMsrSysenterEip:
      return gated(model.Has(Feature::kSep), core.sysenter_eip);
    case kMsrDebugctl:
      return gated(true, core.debugctl);
    case kMsrLastBranchFrom:
      return gated(model.amd_rules(), core.records.last.from);
    case kMsrLastBranchTo:
      return gated(model.amd_rules(), core.records.last.to);
    case kMsrLastIntFrom:
      return gated(model.amd_rules(), core.records.before_event.from);
    case kMsrLastIntTo:
      return gated(model.amd_rules(), core.records.before_event.to);
    case kMsrPat:
      return gated(model.Has(Feature::kPat), core.pat);
    case kMsrUserCet:
      return gated(HasCet(model), core.cet.user);
    case kMsrSupervisorCet:
      return gated(HasCet(model), core.cet.supervisor);
    case kMsrPl0Ssp:
    case kMsrPl1Ssp:
    case kMsrPl2Ssp:
    case kMsrPl3Ssp:
      return gated(model.Has(Feature::kShstk), core.cet.privilege_ssp[index - kMsrPl0Ssp]);
    case kMsrInterruptSspTable:
      return gated(model.Has(Feature::kShstk), core.cet.interrupt_ssp_table);
    case kMsrPkrs:
      return gated(model.Has(Feature::kPks), core.pkrs);
    case kMsrXss:
      return gated(model.Has(Feature::kXsaves), core.xss);
    case kMsrEfer:
      return gated(model.Has(Feature::kLm) || model.Has(Feature::kNx), core.efer);
    case kMsrStar:
      return gated(model.Has(Feature::kSyscall), core.star);
    case kMsrLstar:
      return gated(model.Has(Feature::kLm), core.lstar);
    case kMsrCstar:
      return gated(model.Has(Feature::kLm), core.cstar);
    case kMsrSfmask:
      return gated(model.Has(Feature::kSyscall), core.sfmask);
    case kMsrFsBase:
      return gated(model.Has(Feature::kLm), core.segments[kFs].base);
    case kMsrGsBase:
      return gated(model.Has(Feature::kLm), core.segments[kGs].base);
    case kMsrKernelGsBase:
      return gated(model.Has(Feature::kLm), core.kernel_gs_base);
    case kMsrTscAux:
      return gated(model.Has(Feature::kRdtscp) || model.Has(Feature::kRdpid), core.tsc_aux);
    case kMsrMicrocodeUpdate:
    case kMsrPredictionCommand:
      return Result::kRefused;
    case kMsrSpeculationControl:
      return model.Has(Feature::kSpecCtrl) ? ReadKept(core, index, value) : Result::kRefused;
    case kMsrArchCapabilities:
      return gated(model.Has(Feature::kArchCapabilities), kArchCapabilities);
    default:
      if (IsAmdPerformanceCounter(core, index)) return gated(true, 0);
      if (const Result own = ReadOfUnit(core, index, value); own != Result::kNotOurs) return own;
      return ReadKept(core, index, value);
  }
}

// [intel/vol3] "Extended Feature Enable Register"
bool SetEfer(Core& core, std::uint64_t value) {
  std::uint64_t allowed = AllowedEfer(*core.model);
  if ((MiscEnable(core) & kMiscEnableNoExecuteDisable) != 0) allowed &= ~kEferNxe;
  if ((value & ~allowed) != 0) return false;
  if ((value & ~core.efer & kEferSvme) != 0 && core.unit != nullptr && !core.unit->MayBeEnabled()) {
    return false;
  }
  value = (value & ~kEferLma) | (core.efer & kEferLma);
  const std::uint64_t changed = core.efer ^ value;
  if ((changed & kEferLme) != 0 && (core.cr0 & kCr0Pg) != 0) return false;
  core.efer = value;
  if ((changed & (kEferNxe | kEferLme)) != 0) {
    PagingChanged(core, Invalidation::Scope::kAddressSpace);
  }
  core.UpdateMode();
  return true;
}

bool SetCet(Core& core, std::uint64_t& controls, std::uint64_t value) {
  if (!HasCet(*core.model) || !IsLegalCet(core, value)) return false;
  controls = value;
  core.UpdateMode();
  return true;
}

// Intel's bits besides LBR, which records nothing there, and BTF belong to traces that nothing
// enumerates.
std::uint64_t LegalDebugctl(const CpuModel& model) {
  return kDebugctlLbr | kDebugctlBtf | (model.amd_rules() ? kDebugctlPins : 0);
}

Result WriteOwn(Core& core, std::uint32_t index, std::uint64_t value) {
  const CpuModel& model = *core.model;
  const auto set = [value](std::uint64_t& held, bool legal) {
    if (!legal) return Result::kRefused;
    held = value;
    return Result::kDone;
  };
  const auto ignore = [](bool legal) { return legal ? Result::kDone : Result::kRefused; };
  const auto canonical = [&core, value](Feature feature) {
    return core.model->Has(feature) && IsCanonicalBase(core, value);
  };
  switch (index) {
    case kMsrTsc:
      // The machine sets the offset: its timers follow the counter.
      return model.Has(Feature::kTsc) ? Result::kNotOurs : Result::kRefused;
    case kMsrTscAdjust:
      return model.Has(Feature::kTscAdjust) ? Result::kNotOurs : Result::kRefused;
    case kMsrTscDeadline:
      return model.Has(Feature::kTscDeadline) ? Result::kNotOurs : Result::kRefused;
    case kMsrApicBase:
      return (value & kApicBaseX2apic) != 0 && !model.Has(Feature::kX2apic) ? Result::kRefused
                                                                            : Result::kNotOurs;
    case kMsrMicrocodeUpdate:  // no update ever fits: Intel's do nothing, AMD's fault
      return ignore(!model.amd_rules());
    case kMsrSpeculationControl:
      return model.Has(Feature::kSpecCtrl) ? WriteKept(core, index, value) : Result::kRefused;
    case kMsrPredictionCommand:
      return ignore(HasPredictionBarrier(model) && (value & ~kPredictionBarrier) == 0);
    case kMsrArchCapabilities:
      return Result::kRefused;
    case kMsrSysenterCs:
      return set(core.sysenter_cs, model.Has(Feature::kSep));
    case kMsrSysenterEsp:
      return set(core.sysenter_esp, canonical(Feature::kSep));
    case kMsrSysenterEip:
      return set(core.sysenter_eip, canonical(Feature::kSep));
    case kMsrDebugctl:
      return set(core.debugctl, (value & ~LegalDebugctl(model)) == 0);
    case kMsrLastBranchFrom:
    case kMsrLastBranchTo:
    case kMsrLastIntFrom:
    case kMsrLastIntTo:
      return Result::kRefused;
    case kMsrPat:
      return set(core.pat, model.Has(Feature::kPat) && IsLegalPat(value));
    case kMsrUserCet:
      return ignore(SetCet(core, core.cet.user, value));
    case kMsrSupervisorCet:
      return ignore(SetCet(core, core.cet.supervisor, value));
    case kMsrPl0Ssp:
    case kMsrPl1Ssp:
    case kMsrPl2Ssp:
    case kMsrPl3Ssp:
      return set(core.cet.privilege_ssp[index - kMsrPl0Ssp],
                 model.Has(Feature::kShstk) && IsLegalSsp(core, value));
    case kMsrInterruptSspTable:
      return set(core.cet.interrupt_ssp_table, canonical(Feature::kShstk));
    case kMsrPkrs:
      if (!model.Has(Feature::kPks) || value >> 32 != 0) return Result::kRefused;
      core.SetProtectionKeys(core.pkrs, static_cast<std::uint32_t>(value));
      return Result::kDone;
    case kMsrXss:
      return set(core.xss, model.Has(Feature::kXsaves) && (value & ~model.xss_bits()) == 0);
    case kMsrEfer:
      return ignore(SetEfer(core, value));
    case kMsrStar:
      return set(core.star, model.Has(Feature::kSyscall));
    case kMsrLstar:
      return set(core.lstar, canonical(Feature::kLm));
    case kMsrCstar:
      return set(core.cstar, canonical(Feature::kLm));
    case kMsrSfmask:
      return set(core.sfmask, model.Has(Feature::kSyscall) && value >> 32 == 0);
    case kMsrFsBase:
      return set(core.segments[kFs].base, canonical(Feature::kLm));
    case kMsrGsBase:
      return set(core.segments[kGs].base, canonical(Feature::kLm));
    case kMsrKernelGsBase:
      return set(core.kernel_gs_base, canonical(Feature::kLm));
    case kMsrTscAux:
      return set(core.tsc_aux,
                 (model.Has(Feature::kRdtscp) || model.Has(Feature::kRdpid)) && value >> 32 == 0);
    default:
      if (IsAmdPerformanceCounter(core, index)) return ignore(value == 0);
      if (const Result own = WriteOfUnit(core, index, value); own != Result::kNotOurs) return own;
      return WriteKept(core, index, value);
  }
}

std::uint32_t Low(const Core& core, Gpr name) { return static_cast<std::uint32_t>(core.gpr[name]); }

void SetPair(Core& core, std::uint64_t value) {
  core.gpr[kRax] = static_cast<std::uint32_t>(value);
  core.gpr[kRdx] = value >> 32;
}

bool TscRefused(const Core& core) { return core.cpl > 0 && (core.cr4 & kCr4Tsd) != 0; }

// Entropy of the host's, or with virtual time numbers that look random and are the same in each
// run.
bool RandomNumber(Core& core, std::uint64_t& value) {
  if (core.virtual_time == nullptr) return getentropy(&value, sizeof(value)) == 0;
  // A counter, mixed as by SplitMix64.
  value = core.random_state += 0x9e37'79b9'7f4a'7c15;
  value = (value ^ value >> 30) * 0xbf58'476d'1ce4'e5b9;
  value = (value ^ value >> 27) * 0x94d0'49bb'1331'11eb;
  value ^= value >> 31;
  return true;
}

bool Random(Core& core, const Op& op, Feature feature) {
  if (!core.model->Has(feature)) return core.Raise(kUd);
  if (Leaves(core, op,
             {.what = feature == Feature::kRdrand ? Intercept::kRdrand : Intercept::kRdseed,
              .gpr = static_cast<std::uint8_t>(op.first / 8),
              .operand_bytes = op.operand_bytes})) {
    return false;
  }
  std::uint64_t value = 0;
  const bool have = RandomNumber(core, value);
  if (!have) value = 0;
  switch (op.operand_bytes) {
    case 2:
      core.Write(op.first, static_cast<std::uint16_t>(value));
      break;
    case 4:
      core.Write(op.first, static_cast<std::uint32_t>(value));
      break;
    default:
      core.Write(op.first, value);
      break;
  }
  core.flags.SetEager(have ? kFlagCf : 0);
  return true;
}

}  // namespace

std::uint64_t ReadHostTsc(const Core& core) { return ClockNow(core) + core.tsc_offset; }

std::uint64_t ReadTsc(const Core& core) { return core.guest.tsc.Of(ReadHostTsc(core)); }

bool ReadOwnMsr(Core& core, std::uint32_t index, std::uint64_t& value) {
  return ReadOwn(core, index, value) == Result::kDone;
}

bool WriteOwnMsr(Core& core, std::uint32_t index, std::uint64_t value) {
  return WriteOwn(core, index, value) == Result::kDone;
}

bool Rdmsr(Core& core, const Op& op) {
  if (!core.model->Has(Feature::kMsr)) return core.Raise(kUd);
  if (core.cpl != 0) return core.Raise(kGp, 0);
  const std::uint32_t index = Low(core, kRcx);
  if (Leaves(core, op, {.what = Intercept::kReadMsr, .number = index})) return false;
  std::uint64_t value = 0;
  switch (ReadOwn(core, index, value)) {
    case Result::kRefused:
      return core.Raise(kGp, 0);
    case Result::kDone:
      break;
    case Result::kNotOurs: {
      BusAccess access{.kind = BusAccess::Kind::kMsrRead, .bytes = 8, .address = index};
      if (!core.AskBus(access)) return false;
      value = access.value;
    }
  }
  SetPair(core, value);
  return true;
}

bool Wrmsr(Core& core, const Op& op) {
  if (!core.model->Has(Feature::kMsr)) return core.Raise(kUd);
  if (core.cpl != 0) return core.Raise(kGp, 0);
  const std::uint32_t index = Low(core, kRcx);
  const std::uint64_t value = Low(core, kRax) | std::uint64_t{Low(core, kRdx)} << 32;
  if (Leaves(core, op, {.what = Intercept::kWriteMsr, .number = index, .value = value})) {
    return false;
  }
  switch (WriteOwn(core, index, value)) {
    case Result::kRefused:
      return core.Raise(kGp, 0);
    case Result::kDone:
      return true;
    case Result::kNotOurs:
      break;
  }
  BusAccess access{
      .kind = BusAccess::Kind::kMsrWrite, .bytes = 8, .address = index, .value = value};
  if (!core.AskBus(access)) return false;
  if (index == kMsrApicBase) core.apic_enabled = (value & 1u << 11) != 0;
  return true;
}

// Nobody in guest mode reads a time behind the deadline: guest mode is left instead.
bool DeadlineComes(Core& core) {
  if (!core.guest.deadline || ReadHostTsc(core) < *core.guest.deadline) return false;
  core.stop = Stop::kAlone;
  return true;
}

bool Rdtsc(Core& core, const Op& op) {
  if (!core.model->Has(Feature::kTsc)) return core.Raise(kUd);
  if (TscRefused(core)) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kRdtsc)) return false;
  const std::uint64_t value = ReadTsc(core);
  if (DeadlineComes(core)) return false;
  SetPair(core, value);
  return true;
}

bool Rdtscp(Core& core, const Op& op) {
  if (!core.model->Has(Feature::kRdtscp) || core.guest.undefined.Has(Intercept::kRdtscp)) {
    return core.Raise(kUd);
  }
  if (TscRefused(core)) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kRdtscp)) return false;
  const std::uint64_t value = ReadTsc(core);
  if (DeadlineComes(core)) return false;
  SetPair(core, value);
  core.gpr[kRcx] = static_cast<std::uint32_t>(core.tsc_aux);
  return true;
}

// There are no counters: every index is refused, whatever the privilege.
bool Rdpmc(Core& core, const Op& op) {
  const bool allowed = core.cpl == 0 || (core.cr4 & kCr4Pce) != 0;
  if (allowed && Leaves(core, op, Intercept::kRdpmc)) return false;
  return core.Raise(kGp, 0);
}

bool Rdpid(Core& core, const Op& op) {
  if (!core.model->Has(Feature::kRdpid) || core.guest.undefined.Has(Intercept::kRdtscp)) {
    return core.Raise(kUd);
  }
  core.Write<std::uint64_t>(op.first, core.tsc_aux);
  return true;
}

bool Cpuid(Core& core, const Op& op) {
  const std::uint64_t features = core.plain_msrs.Read(kMsrMiscFeatures).value_or(0);
  if (core.cpl > 0 && (features & kMiscFeatureCpuidFaulting) != 0) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kCpuid)) return false;
  const std::uint64_t enabled = MiscEnable(core);
  const CpuidDynamic dynamic = {.osxsave = (core.cr4 & kCr4Osxsave) != 0,
                                .ospke = (core.cr4 & kCr4Pke) != 0,
                                .apic_enabled = core.apic_enabled,
                                .monitor = HasMonitor(core),
                                .few_leaves = (enabled & kMiscEnableLimitCpuid) != 0,
                                .no_execute = (enabled & kMiscEnableNoExecuteDisable) == 0,
                                .code_64 = core.code_64(),
                                .xcr0 = core.xcr0,
                                .xss = core.xss};
  const CpuidResult result = core.model->Cpuid(Low(core, kRax), Low(core, kRcx), dynamic);
  core.gpr[kRax] = result.eax;
  core.gpr[kRbx] = result.ebx;
  core.gpr[kRcx] = result.ecx;
  core.gpr[kRdx] = result.edx;
  return true;
}

bool Rdrand(Core& core, const Op& op) { return Random(core, op, Feature::kRdrand); }
bool Rdseed(Core& core, const Op& op) { return Random(core, op, Feature::kRdseed); }

}  // namespace pagesaw::cpu
