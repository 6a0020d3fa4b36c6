module;
#include <array>
#include <cstdint>
module pagesaw.cpu.control_registers;

import pagesaw.cpu.control_bits;
import pagesaw.cpu.intercept;
import pagesaw.cpu.memory;
import pagesaw.cpu.page_directory_pointers;
import pagesaw.cpu.segmentation;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kCr0Bits = kCr0Pe | kCr0Mp | kCr0Em | kCr0Ts | kCr0Et | kCr0Ne | kCr0Wp |
                                   kCr0Am | kCr0Nw | kCr0Cd | kCr0Pg;
// Changes that reload PDPTEs. [intel/vol3] "PDPTE Registers"
constexpr std::uint64_t kCr0ReloadsPdptes = kCr0Cd | kCr0Nw | kCr0Pg;
constexpr std::uint64_t kCr4ReloadsPdptes = kCr4Pae | kCr4Pge | kCr4Pse | kCr4Smep;
// Changes that translations feel.
constexpr std::uint64_t kCr0Paging = kCr0Pg | kCr0Wp | kCr0Pe | kCr0Cd | kCr0Nw;
constexpr std::uint64_t kCr4Paging = kCr4Pse | kCr4Pae | kCr4Pge | kCr4La57 | kCr4Pcide | kCr4Smep |
                                     kCr4Smap | kCr4Pke | kCr4Cet | kCr4Pks | kCr4LamSup;
// Changes that invalidate every translation, of all PCIDs.
constexpr std::uint64_t kCr4FlushesAll = kCr4Pse | kCr4Pae | kCr4Pge | kCr4La57;

// What a change of CR4 to `value` invalidates.
// [intel/vol3] "Operations that Invalidate TLBs and Paging-Structure Caches"; [amd/vol2] "Implicit
// Invalidations"
Invalidation::Scope FlushedByCr4(std::uint64_t changed, std::uint64_t value) {
  if ((changed & kCr4FlushesAll) != 0 || (changed & ~value & kCr4Pcide) != 0) {
    return Invalidation::Scope::kEverything;
  }
  return (changed & kCr4Smep) != 0 ? Invalidation::Scope::kAddressSpace
                                   : Invalidation::Scope::kNothing;
}

// [intel/vol2] "MOV—Move to/from Control Registers"
bool LegalCr0(const Core& core, std::uint64_t value) {
  const std::uint64_t changed = core.cr0 ^ value;
  const bool paging_on = (changed & value & kCr0Pg) != 0;
  const bool paging_off = (changed & core.cr0 & kCr0Pg) != 0;
  if ((value & kCr0Pg) != 0 && (value & kCr0Pe) == 0) return false;
  if ((value & kCr0Nw) != 0 && (value & kCr0Cd) == 0) return false;
  if ((value & kCr0Wp) == 0 && (core.cr4 & kCr4Cet) != 0) return false;
  if (paging_on && (core.efer & kEferLme) != 0 &&
      ((core.cr4 & kCr4Pae) == 0 || core.segments[kCs].long_mode())) {
    return false;
  }
  return !paging_off || (!core.code_64() && (core.cr4 & kCr4Pcide) == 0);
}

bool SetCr0(Core& core, std::uint64_t value) {
  if (value >> 32 != 0) return core.Raise(kGp, 0);
  value = (value & kCr0Bits) | kCr0Et;
  const bool fixed = (core.guest.cr0_fixed & ~value) == 0;
  if (!fixed || !LegalCr0(core, value)) return core.Raise(kGp, 0);
  const std::uint64_t changed = core.cr0 ^ value;
  std::array<std::uint64_t, 4> pdptes = core.pdptes;
  if ((changed & kCr0ReloadsPdptes) != 0 && !LoadPdptes(core, core.cr3, value, core.cr4, pdptes)) {
    return false;
  }
  core.cr0 = value;
  core.pdptes = pdptes;
  const bool long_mode = (value & kCr0Pg) != 0 && (core.efer & kEferLme) != 0;
  core.efer = long_mode ? core.efer | kEferLma : core.efer & ~kEferLma;
  if ((changed & kCr0Paging) != 0) {
    PagingChanged(core, (changed & kCr0Pg) != 0 ? Invalidation::Scope::kEverything
                                                : Invalidation::Scope::kNothing);
  }
  core.UpdateMode();
  return true;
}

