// A software processor as the virtualization extension that it offers sees it.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
export module pagesaw.cpu.guest_mode;

export import pagesaw.cpu.core;
import pagesaw.core.guest_memory;

export namespace pagesaw::cpu {

class CoreHost final : public VirtHost {
 public:
  // Both outlive the host; `memory` may be null: there is none then.
  CoreHost(Core& core, const GuestMemory* memory) : core_(core), memory_(memory) {}

  CpuState State() const override;
  void SwitchState(const CpuState& state) override;
  void LoadSystemRegisters(const CpuState& state) override;
  BoundaryState boundary() const override;
  void SetBoundary(const BoundaryState& boundary) override;
  CpuMode mode() const override;
  std::uint64_t gpr(Gpr number) const override { return core_.gpr[number]; }
  void SetGpr(Gpr number, std::uint64_t value) override { core_.gpr[number] = value; }
  void SetArithmeticFlags(std::uint64_t flags) override { core_.flags.SetEager(flags); }
  RegisterLimits limits() const override;
  bool Has(std::string_view feature) const override { return core_.model->Has(feature); }
  void SetFixedControls(std::uint64_t cr0, std::uint64_t cr4) override;
  std::uint64_t Tsc() const override;
  bool ReadMsr(std::uint32_t index, std::uint64_t& value) override;
  bool WriteMsr(std::uint32_t index, std::uint64_t value) override;
  BranchRecords records() const override;
  void SetRecords(const BranchRecords& records) override;
  bool guest_mode() const override { return core_.guest.active; }
  void EnterGuestMode(const GuestEntry& entry) override;
  void LeaveGuestMode() override;
  GuestInterrupts& interrupts() override { return core_.guest.interrupts; }
  void Deliver(const DeliveredEvent& event) override;
  std::optional<DeliveredEvent> TakeDelivered() override;
  bool RaiseUndefined() override { return core_.Raise(kUd); }
  bool RaiseGeneralProtection() override { return core_.Raise(kGp, 0); }
  bool LoadOperand(void* to, unsigned bytes) override;
  bool StoreOperand(const void* from, unsigned bytes) override;
  std::size_t CopyCode(std::span<std::byte> to) override;
  bool LeaveFor(const InterceptedEvent& event) override;
  void FlushTranslations() override;
  void InvalidateNested(const NestedInvalidation& invalidation) override;
  std::byte* Memory(Gpa gpa, std::uint64_t bytes) override;
  bool LocateNested(Gpa gpa, bool write, std::byte*& to) override;
  void Wrote(Gpa gpa) override;

  // The pages written since the last call.
  std::span<const Gpa> TakeWrites();
  // Whether there is room for what one instruction of an extension writes.
  bool HasRoomForWrites() const { return write_count_ + kWritesPerInstruction <= writes_.size(); }
  // Asks the outside to set the counter that the unit has loaded: its timers follow it. False: that
  // is an exit, behind which this is to be called again.
  bool TellTsc();

 private:
  static constexpr unsigned kWritesPerInstruction = 8;

  Core& core_;
  const GuestMemory* memory_;
  std::array<Gpa, 2 * kWritesPerInstruction> writes_ = {};
  std::array<Gpa, 2 * kWritesPerInstruction> taken_ = {};
  unsigned write_count_ = 0;
  mutable std::optional<RegisterLimits> limits_;  // once they have been asked for
  bool tsc_loaded_ = false;                       // and the outside has not been told
};

// Whether the interrupt, or the NMI, that the guest alone has pending could be taken now.
bool VirtualInterruptDue(const Core& core);
bool VirtualNmiDue(const Core& core);

}  // namespace pagesaw::cpu
