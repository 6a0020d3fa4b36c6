// What a VMCS makes the processor leave guest mode for. [intel/vol3] "VMX Non-Root Operation"
module;
#include <cstdint>
export module pagesaw.plugins.vmx.intercepts;

import pagesaw.core.address;
import pagesaw.core.guest_mode;
import pagesaw.plugins.vmx.controls;
import pagesaw.plugins.vmx.vmcs;

export namespace pagesaw::vmx {

// The causes of VM exits of one VM entry, as the VMCS had them then.
class Intercepts {
 public:
  Intercepts() = default;
  Intercepts(const Vmcs& vmcs, const Controls& controls);

  // What the processor is to ask about, the control registers' masks and shadows, the offset of the
  // time-stamp counter.
  GuestEntry Entry() const;
  // Whether `event`, which is no instruction of VMX, causes a VM exit. Reads the bitmaps, which
  // read as ones where there is no memory.
  bool Leaves(VirtHost& host, const InterceptedEvent& event) const;

 private:
  bool PageFaultLeaves(std::uint32_t error_code) const;
  bool ReadControlLeaves(unsigned number) const;
  bool WriteControlLeaves(const InterceptedEvent& event) const;
  bool LmswLeaves(std::uint64_t value) const;
  bool PortLeaves(VirtHost& host, const PortAccess& io) const;
  bool MsrLeaves(VirtHost& host, std::uint32_t index, bool write) const;
  bool IsCr3Target(std::uint64_t value) const;
  bool SupervisorStateLeaves(const VirtHost& host) const;

  Controls controls_;
  std::uint32_t exceptions_ = 0, page_fault_mask_ = 0, page_fault_match_ = 0;
  ShadowedControl cr0_ = {}, cr4_ = {};
  unsigned cr3_target_count_ = 0;
  std::uint64_t cr3_targets_[4] = {};
  GuestTsc tsc_;
  std::uint64_t xss_bitmap_ = 0;
  Gpa io_bitmap_a_ = {}, io_bitmap_b_ = {}, msr_bitmap_ = {};
};

}  // namespace pagesaw::vmx