bool SetCr3(Core& core, std::uint64_t value) {
  // Bit 63 allows to keep translations. The TLB holds one address space at a time and does not; who
  // shadows the tables may.
  const bool keep = (core.cr4 & kCr4Pcide) != 0 && value >> 63 != 0;
  if (keep) value &= ~(std::uint64_t{1} << 63);
  if (core.long_mode() && (value & ~AllowedCr3(*core.model)) != 0) return core.Raise(kGp, 0);
  std::array<std::uint64_t, 4> pdptes = core.pdptes;
  if (!LoadPdptes(core, value, core.cr0, core.cr4, pdptes)) return false;
  core.cr3 = value;
  core.pdptes = pdptes;
  PagingChanged(core, keep ? Invalidation::Scope::kNothing : Invalidation::Scope::kAddressSpace);
  return true;
}

bool LegalCr4(const Core& core, std::uint64_t value) {
  const std::uint64_t changed = core.cr4 ^ value;
  if ((value & ~AllowedCr4(*core.model)) != 0 || (core.guest.cr4_fixed & ~value) != 0) return false;
  if (core.long_mode() && ((value & kCr4Pae) == 0 || (changed & kCr4La57) != 0)) return false;
  if ((changed & value & kCr4Pcide) != 0 && (!core.long_mode() || (core.cr3 & 0xfff) != 0)) {
    return false;
  }
  return (value & kCr4Cet) == 0 || (core.cr0 & kCr0Wp) != 0;
}

bool SetCr4(Core& core, std::uint64_t value) {
  if (!LegalCr4(core, value)) return core.Raise(kGp, 0);
  const std::uint64_t changed = core.cr4 ^ value;
  std::array<std::uint64_t, 4> pdptes = core.pdptes;
  if ((changed & kCr4ReloadsPdptes) != 0 && !LoadPdptes(core, core.cr3, core.cr0, value, pdptes)) {
    return false;
  }
  core.cr4 = value;
  core.pdptes = pdptes;
  if ((changed & kCr4Paging) != 0) PagingChanged(core, FlushedByCr4(changed, value));
  if ((changed & kCr4De) != 0) core.UpdateBreakpoints();
  core.UpdateMode();
  return true;
}

bool SetCr8(Core& core, std::uint64_t value) {
  if (value > 15) return core.Raise(kGp, 0);
  if (core.guest.active && core.guest.interrupts.has_virtual_tpr) {
    GuestInterrupts& interrupts = core.guest.interrupts;
    interrupts.virtual_tpr = static_cast<std::uint8_t>(value);
    if (interrupts.asks_about_tpr) {
      interrupts.asks_at_boundary = true;
    } else {
      core.guest.tpr_fell = interrupts.virtual_tpr < interrupts.tpr_threshold;
    }
    return true;
  }
  BusAccess access{.kind = BusAccess::Kind::kTprWrite, .bytes = 1, .value = value};
  return core.AskBus(access);
}

// DR4 and DR5 are DR6 and DR7, unless debug extensions are on.
bool DebugRegister(Core& core, unsigned number, unsigned& actual) {
  if (core.cpl != 0) return core.Raise(kGp, 0);
  if ((number == 4 || number == 5) && (core.cr4 & kCr4De) != 0) return core.Raise(kUd);
  if ((core.dr7 & kDr7Gd) != 0) {
    core.Raise(kDb);
    core.exception.dr6 = kDr6Bd;
    return false;
  }
  actual = number == 4 || number == 5 ? number + 2 : number;
  return true;
}

std::uint64_t SourceRegister(const Core& core, const Op& op) {
  const auto value = core.Read<std::uint64_t>(op.second);
  return core.code_64() ? value : static_cast<std::uint32_t>(value);
}

void SetDestination(Core& core, const Op& op, std::uint64_t value) {
  core.Write<std::uint64_t>(op.first, core.code_64() ? value : static_cast<std::uint32_t>(value));
}

bool IsControlRegister(unsigned number) {
  return number == 0 || (number >= 2 && number <= 4) || number == 8;
}

// INVLPG or INVPCID: the TLB forgets, and the one who shadows the tables hears.
void Invalidate(Core& core, const Invalidation& invalidation) {
  if (invalidation.scope == Invalidation::Scope::kAddress) {
    core.FlushPage(invalidation.linear.bits());
  } else {
    core.FlushTranslations();
  }
  if (core.tables.second_stage) return;
  core.replay.Clear();
  core.exit = Exit{};
  core.exit.invalidation = invalidation;
  core.LeaveWith(ExitReason::kInvalidate);
}

struct InvpcidDescriptor {
  std::uint64_t pcid = 0;
  std::uint64_t linear = 0;

