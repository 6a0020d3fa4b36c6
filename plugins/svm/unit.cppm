// SVM in one processor: its instructions and MSRs, and the world switch.
// [amd/vol2] "Secure Virtual Machine"
module;
#include <cstddef>
#include <cstdint>
#include <optional>
export module pagesaw.plugins.svm.unit;

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.plugins.svm.intercepts;
import pagesaw.plugins.svm.svm_bits;
import pagesaw.plugins.svm.vmcb;

export namespace pagesaw::svm {

// How many PAUSEs pass before one is intercepted. [amd/vol2] "Pause Intercept Filtering"
class PauseFilter {
 public:
  // From `tsc` on. Without a threshold all count, else a gap of more ticks begins anew.
  void Start(std::uint32_t count, std::uint32_t threshold, std::uint64_t tsc);
  // Whether the PAUSE at `tsc` is not intercepted.
  bool LetsPass(std::uint64_t tsc);

 private:
  std::uint32_t count_ = 0, left_ = 0, threshold_ = 0;
  std::uint64_t last_ = 0;
};

class SvmUnit final : public VirtUnit {
 public:
  // `splits_execute`: nested paging has the guest mode execute trap.
  explicit SvmUnit(bool splits_execute = false) : splits_execute_(splits_execute) {}

  bool Execute(VirtHost& host, const InterceptedEvent& event) override;
  bool Leaves(VirtHost& host, const InterceptedEvent& event) override;
  void Leave(VirtHost& host, const InterceptedEvent& event) override;
  void MeetNestedFault(VirtHost& host, const NestedFault& fault) override;
  MsrAnswer ReadMsr(VirtHost& host, std::uint32_t index, std::uint64_t& value) const override;
  MsrAnswer WriteMsr(VirtHost& host, std::uint32_t index, std::uint64_t value) override;
  bool MayBeEnabled() const override;

 private:
  // What #VMEXIT tells.
  struct ExitReport {
    std::uint64_t code = 0, info1 = 0, info2 = 0;
    std::uint8_t instruction_bytes = 0;  // of the instruction that was intercepted, if one was
  };

  // VMLOAD or VMSAVE.
  void LoadOrSave(VirtHost& host, VirtInstruction instruction, std::byte* block);
  bool LoadOrSaveVirtually(VirtHost& host, VirtInstruction instruction, Gpa block);
  void ControlTlb(VirtHost& host, const Vmcb& vmcb);
  void LeaveWith(VirtHost& host, const ExitReport& report);
  bool Run(VirtHost& host, Vmcb vmcb);
  void LoadInterrupts(VirtHost& host, const Vmcb& vmcb);
  void SaveInterrupts(VirtHost& host, const CpuState& state, Vmcb& vmcb) const;
  void LoadExtensions(VirtHost& host, const Vmcb& vmcb, bool nests);
  static void SaveRecords(const BranchRecords& records, Vmcb& vmcb);
  void SetGlobalInterruptFlag(VirtHost& host, bool on);

  const bool splits_execute_;
  std::uint64_t vm_cr_ = 0;
  std::uint64_t host_save_ = 0;
  std::uint64_t tsc_ratio_ = kTscRatioOne;

  // Of the guest that runs, as its control block had it at VMRUN.
  Gpa block_ = {};
  Intercepts intercepts_;
  std::optional<PageFormat> nested_format_;  // of its nested tables
  // The word at 060h; V_IRQ, V_TPR, V_GIF, V_NMI and V_NMI_MASK are the host's.
  std::uint32_t virtual_interrupt_ = 0;
  bool virtual_load_and_save_ = false;
  PauseFilter pauses_;
  CpuState hypervisor_;                              // what #VMEXIT comes back to
  std::optional<BranchRecords> hypervisor_records_;  // if the guest has records of its own
};

}  // namespace pagesaw::svm
