// The checks on the guest-state area. [intel/vol3] "Checks on the Guest State Area"
module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
module pagesaw.plugins.vmx.entry_checks;

import pagesaw.core.address;
import pagesaw.core.paging_state;
import pagesaw.core.register_values;
import pagesaw.plugins.vmx.vmx_bits;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t kCr0CacheBits = 3u << 29;  // NW, CD: never checked
constexpr std::uint64_t kDebugctlBtf = 1u << 1, kDebugctlKnown = kDebugctlBtf | 1u << 0;
constexpr std::uint32_t kUnusable = 1u << 16;

// A guest's segment register as its fields say.
struct SegmentImage {
  std::uint64_t base;
  std::uint32_t selector, limit, access;

  SegmentImage(const Vmcs& vmcs, SegmentName name)
      : base(vmcs.Get(kGuestSegments[name].base)),
        selector(vmcs.Get32(kGuestSegments[name].selector)),
        limit(vmcs.Get32(kGuestSegments[name].limit)),
        access(vmcs.Get32(kGuestSegments[name].access)) {}

  bool usable() const { return (access & kUnusable) == 0; }
  unsigned type() const { return access & 15; }
  bool is_code_or_data() const { return (access & 1u << 4) != 0; }
  unsigned dpl() const { return access >> 5 & 3; }
  bool present() const { return (access & 1u << 7) != 0; }
  bool long_mode() const { return (access & 1u << 13) != 0; }
  bool big() const { return (access & 1u << 14) != 0; }
  unsigned rpl() const { return selector & 3; }
  bool in_ldt() const { return (selector & 4) != 0; }
  bool reserved_clear() const { return (access & 0xfffe'0f00) == 0; }
  // The granularity that the limit can have been written with.
  bool granularity_fits() const {
    const bool pages = (access & 1u << 15) != 0;
    return pages ? (limit & 0xfff) == 0xfff : limit >> 20 == 0;
  }
};

// The guest as the checks see it.
class Guest {
 public:
  explicit Guest(const EntryContext& context)
      : context_(context),
        vmcs_(context.vmcs),
        controls_(context.controls),
        cr0_(vmcs_.Get(field::kGuestCr0)),
        cr4_(vmcs_.Get(field::kGuestCr4)),
        rflags_(vmcs_.Get(field::kGuestRflags)) {}

  bool ControlRegistersFit() const;
  bool SegmentsFit() const;
  bool TablesFit() const;
  bool FlagsFit() const;
  bool ActivityFits() const;
  bool InterruptibilityFits() const;
  bool PendingDebugFits() const;
  bool LinkPointerFits() const;

 private:
  bool virtual_8086() const { return (rflags_ & kFlagVm) != 0; }
  bool IsCanonicalValue(std::uint64_t value) const {
    return IsCanonical(Gva(value), context_.limits.linear_bits);
  }
  bool EferFits() const;
  bool CetStateFits() const;
  bool SelectorsFit() const;
  bool BasesFit() const;
  bool Virtual8086SegmentsFit() const;
  bool CodeFits(const SegmentImage& code, const SegmentImage& stack) const;
  bool StackFits(const SegmentImage& stack) const;
  bool DataFits(const SegmentImage& data) const;
  bool TaskFits() const;
  bool LocalTableFits() const;
  bool InjectionFitsActivity(ActivityState activity) const;
  std::uint32_t event() const { return vmcs_.Get32(field::kEntryInterruption); }
  bool injects() const { return (event() & kEventValid) != 0; }
  bool Injects(EventType type) const { return injects() && TypeOf(event()) == type; }

  const EntryContext& context_;
  const Vmcs& vmcs_;
  const Controls& controls_;
  std::uint64_t cr0_, cr4_, rflags_;
};

// "Checks on Guest Control Registers, Debug Registers, and MSRs"
bool Guest::ControlRegistersFit() const {
  const FixedBits cr0 = controls_.unrestricted() ? context_.capabilities.unrestricted_cr0()
                                                 : context_.capabilities.cr0();
  if (!cr0.Allows(cr0_ & ~kCr0CacheBits) || !context_.capabilities.cr4().Allows(cr4_)) {
    return false;
  }
  const bool paging = (cr0_ & kCr0Pg) != 0;
  if (paging && (cr0_ & kCr0Pe) == 0) return false;
  if ((cr4_ & kCr4Cet) != 0 && (cr0_ & kCr0Wp) == 0) return false;
  if (controls_.guest_64() ? !paging || (cr4_ & kCr4Pae) == 0 : (cr4_ & kCr4Pcide) != 0) {
    return false;
  }
  const std::uint64_t cr3 = vmcs_.Get(field::kGuestCr3);
  const bool wide = cr3 >> context_.limits.physical_bits != 0;
  if (controls_.guest_64() ? (cr3 & ~context_.limits.cr3) != 0 : wide) return false;
  if (controls_.HasEntry(entry::kLoadDebug) &&
      ((vmcs_.Get(field::kGuestDebugctl) & ~kDebugctlKnown) != 0 ||
       vmcs_.Get(field::kGuestDr7) >> 32 != 0)) {
    return false;
  }
  if (!IsCanonicalValue(vmcs_.Get(field::kGuestSysenterEsp)) ||
      !IsCanonicalValue(vmcs_.Get(field::kGuestSysenterEip))) {
    return false;
  }
  if (controls_.HasEntry(entry::kLoadPat) && !IsLegalPat(vmcs_.Get(field::kGuestPat))) return false;
  return CetStateFits() && EferFits();
}

bool Guest::CetStateFits() const {
  if (!controls_.HasEntry(entry::kLoadCet)) return true;
  return CetFits(context_, {.supervisor = vmcs_.Get(field::kGuestSupervisorCet),
                            .ssp = vmcs_.Get(field::kGuestSsp),
                            .interrupt_ssp_table = vmcs_.Get(field::kGuestInterruptSspTable),
                            .wide = controls_.guest_64() && SegmentImage(vmcs_, kCs).long_mode()});
}

bool Guest::EferFits() const {
  if (!controls_.HasEntry(entry::kLoadEfer)) return true;
  const std::uint64_t efer = vmcs_.Get(field::kGuestEfer);
  const bool active = (efer & kEferLma) != 0, enabled = (efer & kEferLme) != 0;
  return (efer & ~context_.limits.efer) == 0 && active == controls_.guest_64() &&
         ((cr0_ & kCr0Pg) == 0 || active == enabled);
}

// "Checks on Guest Segment Registers"
bool Guest::SegmentsFit() const {
  if (!SelectorsFit() || !BasesFit() || !TaskFits() || !LocalTableFits()) return false;
  if (virtual_8086()) return Virtual8086SegmentsFit();
  const SegmentImage stack(vmcs_, kSs);
  if (!CodeFits(SegmentImage(vmcs_, kCs), stack) || !StackFits(stack)) return false;
  for (const SegmentName name : {kEs, kDs, kFs, kGs}) {
    if (!DataFits(SegmentImage(vmcs_, name))) return false;
  }
  return true;
}

bool Guest::SelectorsFit() const {
  const SegmentImage local(vmcs_, kLdtr);
  if (SegmentImage(vmcs_, kTr).in_ldt() || (local.usable() && local.in_ldt())) return false;
  if (virtual_8086() || controls_.unrestricted()) return true;
  return SegmentImage(vmcs_, kSs).rpl() == SegmentImage(vmcs_, kCs).rpl();
}

bool Guest::BasesFit() const {
  for (const SegmentName name : {kTr, kFs, kGs}) {
    if (!IsCanonicalValue(SegmentImage(vmcs_, name).base)) return false;
  }
  const SegmentImage local(vmcs_, kLdtr);
  if (local.usable() && !IsCanonicalValue(local.base)) return false;
  if (SegmentImage(vmcs_, kCs).base >> 32 != 0) return false;
  for (const SegmentName name : {kSs, kDs, kEs}) {
    const SegmentImage segment(vmcs_, name);
    if (segment.usable() && segment.base >> 32 != 0) return false;
  }
  return true;
}

bool Guest::Virtual8086SegmentsFit() const {
  for (const SegmentName name : {kEs, kCs, kSs, kDs, kFs, kGs}) {
    const SegmentImage segment(vmcs_, name);
    if (segment.base != std::uint64_t{segment.selector} << 4 || segment.limit != 0xffff ||
        segment.access != 0xf3) {
      return false;
    }
  }
  return true;
}

bool Guest::CodeFits(const SegmentImage& code, const SegmentImage& stack) const {
  switch (code.type()) {
    case 3:
      if (!controls_.unrestricted() || code.dpl() != 0) return false;
      break;
    case 9:
    case 11:
      if (code.dpl() != stack.dpl()) return false;
      break;
    case 13:
    case 15:
      if (code.dpl() > stack.dpl()) return false;
      break;
    default:
      return false;
  }
  if (controls_.guest_64() && code.long_mode() && code.big()) return false;
  return code.is_code_or_data() && code.present() && code.reserved_clear() &&
         code.granularity_fits();
}

bool Guest::StackFits(const SegmentImage& stack) const {
  const bool data_as_code = SegmentImage(vmcs_, kCs).type() == 3;
  if (!controls_.unrestricted() && stack.dpl() != stack.rpl()) return false;
  if ((data_as_code || (cr0_ & kCr0Pe) == 0) && stack.dpl() != 0) return false;
  if (!stack.usable()) return true;
  return (stack.type() == 3 || stack.type() == 7) && stack.is_code_or_data() && stack.present() &&
         stack.reserved_clear() && stack.granularity_fits();
}

bool Guest::DataFits(const SegmentImage& data) const {
  if (!data.usable()) return true;
  const bool accessed = (data.type() & 1) != 0;
  const bool code = (data.type() & 8) != 0, readable = (data.type() & 2) != 0;
  const bool conforming_code = data.type() >= 12;
  return accessed && (!code || readable) && data.is_code_or_data() &&
         (controls_.unrestricted() || conforming_code || data.dpl() >= data.rpl()) &&
         data.present() && data.reserved_clear() && data.granularity_fits();
}

bool Guest::TaskFits() const {
  const SegmentImage task(vmcs_, kTr);
  const bool type_fits = task.type() == 11 || (task.type() == 3 && !controls_.guest_64());
  return type_fits && !task.is_code_or_data() && task.present() && task.usable() &&
         task.reserved_clear() && task.granularity_fits();
}

bool Guest::LocalTableFits() const {
  const SegmentImage table(vmcs_, kLdtr);
  return !table.usable() || (table.type() == 2 && !table.is_code_or_data() && table.present() &&
                             table.reserved_clear() && table.granularity_fits());
}

// "Checks on Guest Descriptor-Table Registers"
bool Guest::TablesFit() const {
  return IsCanonicalValue(vmcs_.Get(field::kGuestGdtrBase)) &&
         IsCanonicalValue(vmcs_.Get(field::kGuestIdtrBase)) &&
         vmcs_.Get(field::kGuestGdtrLimit) >> 16 == 0 &&
         vmcs_.Get(field::kGuestIdtrLimit) >> 16 == 0;
}

// "Checks on Guest RIP, RFLAGS, and SSP"
bool Guest::FlagsFit() const {
  const std::uint64_t rip = vmcs_.Get(field::kGuestRip);
  const bool wide = controls_.guest_64() && SegmentImage(vmcs_, kCs).long_mode();
  if (wide) {
    const std::uint64_t unused = rip >> context_.limits.linear_bits;
    if (unused != 0 && unused != ~std::uint64_t{0} >> context_.limits.linear_bits) return false;
  } else if (rip >> 32 != 0) {
    return false;
  }
  if ((rflags_ & (~kRflagsKnown | kFlagFixed)) != kFlagFixed) return false;
  if (virtual_8086() && (controls_.guest_64() || (cr0_ & kCr0Pe) == 0)) return false;
  return !Injects(EventType::kInterrupt) || (rflags_ & kFlagIf) != 0;
}

// "Checks on Guest Non-Register State", activity state
bool Guest::ActivityFits() const {
  const std::uint32_t value = vmcs_.Get32(field::kActivity);
  if (value > static_cast<std::uint32_t>(ActivityState::kWaitForSipi)) return false;
  const auto activity = static_cast<ActivityState>(value);
  if (activity == ActivityState::kActive) return true;
  if (activity == ActivityState::kHlt && SegmentImage(vmcs_, kSs).dpl() != 0) return false;
  const std::uint32_t blocking = vmcs_.Get32(field::kInterruptibility);
  if ((blocking & (kBlockedBySti | kBlockedByMovSs)) != 0) return false;
  return !injects() || InjectionFitsActivity(activity);
}

bool Guest::InjectionFitsActivity(ActivityState activity) const {
  constexpr unsigned kDb = 1, kMc = 18;
  const unsigned vector = event() & 0xff;
  const bool machine_check = Injects(EventType::kException) && vector == kMc;
  if (activity == ActivityState::kShutdown) return Injects(EventType::kNmi) || machine_check;
  if (activity != ActivityState::kHlt) return false;
  return Injects(EventType::kInterrupt) || Injects(EventType::kNmi) || Injects(EventType::kOther) ||
         machine_check || (Injects(EventType::kException) && vector == kDb);
}

bool Guest::InterruptibilityFits() const {
  const std::uint32_t blocking = vmcs_.Get32(field::kInterruptibility);
  const bool sti = (blocking & kBlockedBySti) != 0, mov_ss = (blocking & kBlockedByMovSs) != 0;
  if ((blocking & ~(kBlockedBySti | kBlockedByMovSs | kBlockedByNmi)) != 0) return false;
  if ((sti && mov_ss) || (sti && (rflags_ & kFlagIf) == 0)) return false;
  if (Injects(EventType::kInterrupt) && (sti || mov_ss)) return false;
  if (!Injects(EventType::kNmi)) return true;
  const bool virtual_blocking =
      controls_.HasPin(pin::kVirtualNmis) && (blocking & kBlockedByNmi) != 0;
  return !mov_ss && !virtual_blocking;
}

bool Guest::PendingDebugFits() const {
  const std::uint64_t pending = vmcs_.Get(field::kGuestPendingDebug);
  if ((pending & ~kPendingKnown) != 0) return false;
  const bool shadow =
      (vmcs_.Get32(field::kInterruptibility) & (kBlockedBySti | kBlockedByMovSs)) != 0;
  const bool halted = vmcs_.Get32(field::kActivity) == static_cast<unsigned>(ActivityState::kHlt);
  if (!shadow && !halted) return true;
  const bool steps =
      (rflags_ & kFlagTf) != 0 && (vmcs_.Get(field::kGuestDebugctl) & kDebugctlBtf) == 0;
  return steps == ((pending & kPendingStep) != 0);
}

bool Guest::LinkPointerFits() const {
  const std::uint64_t pointer = vmcs_.Get(field::kLinkPointer);
  if (pointer == ~std::uint64_t{0}) return true;
  if (pointer % kPageBytes != 0 || pointer >> context_.limits.physical_bits != 0) return false;
  const Vmcs shadow(context_.host.Memory(Gpa(pointer), kPageBytes));
  return shadow && shadow.revision() == kRevision &&
         shadow.is_shadow() == controls_.HasSecondary(secondary::kVmcsShadowing);
}

}  // namespace

std::optional<std::uint64_t> GuestStateFailure(const EntryContext& context) {
  const Guest guest(context);
  const bool fits = guest.ControlRegistersFit() && guest.SegmentsFit() && guest.TablesFit() &&
                    guest.FlagsFit() && guest.ActivityFits() && guest.InterruptibilityFits() &&
                    guest.PendingDebugFits();
  if (!fits) return kFailedOtherwise;
  if (!guest.LinkPointerFits()) return kFailedLinkPointer;
  return std::nullopt;
}

}  // namespace pagesaw::vmx