  // What INVPCID of a legal `type` does with it. [intel/vol2] "INVPCID"
  Invalidation Of(std::uint64_t type) const {
    static constexpr Invalidation::Scope kScopes[] = {
        Invalidation::Scope::kAddress, Invalidation::Scope::kAddressSpace,
        Invalidation::Scope::kEverything,
        Invalidation::Scope::kEverything,  // may keep global translations
    };
    return {
        .scope = kScopes[type], .pcid = static_cast<std::uint16_t>(pcid), .linear = Gva(linear)};
  }
};

bool LegalInvpcid(const Core& core, std::uint64_t type, const InvpcidDescriptor& descriptor) {
  if (type > 3 || descriptor.pcid >> 12 != 0) return false;
  if (type > 1) return true;
  if (type == 0 && !IsCanonicalBase(core, descriptor.linear)) return false;
  return descriptor.pcid == 0 || (core.cr4 & kCr4Pcide) != 0;
}

}  // namespace

void PagingChanged(Core& core, Invalidation::Scope scope) {
  core.UpdatePaging();
  if (core.tables.second_stage) return;
  core.replay.Clear();
  core.exit = Exit{};
  core.exit.invalidation = {.scope = scope, .pcid = core.paging.pcid()};
  core.LeaveWith(ExitReason::kPagingChanged);
}

std::uint64_t AllowedCr4(const CpuModel& model) {
  struct Row {
    Feature feature;
    std::uint64_t bits;
  };
  static constexpr Row kRows[] = {
      {Feature::kVme, kCr4Vme | kCr4Pvi},
      {Feature::kTsc, kCr4Tsd},
      {Feature::kDe, kCr4De},
      {Feature::kPse, kCr4Pse},
      {Feature::kPae, kCr4Pae},
      {Feature::kMce, kCr4Mce},
      {Feature::kPge, kCr4Pge},
      {Feature::kFxsr, kCr4Osfxsr},
      {Feature::kSse, kCr4Osxmmexcpt},
      {Feature::kUmip, kCr4Umip},
      {Feature::kLa57, kCr4La57},
      {Feature::kFsgsbase, kCr4Fsgsbase},
      {Feature::kPcid, kCr4Pcide},
      {Feature::kXsave, kCr4Osxsave},
      {Feature::kSmep, kCr4Smep},
      {Feature::kSmap, kCr4Smap},
      {Feature::kPku, kCr4Pke},
      {Feature::kShstk, kCr4Cet},
      {Feature::kIbt, kCr4Cet},
      {Feature::kPks, kCr4Pks},
      {Feature::kLam, kCr4LamSup},
      {Feature::kVmx, kCr4Vmxe},
  };
  std::uint64_t allowed = kCr4Pce;
  for (const Row& row : kRows) {
    if (model.Has(row.feature)) allowed |= row.bits;
  }
  return allowed;
}

std::uint64_t AllowedCr0() { return kCr0Bits; }

std::uint64_t AllowedEfer(const CpuModel& model) {
  return kEferLma |  // writes of it have no effect
         (model.Has(Feature::kSyscall) ? kEferSce : 0) | (model.Has(Feature::kLm) ? kEferLme : 0) |
         (model.Has(Feature::kNx) ? kEferNxe : 0) | (model.Has(Feature::kSvm) ? kEferSvme : 0) |
         (model.Has(Feature::kAutoIbrs) ? kEferAutoIbrs : 0);
}

std::uint64_t AllowedCr3(const CpuModel& model) {
  const std::uint64_t allowed = (std::uint64_t{1} << model.physical_bits()) - 1;
  return model.Has(Feature::kLam) ? allowed | kCr3LamU48 | kCr3LamU57 : allowed;
}

bool MovToControl(Core& core, const Op& op) {
  if (core.cpl != 0) return core.Raise(kGp, 0);
  const std::uint64_t value = SourceRegister(core, op);
  if (!IsControlRegister(op.first)) return core.Raise(kUd);
  if (Leaves(core, op,
             {.what = Intercept::kWriteControl,
              .number = op.first,
              .value = value,
              .gpr = static_cast<std::uint8_t>(op.second / 8)})) {
    return false;
  }
  switch (op.first) {
    case 0:
      return SetCr0(core, core.guest.cr0_shadow.Written(core.cr0, value));
    case 2:
      core.cr2 = value;
      return true;
    case 3:
      return SetCr3(core, value);
    case 4:
      return SetCr4(core, core.guest.cr4_shadow.Written(core.cr4, value));
    case 8:
      return SetCr8(core, value);
    default:
      return core.Raise(kUd);
  }
}

