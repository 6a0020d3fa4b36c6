// The local APIC of a guest as the virtual-APIC page has it: which accesses reach the page, what
// writes to it do, and the interrupts that wait in it.
// [intel/vol3] "APIC Virtualization and Virtual Interrupts"
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
export module pagesaw.plugins.vmx.virtual_apic;

import pagesaw.core.address;
import pagesaw.core.guest_mode;
import pagesaw.plugins.vmx.controls;
import pagesaw.plugins.vmx.vmcs;
import pagesaw.plugins.vmx.vmx_bits;

export namespace pagesaw::vmx {

class VirtualApic {
 public:
  // A VM exit that what the guest did leads to, behind the instruction.
  struct Exit {
    ExitReason reason = ExitReason::kApicWrite;
    std::uint64_t qualification = 0;
  };

  VirtualApic() = default;
  // Of the guest that a VM entry enters.
  VirtualApic(const Vmcs& vmcs, const Controls& controls);

  // What a VM entry does with it; sets what `host` says of interrupts.
  void Enter(VirtHost& host);
  // Writes back what a VM exit saves: the task priority, and the interrupt status.
  void Save(VirtHost& host, Vmcs& vmcs);

  // The page whose accesses are this APIC's.
  std::optional<Gpa> access_page() const;
  // The byte of the virtual-APIC page where `access` is made, or null: it causes a VM exit.
  std::byte* Access(VirtHost& host, const PageAccess& access);

  // RDMSR and WRMSR of x2APIC registers. kUnknown: the processor's own APIC answers.
  VirtUnit::MsrAnswer ReadMsr(VirtHost& host, std::uint32_t index, std::uint64_t& value) const;
  VirtUnit::MsrAnswer WriteMsr(VirtHost& host, std::uint32_t index, std::uint64_t value);

  // GuestInterrupts::asks_at_boundary: does what the last write asks for.
  std::optional<Exit> Emulate(VirtHost& host);

  // Whether an external interrupt with `vector` only tells of posted interrupts, which then are in
  // the page.
  bool TakePosted(VirtHost& host, std::uint32_t vector);
  // Delivers the interrupt that is pending: its vector.
  std::uint8_t TakeInterrupt(VirtHost& host);

 private:
  bool has_page() const { return controls_.HasPrimary(primary::kTprShadow); }
  bool delivers() const { return controls_.HasSecondary(secondary::kVirtualInterrupts); }
  bool registers() const { return controls_.HasSecondary(secondary::kApicRegisters); }
  bool maps() const { return controls_.HasSecondary(secondary::kApicAccesses); }
  bool x2apic() const { return controls_.HasSecondary(secondary::kX2apicMode); }

  bool VirtualizesRead(std::uint32_t offset) const;
  bool VirtualizesWrite(std::uint32_t offset) const;
  std::optional<Exit> VirtualizeTpr(VirtHost& host);
  std::optional<Exit> VirtualizeEoi(VirtHost& host);
  // The self-IPI `vector`, or the APIC write at `offset` that it is if it is none.
  std::optional<Exit> VirtualizeSelfIpi(VirtHost& host, std::uint32_t vector, bool fits,
                                        std::uint32_t offset);
  void VirtualizePpr(VirtHost& host);
  void Evaluate(VirtHost& host);
  void Request(VirtHost& host, std::uint8_t vector);

  std::uint32_t Read(VirtHost& host, std::uint32_t offset) const;
  void Write(VirtHost& host, std::uint32_t offset, std::uint32_t value);
  void SetBit(VirtHost& host, std::uint32_t base, std::uint8_t vector, bool set);
  std::uint8_t Highest(VirtHost& host, std::uint32_t base) const;

  Controls controls_;
  Gpa page_ = {}, access_page_ = {}, posted_ = {};
  std::uint32_t threshold_ = 0;
  std::uint32_t notification_ = 0;
  std::array<std::uint64_t, 4> eoi_exits_ = {};
  std::uint8_t requested_ = 0, serviced_ = 0;  // RVI and SVI
  std::uint8_t tpr_ = 0;                       // VTPR[7:4] as GuestInterrupts has it
  std::optional<std::uint32_t> written_;       // the offset of a write that waits to be emulated
};

}  // namespace pagesaw::vmx
