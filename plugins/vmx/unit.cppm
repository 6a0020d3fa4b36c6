// VMX in one processor: its instructions and MSRs, VM entries and VM exits.
// [intel/vol3] "Introduction to Virtual Machine Extensions" and the chapters behind it
module;
#include <cstdint>
#include <optional>
export module pagesaw.plugins.vmx.unit;

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.core.nested_paging;
import pagesaw.plugins.vmx.capabilities;
import pagesaw.plugins.vmx.controls;
import pagesaw.plugins.vmx.ept;
import pagesaw.plugins.vmx.intercepts;
import pagesaw.plugins.vmx.vmcs;
import pagesaw.plugins.vmx.vmx_bits;

export namespace pagesaw::vmx {

class VmxUnit final : public VirtUnit {
 public:
  // `split`: makes the format of tables that tell supervisor and user execution apart; null: they
  // are not offered.
  explicit VmxUnit(SplitFormatMaker split = nullptr) : split_(split) {}

  bool Execute(VirtHost& host, const InterceptedEvent& event) override;
  bool Leaves(VirtHost& host, const InterceptedEvent& event) override;
  void Leave(VirtHost& host, const InterceptedEvent& event) override;
  void MeetNestedFault(VirtHost& host, const NestedFault& fault) override;
  bool LogDirty(VirtHost& host, Gpa address) override;
  MsrAnswer ReadMsr(const VirtHost& host, std::uint32_t index, std::uint64_t& value) const override;
  MsrAnswer WriteMsr(VirtHost& host, std::uint32_t index, std::uint64_t value) override;
  bool MayBeEnabled() const override { return true; }

 private:
  // VMX operation, which VMXON begins and VMXOFF ends.
  struct Operation {
    Gpa region;                  // of VMXON
    std::optional<Gpa> current;  // the VMCS that is current
    Capabilities capabilities;
  };

  // -- instructions (instructions.cc)
  bool Vmxon(VirtHost& host, const CpuState& state);
  bool Vmxoff(VirtHost& host);
  bool Vmclear(VirtHost& host);
  bool Vmptrld(VirtHost& host);
  bool Vmptrst(VirtHost& host);
  bool Vmread(VirtHost& host, const InterceptedEvent& event, bool wide);
  bool Vmwrite(VirtHost& host, const InterceptedEvent& event, bool wide);
  bool IsShadowed(VirtHost& host, const InterceptedEvent& event, bool wide) const;
  std::optional<Gpa> AccessedVmcs(VirtHost& host) const;
  bool Invept(VirtHost& host, const InterceptedEvent& event, bool wide);
  bool Invvpid(VirtHost& host, const InterceptedEvent& event, bool wide);
  bool Vmfunc(VirtHost& host, const InterceptedEvent& event);
  // EPTP switching: whether the guest's tables are now those of entry `index` of the list.
  bool SwitchEpt(VirtHost& host, std::uint32_t index);

  // How an instruction ends that did what it is to do, and one that did not: with its error number
  // in the current VMCS, if there is one. They return true. [intel/vol3] "Conventions"
  bool Succeed(VirtHost& host);
  bool Fail(VirtHost& host, InstructionError error);

  Vmcs CurrentVmcs(VirtHost& host) const;

  // -- VM entries and VM exits (unit.cc)
  bool Launch(VirtHost& host, const CpuState& state, bool resumes);
  // What follows once the guest's state has been found good.
  bool EnterGuest(VirtHost& host, Vmcs& vmcs, const CpuState& guest);
  NestedPaging EptOfGuest(const VirtHost& host, std::uint64_t pointer) const;
  // Whether `fault` has become a #VE of the guest's, or a VM exit for that.
  bool ConvertsToException(VirtHost& host, const NestedFault& fault);
  void LoadInterrupts(VirtHost& host, const Vmcs& vmcs);
  // Ends a VM entry that has begun to load the guest's state.
  bool FailEntry(VirtHost& host, Vmcs& vmcs, ExitReason reason, std::uint64_t qualification);
  // The parts of a VM exit before and behind the recording of what it is for. `state` is the
  // guest's.
  void SaveGuest(VirtHost& host, Vmcs& vmcs, const CpuState& state);
  void EndExit(VirtHost& host, Vmcs& vmcs, bool nmi_blocked);
  bool NmisStayBlocked(const CpuState& state) const;
  void SaveVirtualTpr(VirtHost& host, const Vmcs& vmcs);
  void SaveTimer(Vmcs& vmcs) const;
  // Goes on at the VMCS's host state. `nmi_blocked`: NMIs are blocked there.
  void LoadHost(VirtHost& host, Vmcs& vmcs, bool nmi_blocked);

  // A VMX abort: the processor shuts down.
  void Abort(VirtHost& host);

  SplitFormatMaker split_;
  std::optional<Operation> operation_;

  // Of the guest that runs, as its VMCS had it at VM entry.
  Controls controls_;
  Intercepts intercepts_;
  GuestEntry entry_;
  std::uint64_t exit_tsc_ = 0;  // when the VM exit began
  std::uint8_t virtual_tpr_ = 0;
};

}  // namespace pagesaw::vmx
