module;
#include <cstddef>
#include <cstdint>
module pagesaw.plugins.vmx.entry_checks;

import pagesaw.core.address;
import pagesaw.core.paging_state;
import pagesaw.core.register_values;
import pagesaw.plugins.vmx.ept;
import pagesaw.plugins.vmx.vmx_bits;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t kCr0CacheBits = 3u << 29;  // NW, CD: never checked
constexpr unsigned kVirtualTprOffset = 0x80;

bool IsInMemorySpace(const EntryContext& context, std::uint64_t address) {
  return address >> context.limits.physical_bits == 0;
}

bool IsPage(const EntryContext& context, Field field) {
  const std::uint64_t address = context.vmcs.Get(field);
  return address % kPageBytes == 0 && IsInMemorySpace(context, address);
}

bool MsrListFits(const EntryContext& context, Field count_field, Field address_field) {
  constexpr std::uint64_t kEntryBytes = 16;
  const std::uint64_t count = context.vmcs.Get(count_field);
  const std::uint64_t address = context.vmcs.Get(address_field);
  if (count == 0) return true;
  return address % kEntryBytes == 0 && IsInMemorySpace(context, address) &&
         IsInMemorySpace(context, address + count * kEntryBytes - 1);
}

// The threshold is no higher than what the page has, unless other controls look after that.
bool TprThresholdFits(const EntryContext& context) {
  if (context.controls.HasSecondary(secondary::kVirtualInterrupts)) return true;
  const std::uint32_t threshold = context.vmcs.Get32(field::kTprThreshold);
  if (threshold >> 4 != 0) return false;
  if (context.controls.HasSecondary(secondary::kApicAccesses)) return true;
  const Gpa at(context.vmcs.Get(field::kVirtualApic) + kVirtualTprOffset);
  const std::byte* const tpr = context.host.Memory(at, 1);
  return tpr == nullptr || threshold <= std::to_integer<unsigned>(*tpr) >> 4;
}

// The same, of APIC virtualization.
bool ApicControlsFit(const EntryContext& context) {
  constexpr std::uint32_t kNeedPage =
      secondary::kX2apicMode | secondary::kApicRegisters | secondary::kVirtualInterrupts;
  const Controls& controls = context.controls;
  const bool maps = controls.HasSecondary(secondary::kApicAccesses);
  const bool delivers = controls.HasSecondary(secondary::kVirtualInterrupts);
  if (controls.HasPrimary(primary::kTprShadow)) {
    if (!IsPage(context, field::kVirtualApic) || !TprThresholdFits(context)) return false;
  } else if (controls.HasSecondary(kNeedPage)) {
    return false;
  }
  if (maps && controls.HasSecondary(secondary::kX2apicMode)) return false;
  if (maps && !IsPage(context, field::kApicAccess)) return false;
  if (delivers && !controls.HasPin(pin::kInterruptExiting)) return false;
  if (!controls.HasPin(pin::kPostedInterrupts)) return true;
  constexpr std::uint64_t kDescriptorBytes = 64;
  const std::uint64_t descriptor = context.vmcs.Get(field::kPostedDescriptor);
  return delivers && controls.HasExit(exits::kAcknowledge) &&
         context.vmcs.Get(field::kNotificationVector) < 256 && descriptor % kDescriptorBytes == 0 &&
         IsInMemorySpace(context, descriptor);
}

// The same, of EPT and what rests on it.
bool EptControlsFit(const EntryContext& context) {
  constexpr std::uint32_t kNeedEpt = secondary::kUnrestrictedGuest |
                                     secondary::kPageModificationLog |
                                     secondary::kViolationException | secondary::kModeBasedExecute;
  const Controls& controls = context.controls;
  if (!controls.ept() && controls.HasSecondary(kNeedEpt)) return false;
  if (controls.ept() && !IsEptPointer(context.vmcs.Get(field::kEptPointer), context.capabilities,
                                      context.limits.physical_bits)) {
    return false;
  }
  if (controls.HasSecondary(secondary::kPageModificationLog) &&
      !IsPage(context, field::kLogAddress)) {
    return false;
  }
  if (controls.HasSecondary(secondary::kViolationException) &&
      !IsPage(context, field::kViolationInformation)) {
    return false;
  }
  if (!controls.HasSecondary(secondary::kVmFunctions)) return true;
  const std::uint64_t functions = context.vmcs.Get(field::kVmFunctionControls);
  if ((functions & ~kEptpSwitching) != 0) return false;
  return functions == 0 || (controls.ept() && IsPage(context, field::kEptPointerList));
}