bool MovFromControl(Core& core, const Op& op) {
  if (core.cpl != 0) return core.Raise(kGp, 0);
  if (!IsControlRegister(op.second)) return core.Raise(kUd);
  if (Leaves(core, op,
             {.what = Intercept::kReadControl,
              .number = op.second,
              .gpr = static_cast<std::uint8_t>(op.first / 8)})) {
    return false;
  }
  std::uint64_t value = 0;
  switch (op.second) {
    case 0:
      value = core.guest.cr0_shadow.Read(core.cr0);
      break;
    case 2:
      value = core.cr2;
      break;
    case 3:
      value = core.cr3;
      break;
    case 4:
      value = core.guest.cr4_shadow.Read(core.cr4);
      break;
    case 8: {
      if (core.guest.active && core.guest.interrupts.has_virtual_tpr) {
        value = core.guest.interrupts.virtual_tpr;
        break;
      }
      BusAccess access{.kind = BusAccess::Kind::kTprRead, .bytes = 1};
      if (!core.AskBus(access)) return false;
      value = access.value & 15;
      break;
    }
    default:
      return core.Raise(kUd);
  }
  SetDestination(core, op, value);
  return true;
}

bool MovToDebug(Core& core, const Op& op) {
  unsigned number = 0;
  if (!DebugRegister(core, op.first, number)) return false;
  const std::uint64_t value = SourceRegister(core, op);
  if (Leaves(core, op,
             {.what = Intercept::kWriteDebug,
              .number = op.first,
              .value = value,
              .gpr = static_cast<std::uint8_t>(op.second / 8)})) {
    return false;
  }
  switch (number) {
    case 0:
    case 1:
    case 2:
    case 3:
      core.dr[number] = value;
      core.UpdateBreakpoints();
      return true;
    case 6:
      if (value >> 32 != 0) return core.Raise(kGp, 0);
      core.dr6 = (value & kDr6Writable) | kDr6Fixed;
      return true;
    case 7:
      if (value >> 32 != 0) return core.Raise(kGp, 0);
      core.dr7 = (value & kDr7Writable) | kDr7Fixed;
      core.UpdateBreakpoints();
      return true;
    default:
      return core.Raise(kUd);
  }
}

bool MovFromDebug(Core& core, const Op& op) {
  unsigned number = 0;
  if (!DebugRegister(core, op.second, number)) return false;
  if (Leaves(core, op,
             {.what = Intercept::kReadDebug,
              .number = op.second,
              .gpr = static_cast<std::uint8_t>(op.first / 8)})) {
    return false;
  }
  if (number < 4) {
    SetDestination(core, op, core.dr[number]);
    return true;
  }
  if (number > 7) return core.Raise(kUd);
  SetDestination(core, op, number == 6 ? core.dr6 : core.dr7);
  return true;
}

bool Lmsw(Core& core, const Op& op) {
  if (core.cpl != 0) return core.Raise(kGp, 0);
  std::uint16_t value = 0;
  if (op.memory) {
    if (!LoadOperand(core, op, value)) return false;
  } else {
    value = core.Read<std::uint16_t>(op.first);
  }
  if (Leaves(core, op, {.what = Intercept::kLmsw, .value = value})) return false;
  // It can set PE but not clear it.
  const std::uint64_t next = (core.cr0 & ~std::uint64_t{14}) | (value & 15);
  return SetCr0(core, core.guest.cr0_shadow.Written(core.cr0, next));
}

bool Smsw(Core& core, const Op& op) {
  if (core.cpl > 0 && (core.cr4 & kCr4Umip) != 0) return core.Raise(kGp, 0);
  if (Leaves(core, op,
             {.what = Intercept::kSmsw, .gpr = static_cast<std::uint8_t>(op.first / 8)})) {
    return false;
  }
  const std::uint64_t cr0 = core.guest.cr0_shadow.Read(core.cr0);
  if (op.memory) return StoreOperand(core, op, static_cast<std::uint16_t>(cr0));
  switch (op.operand_bytes) {
    case 2:
      core.Write(op.first, static_cast<std::uint16_t>(cr0));
      break;
    case 4:
      core.Write(op.first, static_cast<std::uint32_t>(cr0));
      break;
    default:
      core.Write(op.first, cr0);
      break;
  }
  return true;
}

bool Clts(Core& core, const Op& op) {
  if (core.cpl != 0) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kClts)) return false;
  core.cr0 = core.guest.cr0_shadow.Written(core.cr0, core.cr0 & ~kCr0Ts);
  core.paging_changed = true;  // the state that others see holds CR0
  return true;
}

