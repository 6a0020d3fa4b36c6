// A processor in VMX operation with a VMCS that a VM entry accepts, for tests.
module;
#include <cstdint>
export module pagesaw.plugins.vmx.test_guest;

export import pagesaw.plugins.vmx.ept;
export import pagesaw.core.fake_virt_host;
export import pagesaw.plugins.vmx.unit;
export import pagesaw.plugins.vmx.vmcs;
export import pagesaw.plugins.vmx.vmx_bits;

export namespace pagesaw::vmx {

// VMCALL.
inline constexpr InterceptedEvent Call() {
  return {.what = Intercept::kInstruction,
          .instruction_bytes = 3,
          .instruction = VirtInstruction::kVmcall};
}

class TestGuest {
 public:
  static constexpr std::uint64_t kVmxon = 0x1000, kVmcs = 0x2000, kGuestRip = 0x1234,
                                 kHostRip = 0x7777, kBitmap = 0x3000, kMsrs = 0x6000;

  // In VMX operation, with a current VMCS that describes a 64-bit guest.
  explicit TestGuest(SplitFormatMaker split = nullptr);

  Vmcs vmcs() { return Vmcs(host.Memory(Gpa(kVmcs), kPageBytes)); }
  void Set(Field field, std::uint64_t value) { vmcs().Set(field, value); }
  void SetControls(Field field, std::uint32_t more) { Set(field, vmcs().Get(field) | more); }
  std::uint64_t Get(Field field) { return vmcs().Get(field); }

  // Executes `instruction` with `operand` as its memory operand. Whether it happened.
  bool Execute(VirtInstruction instruction, std::uint64_t operand = 0);
  // VMLAUNCH. Whether the guest runs.
  bool Enter();
  // What the processor does when it meets `event` in guest mode. Whether the guest has been left.
  bool Meet(const InterceptedEvent& event);

  bool carry() const { return (host.state.rflags & kFlagCf) != 0; }
  bool zero() const { return (host.state.rflags & kFlagZf) != 0; }
  // The error number of an instruction that failed with ZF.
  std::uint64_t error() { return Get(field::kInstructionError); }

  FakeVirtHost host;
  VmxUnit unit;

 private:
  void WriteRegion(std::uint64_t region);
  void DescribeHost();
  void DescribeGuest();
};

}  // namespace pagesaw::vmx
