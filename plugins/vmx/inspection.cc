module;
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
module pagesaw.plugins.vmx.inspection;

import pagesaw.plugins.vmx.controls;
import pagesaw.plugins.vmx.vmx_bits;

namespace pagesaw::vmx {
namespace {

constexpr StructureBit kPrimary[] = {{primary::kInvlpg, "INVLPG exiting"},
                                     {primary::kCr3Load, "CR3-load exiting"},
                                     {primary::kCr3Store, "CR3-store exiting"},
                                     {primary::kTprShadow, "use TPR shadow"},
                                     {primary::kSecondary, "activate secondary controls"}};
constexpr StructureBit kSecondary[] = {
    {secondary::kApicAccesses, "virtualize APIC accesses"},
    {secondary::kEpt, "enable EPT"},
    {secondary::kVpid, "enable VPID"},
    {secondary::kUnrestrictedGuest, "unrestricted guest"},
    {secondary::kApicRegisters, "APIC-register virtualization"},
    {secondary::kInvpcid, "enable INVPCID"},
    {secondary::kVmFunctions, "enable VM functions"},
    {secondary::kVmcsShadowing, "VMCS shadowing"},
    {secondary::kPageModificationLog, "enable PML"},
    {secondary::kViolationException, "EPT-violation #VE"},
    {secondary::kModeBasedExecute, "mode-based execute control for EPT"}};
constexpr StructureBit kExit[] = {{exits::kHost64, "host address-space size"},
                                  {exits::kSavePat, "save IA32_PAT"},
                                  {exits::kLoadPat, "load IA32_PAT"},
                                  {exits::kSaveEfer, "save IA32_EFER"},
                                  {exits::kLoadEfer, "load IA32_EFER"}};
constexpr StructureBit kEntry[] = {{entry::kGuest64, "IA-32e mode guest"},
                                   {entry::kLoadPat, "load IA32_PAT"},
                                   {entry::kLoadEfer, "load IA32_EFER"}};
constexpr StructureBit kFunctions[] = {{kEptpSwitching, "EPTP switching"}};
constexpr StructureBit kExceptions[] = {{1u << 14, "#PF"}};

// [intel/vol3] "Extended-Page-Table Pointer (EPTP)"
std::string PointerText(std::uint64_t pointer) {
  constexpr std::uint64_t kAccessedDirty = 1u << 6;
  const std::string levels = std::to_string((pointer >> 3 & 7) + 1) + " levels";
  return levels + ((pointer & kAccessedDirty) != 0 ? ", accessed and dirty flags" : "");
}

// Of those that our processor has. [intel/vol3] "VMX Basic Exit Reasons"
struct ReasonName {
  ExitReason reason;
  const char* name;
};
constexpr ReasonName kReasons[] = {
    {ExitReason::kExceptionOrNmi, "exception or NMI"},
    {ExitReason::kExternalInterrupt, "external interrupt"},
    {ExitReason::kTripleFault, "triple fault"},
    {ExitReason::kInit, "INIT signal"},
    {ExitReason::kStartUp, "SIPI"},
    {ExitReason::kInterruptWindow, "interrupt window"},
    {ExitReason::kNmiWindow, "NMI window"},
    {ExitReason::kTaskSwitch, "task switch"},
    {ExitReason::kCpuid, "CPUID"},
    {ExitReason::kHlt, "HLT"},
    {ExitReason::kInvd, "INVD"},
    {ExitReason::kInvlpg, "INVLPG"},
    {ExitReason::kRdpmc, "RDPMC"},
    {ExitReason::kRdtsc, "RDTSC"},
    {ExitReason::kVmcall, "VMCALL"},
    {ExitReason::kVmclear, "VMCLEAR"},
    {ExitReason::kVmlaunch, "VMLAUNCH"},
    {ExitReason::kVmptrld, "VMPTRLD"},
    {ExitReason::kVmptrst, "VMPTRST"},
    {ExitReason::kVmread, "VMREAD"},
    {ExitReason::kVmresume, "VMRESUME"},
    {ExitReason::kVmwrite, "VMWRITE"},
    {ExitReason::kVmxoff, "VMXOFF"},
    {ExitReason::kVmxon, "VMXON"},
    {ExitReason::kControlRegister, "control-register access"},
    {ExitReason::kMovDr, "MOV DR"},
    {ExitReason::kIo, "I/O instruction"},
    {ExitReason::kRdmsr, "RDMSR"},
    {ExitReason::kWrmsr, "WRMSR"},
    {ExitReason::kInvalidGuestState, "VM-entry failure due to invalid guest state"},
    {ExitReason::kMsrLoading, "VM-entry failure due to MSR loading"},
    {ExitReason::kMwait, "MWAIT"},
    {ExitReason::kMonitorTrap, "monitor trap flag"},
    {ExitReason::kMonitor, "MONITOR"},
    {ExitReason::kPause, "PAUSE"},
    {ExitReason::kTprBelowThreshold, "TPR below threshold"},
    {ExitReason::kApicAccess, "APIC access"},
    {ExitReason::kVirtualizedEoi, "virtualized EOI"},
    {ExitReason::kGdtrOrIdtr, "access to GDTR or IDTR"},
    {ExitReason::kLdtrOrTr, "access to LDTR or TR"},
    {ExitReason::kEptViolation, "EPT violation"},
    {ExitReason::kEptMisconfiguration, "EPT misconfiguration"},
    {ExitReason::kInvept, "INVEPT"},
    {ExitReason::kRdtscp, "RDTSCP"},
    {ExitReason::kPreemptionTimer, "VMX-preemption timer expired"},
    {ExitReason::kInvvpid, "INVVPID"},
    {ExitReason::kWbinvd, "WBINVD or WBNOINVD"},
    {ExitReason::kXsetbv, "XSETBV"},
    {ExitReason::kApicWrite, "APIC write"},
    {ExitReason::kRdrand, "RDRAND"},
    {ExitReason::kInvpcid, "INVPCID"},
    {ExitReason::kVmfunc, "VMFUNC"},
    {ExitReason::kRdseed, "RDSEED"},
    {ExitReason::kPageModificationLogFull, "page-modification log full"},
    {ExitReason::kXsaves, "XSAVES"},
    {ExitReason::kXrstors, "XRSTORS"},
};

std::string ReasonText(std::uint64_t reason) {
  for (const ReasonName& row : kReasons) {
    if (static_cast<std::uint16_t>(row.reason) == (reason & 0xffff)) return row.name;
  }
  return {};
}

class Collector {
 public:
  explicit Collector(const Vmcs& vmcs) : vmcs_(vmcs) {}