// [intel/vol3] "VM-Execution Control Fields"
bool ExecutionControlsFit(const EntryContext& context) {
  const Controls& controls = context.controls;
  const Capabilities& capabilities = context.capabilities;
  if (!capabilities.pin().Allows(controls.pin) ||
      !capabilities.primary().Allows(controls.primary) ||
      !capabilities.secondary().Allows(controls.secondary) ||
      context.vmcs.Get(field::kCr3TargetCount) > kCr3TargetCount) {
    return false;
  }
  if (controls.HasPrimary(primary::kIoBitmaps) &&
      (!IsPage(context, field::kIoBitmapA) || !IsPage(context, field::kIoBitmapB))) {
    return false;
  }
  if (controls.HasPrimary(primary::kMsrBitmaps) && !IsPage(context, field::kMsrBitmap)) {
    return false;
  }
  if (!ApicControlsFit(context)) return false;
  const bool virtual_nmis = controls.HasPin(pin::kVirtualNmis);
  if (virtual_nmis && !controls.HasPin(pin::kNmiExiting)) return false;
  if (controls.HasPrimary(primary::kNmiWindow) && !virtual_nmis) return false;
  if (controls.HasSecondary(secondary::kVpid) && context.vmcs.Get(field::kVpid) == 0) return false;
  if (controls.HasSecondary(secondary::kVmcsShadowing) &&
      (!IsPage(context, field::kVmreadBitmap) || !IsPage(context, field::kVmwriteBitmap))) {
    return false;
  }
  return EptControlsFit(context);
}

// [intel/vol3] "VM-Exit Control Fields"
bool ExitControlsFit(const EntryContext& context) {
  const Controls& controls = context.controls;
  const bool saves_timer = controls.HasExit(exits::kSavePreemptionTimer);
  return context.capabilities.exit().Allows(controls.exit) &&
         (!saves_timer || controls.HasPin(pin::kPreemptionTimer)) &&
         MsrListFits(context, field::kExitMsrStoreCount, field::kExitMsrStore) &&
         MsrListFits(context, field::kExitMsrLoadCount, field::kExitMsrLoad);
}

bool VectorFits(EventType type, unsigned vector) {
  switch (type) {
    case EventType::kNmi:
      return vector == 2;
    case EventType::kException:
      return vector < 32;
    case EventType::kOther:
      return vector == 0;
    default:
      return true;
  }
}

// [intel/vol3] "VM-Entry Control Fields", of event injection. Any exception may have an error code.
bool InjectionFits(const EntryContext& context) {
  constexpr std::uint32_t kReserved = 0x7fff'f000;
  constexpr std::uint32_t kErrorBits = 0xffff;
  constexpr std::uint32_t kLongestInstruction = 15;
  const std::uint32_t event = context.vmcs.Get32(field::kEntryInterruption);
  if ((event & kEventValid) == 0) return true;
  const EventType type = TypeOf(event);
  const unsigned vector = event & 0xff;
  if (type == EventType::kReserved || !VectorFits(type, vector) || (event & kReserved) != 0) {
    return false;
  }
  const bool protected_mode =
      !context.controls.unrestricted() || (context.vmcs.Get(field::kGuestCr0) & kCr0Pe) != 0;
  const bool has_error = (event & kEventHasError) != 0;
  if (has_error && (type != EventType::kException || !protected_mode)) return false;
  if (has_error && (context.vmcs.Get32(field::kEntryErrorCode) & ~kErrorBits) != 0) return false;
  const bool has_length = type == EventType::kSoftwareInterrupt ||
                          type == EventType::kPrivilegedException ||
                          type == EventType::kSoftwareException;
  return !has_length || context.vmcs.Get32(field::kEntryInstructionLength) <= kLongestInstruction;
}

// [intel/vol3] "VM-Entry Control Fields"
bool EntryControlsFit(const EntryContext& context) {
  return context.capabilities.entry().Allows(context.controls.entry) && InjectionFits(context) &&
         MsrListFits(context, field::kEntryMsrLoadCount, field::kEntryMsrLoad);
}

bool IsCanonicalField(const EntryContext& context, Field field) {
  return IsCanonical(Gva(context.vmcs.Get(field)), context.limits.linear_bits);
}

bool HostCetFits(const EntryContext& context) {
  if (!context.controls.HasExit(exits::kLoadCet)) return true;
  return CetFits(context, {.supervisor = context.vmcs.Get(field::kHostSupervisorCet),
                           .ssp = context.vmcs.Get(field::kHostSsp),
                           .interrupt_ssp_table = context.vmcs.Get(field::kHostInterruptSspTable),
                           .wide = context.controls.host_64()});
}

