// The instructions of VMX but for VM entries. [intel/vol3] "VMX Instruction Reference"
module;
#include <cstddef>
#include <cstdint>
#include <optional>
module pagesaw.plugins.vmx.unit;

import pagesaw.core.paging_state;

namespace pagesaw::vmx {
namespace {

bool IsWide(const CpuState& state) {
  return (state.efer & kEferLma) != 0 && state.segments[kCs].long_mode();
}

// Where no instruction of VMX exists: real and virtual-8086 mode, compatibility mode.
bool IsWrongMode(const CpuState& state) {
  const bool compatibility = (state.efer & kEferLma) != 0 && !state.segments[kCs].long_mode();
  return (state.cr0 & kCr0Pe) == 0 || (state.rflags & kFlagVm) != 0 || compatibility;
}

std::uint64_t GprAt(const VirtHost& host, std::uint8_t number, bool wide) {
  const std::uint64_t value = host.gpr(static_cast<Gpr>(number));
  return wide ? value : static_cast<std::uint32_t>(value);
}

// Whether a region of 4 KiB may lie there.
bool IsRegion(const VirtHost& host, std::uint64_t address) {
  return address % kPageBytes == 0 && address >> host.limits().physical_bits == 0;
}

Vmcs VmcsAt(VirtHost& host, Gpa region) { return Vmcs(host.Memory(region, kPageBytes)); }

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
  const CpuState state = host.State();
  const bool wide = IsWide(state);
  const bool is_vmxon = event.instruction == VirtInstruction::kVmxon;
  if (is_vmxon ? (state.cr4 & kCr4Vmxe) == 0 : !operation_) return host.RaiseUndefined();
  switch (event.instruction) {
    case VirtInstruction::kVmcall:
      if (host.guest_mode()) return host.LeaveFor(event);
      break;
    case VirtInstruction::kVmfunc:  // no control turns VM functions on
    case VirtInstruction::kInvept:
      return host.RaiseUndefined();
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
  if (IsWrongMode(state)) return host.RaiseUndefined();
  if (host.guest_mode()) return host.LeaveFor(event);
  if (state.cpl() != 0) return host.RaiseGeneralProtection();
  switch (event.instruction) {
    case VirtInstruction::kVmcall:
      return Fail(host, InstructionError::kVmcallInRoot);
    case VirtInstruction::kVmclear:
      return Vmclear(host);
    case VirtInstruction::kVmlaunch:
      return Launch(host, state, false);
    case VirtInstruction::kVmptrld:
      return Vmptrld(host);
    case VirtInstruction::kVmptrst:
      return Vmptrst(host);
    case VirtInstruction::kVmread:
      return Vmread(host, event, wide);
    case VirtInstruction::kVmresume:
      return Launch(host, state, true);
    case VirtInstruction::kVmwrite:
      return Vmwrite(host, event, wide);
    case VirtInstruction::kVmxoff:
      return Vmxoff(host);
    case VirtInstruction::kVmxon:
      return Vmxon(host, state);
    default:
      return Invvpid(host, event, wide);
  }
}

bool VmxUnit::Vmxon(VirtHost& host, const CpuState& state) {
  if (operation_) return Fail(host, InstructionError::kVmxonInRoot);
  const Capabilities capabilities(host);
  if (!capabilities.cr0().Allows(state.cr0) || !capabilities.cr4().Allows(state.cr4)) {
    return host.RaiseGeneralProtection();
  }
  std::uint64_t region = 0;
  if (!host.LoadOperand(&region, sizeof(region))) return false;
  if (!IsRegion(host, region) || VmcsAt(host, Gpa(region)).revision() != kRevision) {
    return FailInvalid(host);
  }
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
  if (VmcsAt(host, Gpa(region)).revision() != kRevision) {
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

bool VmxUnit::Vmread(VirtHost& host, const InterceptedEvent& event, bool wide) {
  if (!operation_->current) return FailInvalid(host);
  const std::uint64_t encoding = GprAt(host, event.memory ? event.gpr : event.second_gpr, wide);
  const std::optional<Field> field = Field::Find(encoding & ~std::uint64_t{1});
  const bool high = (encoding & 1) != 0;
  if (!field || (high && !field->is_64_bit())) {
    return Fail(host, InstructionError::kUnsupportedField);
  }
  std::uint64_t value = CurrentVmcs(host).Get(*field) >> (high ? 32 : 0);
  if (!wide) value = static_cast<std::uint32_t>(value);
  if (event.memory) {
    return host.StoreOperand(&value, wide ? 8 : 4) && Succeed(host);
  }
  host.SetGpr(static_cast<Gpr>(event.gpr), value);
  return Succeed(host);
}

bool VmxUnit::Vmwrite(VirtHost& host, const InterceptedEvent& event, bool wide) {
  if (!operation_->current) return FailInvalid(host);
  std::uint64_t value = 0;
  if (!event.memory) {
    value = GprAt(host, event.second_gpr, wide);
  } else if (!host.LoadOperand(&value, wide ? 8 : 4)) {
    return false;
  }
  const std::uint64_t encoding = GprAt(host, event.gpr, wide);
  const std::optional<Field> field = Field::Find(encoding & ~std::uint64_t{1});
  const bool high = (encoding & 1) != 0;
  if (!field || (high && !field->is_64_bit())) {
    return Fail(host, InstructionError::kUnsupportedField);
  }
  Vmcs vmcs = CurrentVmcs(host);
  if (high) value = (vmcs.Get(*field) & 0xffff'ffff) | value << 32;
  vmcs.Set(*field, value);
  host.Wrote(*operation_->current);
  return Succeed(host);
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