bool Invlpg(Core& core, const Op& op) {
  if (core.virtual_8086() || core.cpl != 0) return core.Raise(kGp, 0);
  std::uint64_t linear = EffectiveAddress(core, op);
  if (core.code_64()) {
    if (op.segment == kFs || op.segment == kGs) linear += core.segments[op.segment].base;
  } else {
    linear = static_cast<std::uint32_t>(linear + core.segments[op.segment].base);
  }
  if (Leaves(core, op, {.what = Intercept::kInvlpg, .value = linear})) return false;
  if (core.code_64() && !IsCanonicalNow(core, linear)) return true;
  Invalidate(
      core,
      {.scope = Invalidation::Scope::kAddress, .pcid = core.paging.pcid(), .linear = Gva(linear)});
  return true;
}

bool Invpcid(Core& core, const Op& op) {
  if (!core.model->Has(Feature::kInvpcid) || core.guest.undefined.Has(Intercept::kInvpcid)) {
    return core.Raise(kUd);
  }
  if (core.virtual_8086() || core.cpl != 0) return core.Raise(kGp, 0);
  const auto type = SourceRegister(core, op);
  if (Leaves(core, op,
             {.what = Intercept::kInvpcid, .gpr = static_cast<std::uint8_t>(op.second / 8)})) {
    return false;
  }
  std::uint64_t linear = 0;
  InvpcidDescriptor descriptor;
  if (!OperandAddress(core, op, 16, false, linear) ||
      !LoadSlow(core, linear, &descriptor, 16, By::kProgram)) {
    return false;
  }
  if (!LegalInvpcid(core, type, descriptor)) return core.Raise(kGp, 0);
  Invalidate(core, descriptor.Of(type));
  return true;
}

bool Wbinvd(Core& core, const Op& op) {
  if (core.cpl != 0) return core.Raise(kGp, 0);
  return !Leaves(core, op, Intercept::kWbinvd);
}

bool Invd(Core& core, const Op& op) {
  if (core.cpl != 0) return core.Raise(kGp, 0);
  return !Leaves(core, op, Intercept::kInvd);
}

bool Rdpkru(Core& core, const Op&) {
  if ((core.cr4 & kCr4Pke) == 0) return core.Raise(kUd);
  if (core.Read<std::uint32_t>(kRcx * 8) != 0) return core.Raise(kGp, 0);
  core.gpr[kRax] = core.pkru;
  core.gpr[kRdx] = 0;
  return true;
}

bool Wrpkru(Core& core, const Op&) {
  if ((core.cr4 & kCr4Pke) == 0) return core.Raise(kUd);
  if (core.Read<std::uint32_t>(kRcx * 8) != 0 || core.Read<std::uint32_t>(kRdx * 8) != 0) {
    return core.Raise(kGp, 0);
  }
  core.SetProtectionKeys(core.pkru, core.Read<std::uint32_t>(kRax * 8));
  return true;
}

bool Xgetbv(Core& core, const Op&) {
  if (!core.model->Has(Feature::kXsave) || (core.cr4 & kCr4Osxsave) == 0) return core.Raise(kUd);
  // Register 1 tells what is in use, too: everything may be. [intel/vol1] "XGETBV"
  const std::uint32_t last = core.model->Has(Feature::kXgetbv1) ? 1 : 0;
  if (core.Read<std::uint32_t>(kRcx * 8) > last) return core.Raise(kGp, 0);
  core.gpr[kRax] = static_cast<std::uint32_t>(core.xcr0);
  core.gpr[kRdx] = core.xcr0 >> 32;
  return true;
}

bool Xsetbv(Core& core, const Op& op) {
  if (!core.model->Has(Feature::kXsave) || (core.cr4 & kCr4Osxsave) == 0) return core.Raise(kUd);
  if (core.cpl != 0) return core.Raise(kGp, 0);
  if (Leaves(core, op, Intercept::kXsetbv)) return false;
  const std::uint64_t value =
      core.Read<std::uint32_t>(kRax * 8) | std::uint64_t{core.Read<std::uint32_t>(kRdx * 8)} << 32;
  const std::uint64_t allowed = core.model->xcr0_bits();
  if (core.Read<std::uint32_t>(kRcx * 8) != 0 || (value & 1) == 0 || (value & ~allowed) != 0 ||
      (value & 6) == 4) {
    return core.Raise(kGp, 0);
  }
  core.xcr0 = value;
  return true;
}

}  // namespace pagesaw::cpu
