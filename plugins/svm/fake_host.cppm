// A processor for tests of SVM: it holds a state and a little memory, and notes what it is told.
module;
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>
export module pagesaw.plugins.svm.fake_host;

export import pagesaw.core.address;
export import pagesaw.core.cpu_state;
export import pagesaw.core.guest_mode;
export import pagesaw.core.nested_paging;

export namespace pagesaw::svm {

class FakeHost final : public VirtHost {
 public:
  static constexpr std::uint64_t kMemoryBytes = 1 << 20;

  FakeHost() : memory_(kMemoryBytes + kPageBytes) {}

  CpuState State() const override { return state; }
  void SwitchState(const CpuState& next) override { state = next; }
  BoundaryState boundary() const override { return {}; }
  void SetBoundary(const BoundaryState&) override {}
  std::uint64_t gpr(Gpr number) const override { return state.gpr[number]; }
  void SetGpr(Gpr number, std::uint64_t value) override { state.gpr[number] = value; }
  void SetArithmeticFlags(std::uint64_t) override {}
  RegisterLimits limits() const override { return register_limits; }
  bool Has(std::string_view) const override { return true; }
  void SetFixedControls(std::uint64_t, std::uint64_t) override {}
  std::uint64_t Tsc() const override { return 0; }
  bool ReadMsr(std::uint32_t, std::uint64_t&) override { return false; }
  bool WriteMsr(std::uint32_t, std::uint64_t) override { return false; }
  bool guest_mode() const override { return entry.has_value(); }
  void EnterGuestMode(const GuestEntry& how) override { entry = how; }
  void LeaveGuestMode() override { entry.reset(); }
  GuestInterrupts& interrupts() override { return guest_interrupts; }
  void Deliver(const DeliveredEvent& event) override { delivered = event; }
  std::optional<DeliveredEvent> TakeDelivered() override {
    const std::optional<DeliveredEvent> taken = on_its_way;
    on_its_way.reset();
    return taken;
  }
  bool RaiseUndefined() override {
    undefined = true;
    return false;
  }
  bool RaiseGeneralProtection() override {
    general_protection = true;
    return false;
  }
  bool LoadOperand(void*, unsigned) override { return false; }
  bool StoreOperand(const void*, unsigned) override { return false; }
  bool LeaveFor(const InterceptedEvent& event) override {
    left_for = event;
    return false;
  }
  void FlushTranslations() override { ++flushes; }
  void InvalidateNested(const NestedInvalidation& gone) override { invalidated.push_back(gone); }
  std::byte* Memory(Gpa gpa, std::uint64_t bytes) override {
    return gpa.bits() + bytes <= kMemoryBytes ? page() + gpa.bits() : nullptr;
  }
  void Wrote(Gpa gpa) override { written.push_back(gpa); }

  CpuState state = {};
  RegisterLimits register_limits = {.cr0 = 0xe005'003f,
                                    .cr3 = 0xf'ffff'ffff,
                                    .cr4 = 0xff'ffff,
                                    .efer = 0x1d01,
                                    .physical_bits = 36,
                                    .linear_bits = 48,
                                    .nested_paging = true};
  std::optional<GuestEntry> entry;
  GuestInterrupts guest_interrupts;
  std::optional<DeliveredEvent> delivered, on_its_way;
  std::optional<InterceptedEvent> left_for;
  bool undefined = false, general_protection = false;
  unsigned flushes = 0;
  std::vector<NestedInvalidation> invalidated;
  std::vector<Gpa> written;

 private:
  std::byte* page() {
    const auto at = reinterpret_cast<std::uintptr_t>(memory_.data());
    return memory_.data() + (-at & (kPageBytes - 1));
  }

  std::vector<std::byte> memory_;
};

}  // namespace pagesaw::svm
