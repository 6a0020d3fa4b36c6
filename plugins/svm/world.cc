module;
#include <cstdint>
#include <optional>
module pagesaw.plugins.svm.world;

import pagesaw.core.guest_structures;
import pagesaw.core.paging_state;
import pagesaw.core.register_values;
import pagesaw.plugins.svm.nested_paging;

namespace pagesaw::svm {
namespace {

struct SwitchedSegment {
  SegmentName name;
  SegmentField field;
};
constexpr SwitchedSegment kSwitched[] = {
    {kEs, SegmentField::kEs},
    {kCs, SegmentField::kCs},
    {kSs, SegmentField::kSs},
    {kDs, SegmentField::kDs},
};
constexpr SwitchedSegment kLoaded[] = {
    {kFs, SegmentField::kFs},
    {kGs, SegmentField::kGs},
    {kTr, SegmentField::kTr},
    {kLdtr, SegmentField::kLdtr},
};

constexpr std::uint64_t kCr0Et = 1u << 4;

void SetCpl(CpuState& state, unsigned cpl) {
  Segment& stack = state.segments[kSs];
  stack.attributes = static_cast<std::uint16_t>((stack.attributes & ~0x60u) | cpl << 5);
}

unsigned CplOf(const Vmcb& vmcb, const CpuState& state) {
  if ((state.cr0 & kCr0Pe) == 0) return 0;
  return (state.rflags & kFlagVm) != 0 ? 3 : vmcb.Get(field::kCpl) & 3;
}

}  // namespace

std::optional<CpuState> GuestState(VirtHost& host, const Vmcb& vmcb, const CpuState& state) {
  CpuState guest = state;
  for (const auto& [name, field] : kSwitched) guest.segments[name] = vmcb.GetSegment(field);
  guest.gdtr = vmcb.GetTable(SegmentField::kGdtr);
  guest.idtr = vmcb.GetTable(SegmentField::kIdtr);
  guest.cr0 = (vmcb.Get(field::kCr0) & host.limits().cr0) | kCr0Et;
  guest.cr2 = vmcb.Get(field::kCr2);
  guest.cr3 = vmcb.Get(field::kCr3);
  guest.cr4 = vmcb.Get(field::kCr4);
  guest.efer = vmcb.Get(field::kEfer) & ~kEferLma;
  if ((guest.efer & kEferLme) != 0 && (guest.cr0 & kCr0Pg) != 0) guest.efer |= kEferLma;
  guest.dr6 = (vmcb.Get(field::kDr6) & kDr6Writable) | kDr6Fixed;
  guest.dr7 = (vmcb.Get(field::kDr7) & kDr7Writable) | kDr7Fixed;
  guest.rflags = (vmcb.Get(field::kRflags) & kRflagsKnown) | kFlagFixed;
  if ((guest.efer & kEferLma) != 0) guest.rflags &= ~kFlagVm;
  guest.rip = vmcb.Get(field::kRip);
  const bool wide = (guest.efer & kEferLma) != 0 && guest.segments[kCs].long_mode();
  if (!wide) guest.rip = static_cast<std::uint32_t>(guest.rip);
  guest.gpr[kRsp] = vmcb.Get(field::kRsp);
  guest.gpr[kRax] = vmcb.Get(field::kRax);
  // [amd/vol2] "Shadow Stacks", of VMRUN
  if ((host.limits().cr4 & kCr4Cet) != 0) {
    guest.cet.supervisor = vmcb.Get(field::kSupervisorCet);
    guest.cet.ssp = vmcb.Get(field::kSsp);
    guest.cet.interrupt_ssp_table = vmcb.Get(field::kInterruptSspTable);
  }
  guest.interrupt_shadow = (vmcb.Get(field::kInterruptState) & 1) != 0;
  const unsigned bits = host.limits().linear_bits;
  for (const auto& [name, field] : kSwitched) {
    guest.segments[name].base = MadeCanonical(guest.segments[name].base, bits);
  }
  guest.gdtr.base = MadeCanonical(guest.gdtr.base, bits);
  guest.idtr.base = MadeCanonical(guest.idtr.base, bits);
  SetCpl(guest, CplOf(vmcb, guest));
  // With nested paging every walk reads the PDPTEs. [amd/vol2] "Legacy PAE Mode"
  if (!EnablesNestedPaging(vmcb, host.limits()) && !LoadPdptes(host, guest)) return std::nullopt;
  return guest;
}

void SaveGuestState(Vmcb& vmcb, const CpuState& state) {
  for (const auto& [name, field] : kSwitched) vmcb.SetSegment(field, state.segments[name]);
  vmcb.SetTable(SegmentField::kGdtr, state.gdtr);
  vmcb.SetTable(SegmentField::kIdtr, state.idtr);
  vmcb.Set(field::kEfer, state.efer);
  vmcb.Set(field::kCr0, state.cr0);
  vmcb.Set(field::kCr2, state.cr2);
  vmcb.Set(field::kCr3, state.cr3);
  vmcb.Set(field::kCr4, state.cr4);
  vmcb.Set(field::kDr6, state.dr6);
  vmcb.Set(field::kDr7, state.dr7);
  vmcb.Set(field::kRflags, state.rflags);
  vmcb.Set(field::kRip, state.rip);
  vmcb.Set(field::kRsp, state.gpr[kRsp]);
  vmcb.Set(field::kRax, state.gpr[kRax]);
  vmcb.Set(field::kSupervisorCet, state.cet.supervisor);
  vmcb.Set(field::kSsp, state.cet.ssp);
  vmcb.Set(field::kInterruptSspTable, state.cet.interrupt_ssp_table);
  vmcb.Set(field::kCpl, state.cpl());
  vmcb.Set(field::kInterruptState, state.interrupt_shadow ? 1 : 0);
}

CpuState HypervisorState(const CpuState& state, const CpuState& hypervisor) {
  CpuState next = state;
  for (const auto& [name, unused] : kSwitched) next.segments[name] = hypervisor.segments[name];
  next.gdtr = hypervisor.gdtr;
  next.idtr = hypervisor.idtr;
  next.efer = hypervisor.efer;
  next.cr0 = hypervisor.cr0 | kCr0Pe;
  next.cr3 = hypervisor.cr3;
  next.cr4 = hypervisor.cr4;
  next.pdptes = hypervisor.pdptes;
  next.cet.supervisor = hypervisor.cet.supervisor;
  next.cet.ssp = hypervisor.cet.ssp;
  next.cet.interrupt_ssp_table = hypervisor.cet.interrupt_ssp_table;
  next.dr7 = kDr7Fixed;
  next.rflags = hypervisor.rflags & ~kFlagVm;
  next.rip = hypervisor.rip;
  next.gpr[kRsp] = hypervisor.gpr[kRsp];
  next.gpr[kRax] = hypervisor.gpr[kRax];
  next.interrupt_shadow = false;
  next.activity = Activity::kActive;
  return next;
}

CpuState WithLoaded(const CpuState& state, const Vmcb& vmcb, const RegisterLimits& limits) {
  CpuState next = state;
  for (const auto& [name, field] : kLoaded) {
    next.segments[name] = vmcb.GetSegment(field);
    next.segments[name].base = MadeCanonical(next.segments[name].base, limits.linear_bits);
  }
  next.kernel_gs_base = MadeCanonical(vmcb.Get(field::kKernelGsBase), limits.linear_bits);
  next.star = vmcb.Get(field::kStar);
  next.lstar = MadeCanonical(vmcb.Get(field::kLstar), limits.linear_bits);
  next.cstar = MadeCanonical(vmcb.Get(field::kCstar), limits.linear_bits);
  next.sfmask = vmcb.Get(field::kSfmask);
  next.sysenter_cs = vmcb.Get(field::kSysenterCs);
  next.sysenter_esp = MadeCanonical(vmcb.Get(field::kSysenterEsp), limits.linear_bits);
  next.sysenter_eip = MadeCanonical(vmcb.Get(field::kSysenterEip), limits.linear_bits);
  return next;
}

void SaveMore(Vmcb& vmcb, const CpuState& state) {
  for (const auto& [name, field] : kLoaded) vmcb.SetSegment(field, state.segments[name]);
  vmcb.Set(field::kKernelGsBase, state.kernel_gs_base);
  vmcb.Set(field::kStar, state.star);
  vmcb.Set(field::kLstar, state.lstar);
  vmcb.Set(field::kCstar, state.cstar);
  vmcb.Set(field::kSfmask, state.sfmask);
  vmcb.Set(field::kSysenterCs, state.sysenter_cs);
  vmcb.Set(field::kSysenterEsp, state.sysenter_esp);
  vmcb.Set(field::kSysenterEip, state.sysenter_eip);
}

}  // namespace pagesaw::svm