  void Add(const char* name, Field field, std::string meaning = {}) {
    constexpr unsigned kBytes[] = {2, 8, 4, 8};
    fields_.push_back({.name = name,
                       .value = vmcs_.Get(field),
                       .bytes = kBytes[field.encoding() >> 13 & 3],
                       .meaning = std::move(meaning)});
  }
  void Add(const char* name, Field field, std::span<const StructureBit> names) {
    Add(name, field, NamesOfBits(vmcs_.Get(field), names));
  }
  std::vector<StructureField> Take() { return std::move(fields_); }

 private:
  const Vmcs& vmcs_;
  std::vector<StructureField> fields_;
};

void AddControls(Collector& to, const Vmcs& vmcs) {
  const Controls controls(vmcs);
  to.Add("primary processor-based controls", field::kPrimaryControls, kPrimary);
  if (controls.HasPrimary(primary::kSecondary)) {
    to.Add("secondary processor-based controls", field::kSecondaryControls, kSecondary);
  }
  to.Add("VM-exit controls", field::kExitControls, kExit);
  to.Add("VM-entry controls", field::kEntryControls, kEntry);
  if (controls.ept()) {
    to.Add("EPT pointer", field::kEptPointer, PointerText(vmcs.Get(field::kEptPointer)));
  }
  if (controls.HasSecondary(secondary::kVpid)) to.Add("VPID", field::kVpid);
  if (controls.HasPrimary(primary::kTprShadow)) {
    to.Add("virtual-APIC address", field::kVirtualApic);
  }
  if (controls.HasSecondary(secondary::kApicAccesses)) {
    to.Add("APIC-access address", field::kApicAccess);
  }
  if (controls.HasSecondary(secondary::kVmFunctions)) {
    to.Add("VM-function controls", field::kVmFunctionControls, kFunctions);
    to.Add("EPTP-list address", field::kEptPointerList);
  }
  if (controls.HasSecondary(secondary::kPageModificationLog)) {
    to.Add("PML address", field::kLogAddress);
    to.Add("PML index", field::kLogIndex);
  }
  if (controls.HasSecondary(secondary::kViolationException)) {
    to.Add("virtualization-exception information address", field::kViolationInformation);
    to.Add("EPTP index", field::kEptPointerIndex);
  }
  to.Add("exception bitmap", field::kExceptionBitmap, kExceptions);
  to.Add("page-fault error-code mask", field::kPageFaultMask);
  to.Add("page-fault error-code match", field::kPageFaultMatch);
}

void AddGuest(Collector& to, const Vmcs& vmcs) {
  to.Add("guest CR0", field::kGuestCr0);
  to.Add("CR0 guest/host mask", field::kCr0Mask);
  to.Add("CR0 read shadow", field::kCr0Shadow);
  to.Add("guest CR3", field::kGuestCr3);
  to.Add("guest CR4", field::kGuestCr4);
  to.Add("CR4 guest/host mask", field::kCr4Mask);
  to.Add("CR4 read shadow", field::kCr4Shadow);
  to.Add("guest IA32_EFER", field::kGuestEfer);
  to.Add("guest IA32_PAT", field::kGuestPat);
  if (Controls(vmcs).ept()) {
    constexpr const char* kNames[] = {"guest PDPTE0", "guest PDPTE1", "guest PDPTE2",
                                      "guest PDPTE3"};
    for (unsigned i = 0; i < std::size(kNames); ++i) to.Add(kNames[i], field::kGuestPdptes[i]);
  }
  to.Add("guest RIP", field::kGuestRip);
}

void AddExit(Collector& to, const Vmcs& vmcs) {
  to.Add("exit reason", field::kExitReason, ReasonText(vmcs.Get(field::kExitReason)));
  to.Add("exit qualification", field::kQualification);
  to.Add("guest-physical address", field::kGuestPhysical);
  to.Add("guest-linear address", field::kGuestLinear);
  to.Add("VM-exit interruption information", field::kExitInterruption);
  to.Add("VM-exit interruption error code", field::kExitErrorCode);
  to.Add("IDT-vectoring information", field::kIdtVectoring);
  to.Add("VM-instruction error", field::kInstructionError);
}

}  // namespace

std::vector<StructureField> FieldsOf(const Vmcs& vmcs) {
  Collector collector(vmcs);
  AddControls(collector, vmcs);
  AddGuest(collector, vmcs);
  collector.Add("host CR0", field::kHostCr0);
  collector.Add("host CR3", field::kHostCr3);
  collector.Add("host CR4", field::kHostCr4);
  AddExit(collector, vmcs);
  return collector.Take();
}

bool InterceptsPageFault(const Vmcs& vmcs, PageFaultCode code) {
  constexpr unsigned kPf = 14;
  const bool bit = (vmcs.Get(field::kExceptionBitmap) >> kPf & 1) != 0;
  const bool matches =
      (code.bits() & vmcs.Get(field::kPageFaultMask)) == vmcs.Get(field::kPageFaultMatch);
  return bit == matches;
}

}  // namespace pagesaw::vmx
