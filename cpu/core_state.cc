module;
#include <algorithm>
module pagesaw.cpu.core_state;

namespace pagesaw::cpu {

CpuState StateOf(const Core& core) {
  CpuState state;
  std::copy_n(core.gpr.begin(), state.gpr.size(), state.gpr.begin());
  state.rip = core.rip;
  state.rflags = core.Rflags();
  state.segments = core.segments;
  state.gdtr = core.gdtr;
  state.idtr = core.idtr;
  state.cr0 = core.cr0;
  state.cr2 = core.cr2;
  state.cr3 = core.cr3;
  state.cr4 = core.cr4;
  state.efer = core.efer;
  state.xcr0 = core.xcr0;
  state.xss = core.xss;
  state.extended = core.extended;
  state.pdptes = core.pdptes;
  state.dr = core.dr;
  state.dr6 = core.dr6;
  state.dr7 = core.dr7;
  state.pkru = core.pkru;
  state.pkrs = core.pkrs;
  state.star = core.star;
  state.lstar = core.lstar;
  state.cstar = core.cstar;
  state.sfmask = core.sfmask;
  state.kernel_gs_base = core.kernel_gs_base;
  state.sysenter_cs = core.sysenter_cs;
  state.sysenter_esp = core.sysenter_esp;
  state.sysenter_eip = core.sysenter_eip;
  state.pat = core.pat;
  state.tsc_aux = core.tsc_aux;
  state.cet = core.cet;
  state.activity = core.activity;
  state.interrupt_shadow = core.interrupt_shadow;
  state.nmi_blocked = core.nmi_blocked;
  return state;
}

void LoadState(Core& core, const CpuState& state) {
  std::copy(state.gpr.begin(), state.gpr.end(), core.gpr.begin());
  core.rip = state.rip;
  core.SetRflags(state.rflags);
  core.segments = state.segments;
  core.gdtr = state.gdtr;
  core.idtr = state.idtr;
  core.cr0 = state.cr0;
  core.cr2 = state.cr2;
  core.cr3 = state.cr3;
  core.cr4 = state.cr4;
  core.efer = state.efer;
  core.xcr0 = state.xcr0;
  core.xss = state.xss;
  core.pdptes = state.pdptes;
  core.dr = state.dr;
  core.dr6 = state.dr6;
  core.dr7 = state.dr7;
  core.pkru = state.pkru;
  core.pkrs = state.pkrs;
  core.star = state.star;
  core.lstar = state.lstar;
  core.cstar = state.cstar;
  core.sfmask = state.sfmask;
  core.kernel_gs_base = state.kernel_gs_base;
  core.sysenter_cs = state.sysenter_cs;
  core.sysenter_esp = state.sysenter_esp;
  core.sysenter_eip = state.sysenter_eip;
  core.pat = state.pat;
  core.tsc_aux = state.tsc_aux;
  core.cet = state.cet;
  core.activity = state.activity;
  core.interrupt_shadow = state.interrupt_shadow;
  core.nmi_blocked = state.nmi_blocked;
}

}  // namespace pagesaw::cpu
