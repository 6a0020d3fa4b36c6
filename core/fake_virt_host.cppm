// A processor for tests of virtualization extensions: it holds a state and a little memory, and
// notes what it is told.
module;
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.core.fake_virt_host;

export import pagesaw.core.address;
export import pagesaw.core.cpu_state;
export import pagesaw.core.guest_mode;
export import pagesaw.core.nested_paging;
import pagesaw.core.paging_state;

export namespace pagesaw {

class FakeVirtHost final : public VirtHost {
 public:
  static constexpr std::uint64_t kMemoryBytes = 1 << 20;

  FakeVirtHost() : memory_(kMemoryBytes + kPageBytes) {}

  CpuState State() const override { return state; }
  void SwitchState(const CpuState& next) override {
    state = next;
    boundary_state = {};
  }
  BoundaryState boundary() const override { return boundary_state; }
  void SetBoundary(const BoundaryState& boundary) override { boundary_state = boundary; }
  CpuMode mode() const override {
    return {.cr0 = state.cr0,
            .cr4 = state.cr4,
            .efer = state.efer,
            .rflags = state.rflags,
            .cpl = state.cpl(),
            .code_64 = (state.efer & kEferLma) != 0 && state.segments[kCs].long_mode()};
  }
  void LoadSystemRegisters(const CpuState& next) override { state = next; }
  std::uint64_t gpr(Gpr number) const override { return state.gpr[number]; }
  void SetGpr(Gpr number, std::uint64_t value) override { state.gpr[number] = value; }
  void SetArithmeticFlags(std::uint64_t flags) override {
    state.rflags = (state.rflags & ~kArithmetic) | flags;
  }
  RegisterLimits limits() const override { return register_limits; }
  bool Has(std::string_view feature) const override {
    return !missing_features.contains(std::string(feature));
  }
  void SetFixedControls(std::uint64_t cr0, std::uint64_t cr4) override {
    fixed_cr0 = cr0;
    fixed_cr4 = cr4;
  }
  std::uint64_t Tsc() const override { return tsc; }
  bool ReadMsr(std::uint32_t index, std::uint64_t& value) override {
    const auto found = msrs.find(index);
    if (found == msrs.end()) return false;
    value = found->second;
    return true;
  }
  bool WriteMsr(std::uint32_t index, std::uint64_t value) override {
    if (!msrs.contains(index)) return false;
    msrs[index] = value;
    return true;
  }
  BranchRecords records() const override { return branch_records; }
  void SetRecords(const BranchRecords& records) override { branch_records = records; }
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
  bool LoadOperand(void* to, unsigned bytes) override {
    if (operand_faults) return false;
    std::memcpy(to, operand, bytes);
    return true;
  }
  bool StoreOperand(const void* from, unsigned bytes) override {
    if (operand_faults) return false;
    std::memcpy(operand, from, bytes);
    return true;
  }
  std::size_t CopyCode(std::span<std::byte> to) override {
    const std::size_t bytes = code.size() < to.size() ? code.size() : to.size();
    std::memcpy(to.data(), code.data(), bytes);
    return bytes;
  }
  bool LeaveFor(const InterceptedEvent& event) override {
    left_for = event;
    return false;
  }
  void FlushTranslations() override { ++flushes; }
  void InvalidateNested(const NestedInvalidation& gone) override { invalidated.push_back(gone); }
  std::byte* Memory(Gpa gpa, std::uint64_t bytes) override {
    return gpa.bits() <= kMemoryBytes - bytes ? page() + gpa.bits() : nullptr;
  }
  // The guest's physical space lies `nested_base` up in the hypervisor's.
  bool LocateNested(Gpa gpa, bool, std::byte*& to) override {
    to = Memory(Gpa(nested_base + gpa.bits()), kPageBytes);
    return !nested_faults;
  }
  void Wrote(Gpa gpa) override { written.push_back(gpa); }

  static constexpr std::uint64_t kArithmetic = 0x8d5;

  CpuState state = {};
  BoundaryState boundary_state;
  RegisterLimits register_limits = {.cr0 = 0xe005'003f,
                                    .cr3 = 0xf'ffff'ffff,
                                    .cr4 = 0x3f'ffff,
                                    .efer = 0xd01,
                                    .physical_bits = 36,
                                    .linear_bits = 48};
  std::set<std::string> missing_features;
  std::map<std::uint32_t, std::uint64_t> msrs = {{0x1d9, 0}};
  std::uint64_t tsc = 0;
  std::uint64_t fixed_cr0 = 0, fixed_cr4 = 0;
  std::uint64_t operand[2] = {};
  bool operand_faults = false;
  BranchRecords branch_records;
  std::vector<std::byte> code;  // at RIP
  std::uint64_t nested_base = 0;
  bool nested_faults = false;
  std::optional<GuestEntry> entry;
  GuestInterrupts guest_interrupts;
  std::optional<DeliveredEvent> delivered, on_its_way;
  std::optional<InterceptedEvent> left_for;
  std::vector<NestedInvalidation> invalidated;
  bool undefined = false, general_protection = false;
  unsigned flushes = 0;
  std::vector<Gpa> written;

 private:
  std::byte* page() {
    const auto at = reinterpret_cast<std::uintptr_t>(memory_.data());
    return memory_.data() + (-at & (kPageBytes - 1));
  }

  std::vector<std::byte> memory_;
};

}  // namespace pagesaw
