// SVM in one processor: its instructions and MSRs, and the world switch.
// [amd/vol2] "Secure Virtual Machine"
module;
#include <cstdint>
#include <optional>
export module pagesaw.plugins.svm.unit;

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.plugins.svm.intercepts;
import pagesaw.plugins.svm.vmcb;

export namespace pagesaw::svm {

class SvmUnit final : public VirtUnit {
 public:
  // `splits_execute`: nested paging has the guest mode execute trap.
  explicit SvmUnit(bool splits_execute = false) : splits_execute_(splits_execute) {}

  bool Execute(VirtHost& host, const InterceptedEvent& event) override;
  bool Leaves(VirtHost& host, const InterceptedEvent& event) override;
  void Leave(VirtHost& host, const InterceptedEvent& event) override;
  void MeetNestedFault(VirtHost& host, const NestedFault& fault) override;
  MsrAnswer ReadMsr(const VirtHost& host, std::uint32_t index, std::uint64_t& value) const override;
  MsrAnswer WriteMsr(VirtHost& host, std::uint32_t index, std::uint64_t value) override;
  bool MayBeEnabled() const override;

 private:
  // What #VMEXIT tells.
  struct ExitReport {
    std::uint64_t code = 0, info1 = 0, info2 = 0;
    std::uint8_t instruction_bytes = 0;  // of the instruction that was intercepted, if one was
  };

  void ControlTlb(VirtHost& host, const Vmcb& vmcb);
  void LeaveWith(VirtHost& host, const ExitReport& report);
  bool Run(VirtHost& host, Vmcb vmcb);
  void LoadInterrupts(VirtHost& host, const Vmcb& vmcb);
  void SaveInterrupts(VirtHost& host, Vmcb& vmcb) const;
  void SetGlobalInterruptFlag(VirtHost& host, bool on);

  const bool splits_execute_;
  std::uint64_t vm_cr_ = 0;
  std::uint64_t host_save_ = 0;

  // Of the guest that runs, as its control block had it at VMRUN.
  Gpa block_ = {};
  Intercepts intercepts_;
  std::optional<PageFormat> nested_format_;  // of its nested tables
  std::uint32_t virtual_interrupt_ = 0;  // the word at 060h; V_IRQ, V_TPR and V_GIF are the host's
  std::uint32_t pauses_left_ = 0;
  CpuState hypervisor_;  // what #VMEXIT comes back to
};

}  // namespace pagesaw::svm
