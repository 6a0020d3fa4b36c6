// VMX in one processor: its instructions and MSRs, VM entries and VM exits.
// [intel/vol3] "Introduction to Virtual Machine Extensions" and the chapters behind it
module;
#include <cstddef>
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
import pagesaw.plugins.vmx.virtual_apic;
import pagesaw.plugins.vmx.vmcs;
import pagesaw.plugins.vmx.vmx_bits;

export namespace pagesaw::vmx {

// PAUSEs in a loop, and when they have gone on for too long. [intel/vol3] "Instructions That Cause
// VM Exits Conditionally", PAUSE
class PauseLoop {
 public:
  PauseLoop() = default;
  // PAUSEs no more than `gap` ticks apart are those of one loop, which may last `window` ticks.
  PauseLoop(std::uint32_t gap, std::uint32_t window) : gap_(gap), window_(window) {}

  // Whether the PAUSE at `tsc` comes behind the end of its window.
  bool Ends(std::uint64_t tsc);

 private:
  std::uint32_t gap_ = 0, window_ = 0;
  std::optional<std::uint64_t> first_;
  std::uint64_t last_ = 0;
};

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
  std::uint8_t TakeVirtualInterrupt(VirtHost& host) override {
    return virtual_apic_.TakeInterrupt(host);
  }
  std::byte* AccessApicPage(VirtHost& host, const PageAccess& access) override;
  MsrAnswer ReadMsr(VirtHost& host, std::uint32_t index, std::uint64_t& value) const override;
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
  bool Vmxon(VirtHost& host, const CpuMode& mode);
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
  bool Launch(VirtHost& host, bool resumes);
  // What follows once the guest's state has been found good.
  bool EnterGuest(VirtHost& host, Vmcs& vmcs, const CpuState& guest);
  NestedPaging EptOfGuest(const VirtHost& host, std::uint64_t pointer) const;
  // Whether `fault` has become a #VE of the guest's, or a VM exit for that.
  bool ConvertsToException(VirtHost& host, const NestedFault& fault);
  void LoadInterrupts(VirtHost& host);
  // Ends a VM entry that has begun to load the guest's state.
  bool FailEntry(VirtHost& host, Vmcs& vmcs, ExitReason reason, std::uint64_t qualification);
  // The parts of a VM exit before and behind the recording of what it is for. `state` is the
  // guest's.
  void SaveGuest(VirtHost& host, Vmcs& vmcs, const CpuState& state);
  void EndExit(VirtHost& host, Vmcs& vmcs, bool nmi_blocked);
  bool NmisStayBlocked(const CpuState& state) const;
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
  VirtualApic virtual_apic_;
  std::optional<VirtualApic::Exit> apic_exit_;  // that Leaves has found
  PauseLoop pauses_;
  GuestEntry entry_;
  std::uint64_t exit_tsc_ = 0;  // when the VM exit began
};

}  // namespace pagesaw::vmx