// [intel/vol3] "Checks on Host Control Registers, MSRs, and SSP"
bool HostRegistersFit(const EntryContext& context) {
  const Vmcs& vmcs = context.vmcs;
  const Controls& controls = context.controls;
  const std::uint64_t cr0 = vmcs.Get(field::kHostCr0), cr4 = vmcs.Get(field::kHostCr4);
  if (!context.capabilities.cr0().Allows(cr0 & ~kCr0CacheBits) ||
      !context.capabilities.cr4().Allows(cr4) ||
      (vmcs.Get(field::kHostCr3) & ~context.limits.cr3) != 0 ||
      ((cr4 & kCr4Cet) != 0 && (cr0 & kCr0Wp) == 0)) {
    return false;
  }
  if (!IsCanonicalField(context, field::kHostSysenterEsp) ||
      !IsCanonicalField(context, field::kHostSysenterEip)) {
    return false;
  }
  if (controls.HasExit(exits::kLoadPat) && !IsLegalPat(vmcs.Get(field::kHostPat))) return false;
  if (!HostCetFits(context)) return false;
  if (!controls.HasExit(exits::kLoadEfer)) return true;
  const std::uint64_t efer = vmcs.Get(field::kHostEfer);
  const std::uint64_t wide = controls.host_64() ? kEferLma | kEferLme : 0;
  return (efer & ~context.limits.efer) == 0 && (efer & (kEferLma | kEferLme)) == wide;
}

// [intel/vol3] "Checks on Host Segment and Descriptor-Table Registers"
bool HostSegmentsFit(const EntryContext& context) {
  constexpr Field kSelectors[] = {field::kHostEs, field::kHostCs, field::kHostSs, field::kHostDs,
                                  field::kHostFs, field::kHostGs, field::kHostTr};
  constexpr Field kBases[] = {field::kHostFsBase, field::kHostGsBase, field::kHostTrBase,
                              field::kHostGdtrBase, field::kHostIdtrBase};
  const Vmcs& vmcs = context.vmcs;
  for (const Field selector : kSelectors) {
    if ((vmcs.Get(selector) & 7) != 0) return false;
  }
  for (const Field base : kBases) {
    if (!IsCanonicalField(context, base)) return false;
  }
  return vmcs.Get(field::kHostCs) != 0 && vmcs.Get(field::kHostTr) != 0 &&
         (context.controls.host_64() || vmcs.Get(field::kHostSs) != 0);
}

// [intel/vol3] "Checks Related to Address-Space Size"
bool AddressSpaceFits(const EntryContext& context, const CpuState& state) {
  const Controls& controls = context.controls;
  const bool wide_now = (state.efer & kEferLma) != 0;
  if (wide_now != controls.host_64() || (controls.guest_64() && !controls.host_64())) return false;
  const std::uint64_t cr4 = context.vmcs.Get(field::kHostCr4);
  const std::uint64_t rip = context.vmcs.Get(field::kHostRip);
  if (!controls.host_64()) return (cr4 & kCr4Pcide) == 0 && rip >> 32 == 0;
  return (cr4 & kCr4Pae) != 0 && IsCanonical(Gva(rip), (cr4 & kCr4La57) != 0 ? 57 : 48);
}

}  // namespace

bool CetFits(const EntryContext& context, const CetImage& image) {
  constexpr std::uint64_t kReserved = 0x3c0, kSuppress = 1u << 10, kTracker = 1u << 11;
  const unsigned bits = context.limits.linear_bits;
  const bool both = (image.supervisor & kSuppress) != 0 && (image.supervisor & kTracker) != 0;
  if ((image.supervisor & kReserved) != 0 || both || (image.ssp & 3) != 0) return false;
  return IsCanonical(Gva(image.supervisor), bits) &&
         IsCanonical(Gva(image.interrupt_ssp_table), bits) &&
         (image.wide ? IsCanonical(Gva(image.ssp), bits) : image.ssp >> 32 == 0);
}

bool ControlsFit(const EntryContext& context) {
  return ExecutionControlsFit(context) && ExitControlsFit(context) && EntryControlsFit(context);
}

bool HostStateFits(const EntryContext& context, const CpuState& state) {
  return HostRegistersFit(context) && HostSegmentsFit(context) && AddressSpaceFits(context, state);
}

}  // namespace pagesaw::vmx
