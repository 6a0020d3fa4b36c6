// The instructions of VMX but for VM entries. [intel/vol3] "VMX Instruction Reference"
module;
#include <cstddef>
#include <cstdint>
#include <optional>
module pagesaw.plugins.vmx.unit;

import pagesaw.core.guest_structures;

namespace pagesaw::vmx {
namespace {

// Where no instruction of VMX exists: real and virtual-8086 mode, compatibility mode.
bool IsWrongMode(const CpuMode& mode) { return !mode.protected_mode() || mode.compatibility(); }

std::uint64_t GprAt(const VirtHost& host, std::uint8_t number, bool wide) {
  const std::uint64_t value = host.gpr(static_cast<Gpr>(number));
  return wide ? value : static_cast<std::uint32_t>(value);
}

// Whether a region of 4 KiB may lie there.
bool IsRegion(const VirtHost& host, std::uint64_t address) {
  return address % kPageBytes == 0 && address >> host.limits().physical_bits == 0;
}

Vmcs VmcsAt(VirtHost& host, Gpa region) { return Vmcs(host.Memory(region, kPageBytes)); }

// A field by an encoding in a register: the whole, or the upper half of one of 64 bits.
struct FieldAccess {
  Field field;
  bool high;

  std::uint64_t Read(const Vmcs& vmcs, bool wide) const {
    const std::uint64_t value = vmcs.Get(field) >> (high ? 32 : 0);
    return wide ? value : static_cast<std::uint32_t>(value);
  }
  void Write(Vmcs& vmcs, std::uint64_t value) const {
    vmcs.Set(field, high ? (vmcs.Get(field) & 0xffff'ffff) | value << 32 : value);
  }
};

// Which register names the field.
std::uint8_t EncodingGpr(const InterceptedEvent& event) {
  const bool first = event.memory || event.instruction == VirtInstruction::kVmwrite;
  return first ? event.gpr : event.second_gpr;
}

std::optional<FieldAccess> FieldAccessOf(std::uint64_t encoding) {
  const std::optional<Field> field = Field::Find(encoding & ~std::uint64_t{1});
  const bool high = (encoding & 1) != 0;
  if (!field || (high && !field->is_64_bit())) return std::nullopt;
  return FieldAccess{*field, high};
}

bool FailInvalid(VirtHost& host) {
  host.SetArithmeticFlags(kFlagCf);
  return true;
}

}  // namespace

bool VmxUnit::Succeed(VirtHost& host) {
  host.SetArithmeticFlags(0);
  return true;
}

bool VmxUnit::Fail(VirtHost& host, InstructionError error) {
  if (!operation_->current) return FailInvalid(host);
  CurrentVmcs(host).Set(field::kInstructionError, static_cast<std::uint64_t>(error));
  host.Wrote(*operation_->current);
  host.SetArithmeticFlags(kFlagZf);
  return true;
}

Vmcs VmxUnit::CurrentVmcs(VirtHost& host) const { return VmcsAt(host, *operation_->current); }

bool VmxUnit::Execute(VirtHost& host, const InterceptedEvent& event) {
  const CpuMode mode = host.mode();
  const bool wide = mode.code_64;
  const bool is_vmxon = event.instruction == VirtInstruction::kVmxon;
  if (is_vmxon ? (mode.cr4 & kCr4Vmxe) == 0 : !operation_) return host.RaiseUndefined();
  switch (event.instruction) {
    case VirtInstruction::kVmcall:
      if (host.guest_mode()) return host.LeaveFor(event);
      break;
    case VirtInstruction::kVmfunc:
      return Vmfunc(host, event);
    case VirtInstruction::kInvept:
      if (!operation_->capabilities.has_ept()) return host.RaiseUndefined();
      break;
    case VirtInstruction::kVmclear:
    case VirtInstruction::kVmlaunch:
    case VirtInstruction::kVmptrld:
    case VirtInstruction::kVmptrst:
    case VirtInstruction::kVmread:
    case VirtInstruction::kVmresume:
    case VirtInstruction::kVmwrite:
    case VirtInstruction::kVmxoff:
    case VirtInstruction::kVmxon:
    case VirtInstruction::kInvvpid:
      break;
    default:
      return host.RaiseUndefined();
  }
  if (IsWrongMode(mode)) return host.RaiseUndefined();
  const bool shadowed = host.guest_mode() && IsShadowed(host, event, wide);
  if (host.guest_mode() && !shadowed) return host.LeaveFor(event);
  if (mode.cpl != 0) return host.RaiseGeneralProtection();
  switch (event.instruction) {
    case VirtInstruction::kVmcall:
      return Fail(host, InstructionError::kVmcallInRoot);
    case VirtInstruction::kInvept:
      return Invept(host, event, wide);
    case VirtInstruction::kVmclear:
      return Vmclear(host);
    case VirtInstruction::kVmlaunch:
      return Launch(host, false);
    case VirtInstruction::kVmptrld:
      return Vmptrld(host);
    case VirtInstruction::kVmptrst:
      return Vmptrst(host);
    case VirtInstruction::kVmread:
      return Vmread(host, event, wide);
    case VirtInstruction::kVmresume:
      return Launch(host, true);
    case VirtInstruction::kVmwrite:
      return Vmwrite(host, event, wide);
    case VirtInstruction::kVmxoff:
      return Vmxoff(host);
    case VirtInstruction::kVmxon:
      return Vmxon(host, mode);
    default:
      return Invvpid(host, event, wide);
  }
}

bool VmxUnit::Vmxon(VirtHost& host, const CpuMode& mode) {
  if (operation_) return Fail(host, InstructionError::kVmxonInRoot);
  const Capabilities capabilities(host, split_ != nullptr);
  if (!capabilities.cr0().Allows(mode.cr0) || !capabilities.cr4().Allows(mode.cr4)) {
    return host.RaiseGeneralProtection();
  }
  std::uint64_t region = 0;
  if (!host.LoadOperand(&region, sizeof(region))) return false;
  const Vmcs at = IsRegion(host, region) ? VmcsAt(host, Gpa(region)) : Vmcs();
  if (!at || at.revision() != kRevision || at.is_shadow()) return FailInvalid(host);
  operation_ = Operation{.region = Gpa(region), .current = {}, .capabilities = capabilities};
  host.SetFixedControls(capabilities.cr0().required, capabilities.cr4().required);
  host.interrupts() = {.init_open = false};
  return Succeed(host);
}

bool VmxUnit::Vmxoff(VirtHost& host) {
  operation_.reset();
  host.SetFixedControls(0, 0);
  host.interrupts() = {};
  return Succeed(host);
}

bool VmxUnit::Vmclear(VirtHost& host) {
  std::uint64_t region = 0;
  if (!host.LoadOperand(&region, sizeof(region))) return false;
  if (!IsRegion(host, region)) return Fail(host, InstructionError::kVmclearAddress);
  if (Gpa(region) == operation_->region) return Fail(host, InstructionError::kVmclearVmxonPointer);
  VmcsAt(host, Gpa(region)).set_launched(false);
  host.Wrote(Gpa(region));
  if (operation_->current == Gpa(region)) operation_->current.reset();
  return Succeed(host);
}

bool VmxUnit::Vmptrld(VirtHost& host) {
  std::uint64_t region = 0;
  if (!host.LoadOperand(&region, sizeof(region))) return false;
  if (!IsRegion(host, region)) return Fail(host, InstructionError::kVmptrldAddress);
  if (Gpa(region) == operation_->region) return Fail(host, InstructionError::kVmptrldVmxonPointer);
  // A shadow VMCS may become current, too.
  const Vmcs vmcs = VmcsAt(host, Gpa(region));
  if (!vmcs || vmcs.revision() != kRevision) {
    return Fail(host, InstructionError::kVmptrldRevision);
  }
  operation_->current = Gpa(region);
  return Succeed(host);
}

bool VmxUnit::Vmptrst(VirtHost& host) {
  const std::uint64_t region =
      operation_->current ? operation_->current->bits() : ~std::uint64_t{0};
  return host.StoreOperand(&region, sizeof(region)) && Succeed(host);
}

// In the guest: whether VMREAD or VMWRITE is one of the shadow VMCS. [intel/vol3] "VMREAD-Bitmap
// Address"
bool VmxUnit::IsShadowed(VirtHost& host, const InterceptedEvent& event, bool wide) const {
  constexpr std::uint64_t kEncodings = 0x8000;
  if (!controls_.HasSecondary(secondary::kVmcsShadowing)) return false;
  const bool reads = event.instruction == VirtInstruction::kVmread;
  if (!reads && event.instruction != VirtInstruction::kVmwrite) return false;
  const std::uint64_t encoding = GprAt(host, EncodingGpr(event), wide);
  const Field bitmap = reads ? field::kVmreadBitmap : field::kVmwriteBitmap;
  return encoding < kEncodings && !BitmapBit(host, CurrentVmcs(host).Page(bitmap), encoding);
}

// The VMCS that VMREAD and VMWRITE are about: the current one, or in the guest the shadow.
std::optional<Gpa> VmxUnit::AccessedVmcs(VirtHost& host) const {
  if (!host.guest_mode()) return operation_->current;
  const Vmcs vmcs = CurrentVmcs(host);
  if (vmcs.Get(field::kLinkPointer) == ~std::uint64_t{0}) return std::nullopt;
  return vmcs.Page(field::kLinkPointer);
}

bool VmxUnit::Vmread(VirtHost& host, const InterceptedEvent& event, bool wide) {
  const std::optional<Gpa> region = AccessedVmcs(host);
  if (!region) return FailInvalid(host);
  const std::optional<FieldAccess> access = FieldAccessOf(GprAt(host, EncodingGpr(event), wide));
  if (!access) return Fail(host, InstructionError::kUnsupportedField);
  const std::uint64_t value = access->Read(VmcsAt(host, *region), wide);
  if (event.memory) return host.StoreOperand(&value, wide ? 8 : 4) && Succeed(host);
  host.SetGpr(static_cast<Gpr>(event.gpr), value);
  return Succeed(host);
}

bool VmxUnit::Vmwrite(VirtHost& host, const InterceptedEvent& event, bool wide) {
  const std::optional<Gpa> region = AccessedVmcs(host);
  if (!region) return FailInvalid(host);
  std::uint64_t value = 0;
  if (!event.memory) {
    value = GprAt(host, event.second_gpr, wide);
  } else if (!host.LoadOperand(&value, wide ? 8 : 4)) {
    return false;
  }
  const std::optional<FieldAccess> access = FieldAccessOf(GprAt(host, EncodingGpr(event), wide));
  if (!access) return Fail(host, InstructionError::kUnsupportedField);
  Vmcs vmcs = VmcsAt(host, *region);
  access->Write(vmcs, value);
  host.Wrote(*region);
  return Succeed(host);
}

bool VmxUnit::Invept(VirtHost& host, const InterceptedEvent& event, bool wide) {
  enum Type : std::uint64_t { kSingle = 1, kAll = 2 };
  struct Descriptor {
    std::uint64_t pointer = 0, reserved = 0;
  } descriptor;
  const std::uint64_t type = GprAt(host, event.gpr, wide);
  if (type != kSingle && type != kAll) return Fail(host, InstructionError::kInvalidOperand);
  if (!host.LoadOperand(&descriptor, sizeof(descriptor))) return false;
  const unsigned physical_bits = host.limits().physical_bits;
  if (type == kAll) {
    host.InvalidateNested({});
  } else if (IsEptPointer(descriptor.pointer, operation_->capabilities, physical_bits)) {
    host.InvalidateNested({.scope = NestedInvalidation::Scope::kRoot,
                           .root = EptOf(descriptor.pointer, physical_bits, nullptr).root});
  } else {
    return Fail(host, InstructionError::kInvalidOperand);
  }
  return Succeed(host);
}

// In the guest, at any privilege. [intel/vol3] "VM Functions"
bool VmxUnit::Vmfunc(VirtHost& host, const InterceptedEvent& event) {
  constexpr std::uint32_t kSwitchEpt = 0, kFunctions = 64;
  if (!host.guest_mode() || !controls_.HasSecondary(secondary::kVmFunctions)) {
    return host.RaiseUndefined();
  }
  const auto function = static_cast<std::uint32_t>(host.gpr(kRax));
  const std::uint64_t enabled = CurrentVmcs(host).Get(field::kVmFunctionControls);
  const bool has = function < kFunctions && (enabled >> function & 1) != 0;
  if (!has || function != kSwitchEpt ||
      !SwitchEpt(host, static_cast<std::uint32_t>(host.gpr(kRcx)))) {
    return host.LeaveFor(event);
  }
  return true;
}

bool VmxUnit::SwitchEpt(VirtHost& host, std::uint32_t index) {
  constexpr std::uint32_t kEntries = 512;
  if (index >= kEntries) return false;
  Vmcs vmcs = CurrentVmcs(host);
  const std::optional<std::uint64_t> pointer =
      LoadWord(host, vmcs.Page(field::kEptPointerList, 8 * std::uint64_t{index}));
  if (!pointer || !IsEptPointer(*pointer, operation_->capabilities, host.limits().physical_bits)) {
    return false;
  }
  vmcs.Set(field::kEptPointer, *pointer);
  if (controls_.HasSecondary(secondary::kViolationException)) {
    vmcs.Set(field::kEptPointerIndex, index);
  }
  host.Wrote(*operation_->current);
  entry_.nested = EptOfGuest(host, *pointer);
  host.EnterGuestMode(entry_);
  host.FlushTranslations();
  return true;
}

// All translations are forgotten, whatever is asked for.
bool VmxUnit::Invvpid(VirtHost& host, const InterceptedEvent& event, bool wide) {
  enum Type : std::uint64_t { kAddress, kSingle, kAll, kSingleButGlobals };
  struct Descriptor {
    std::uint64_t vpid = 0, linear = 0;
  } descriptor;
  const std::uint64_t type = GprAt(host, event.gpr, wide);
  if (type > kSingleButGlobals) return Fail(host, InstructionError::kInvalidOperand);
  if (!host.LoadOperand(&descriptor, sizeof(descriptor))) return false;
  const bool names_vpid = type != kAll;
  const bool canonical = IsCanonical(Gva(descriptor.linear), host.limits().linear_bits);
  if (descriptor.vpid >> 16 != 0 || (names_vpid && descriptor.vpid == 0) ||
      (type == kAddress && !canonical)) {
    return Fail(host, InstructionError::kInvalidOperand);
  }
  host.FlushTranslations();
  return Succeed(host);
}

}  // namespace pagesaw::vmx
