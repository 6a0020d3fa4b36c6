// One vCPU as the MMU sees it, without a program: the processor's registers, TLB and page walk, the
// shadow MMU that answers its faults, and the part of a run loop that stands between them.
module;
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
export module pagesaw.tests.mmu.virtual_cpu;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.core.shadow_mmu;
import pagesaw.cpu.core;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.shadow_pages;

export namespace pagesaw {

// What an access is for, and who makes it.
struct Asked {
  enum class Kind : std::uint8_t { kRead, kWrite, kFetch };
  enum class By : std::uint8_t { kUser, kSupervisor, kSupervisorWithAc, kImplicit };
  Kind kind = Kind::kRead;
  By by = By::kSupervisor;
};

// As the MMU is asked.
Access AccessOf(Asked asked);

// What became of it.
struct Outcome {
  enum class Kind : std::uint8_t { kHost, kGuestFault, kDevice, kNone };
  Kind kind = Kind::kNone;
  std::uint64_t value = 0;  // host address, error code, or guest-physical address
  bool operator==(const Outcome&) const = default;
};

class VirtualCpu final : private cpu::CodeWatcher {
 public:
  // A vCPU over `pages`: with one stage, shadowing `tables`, or, if that is null, with two.
  // Everything given must outlive it.
  VirtualCpu(const cpu::CpuModel& model, const GuestMemory& memory, ShadowPages& pages,
             const GuestTables* tables);
  ~VirtualCpu();

  ShadowMmu& mmu() { return *mmu_; }
  const ShadowMmu& mmu() const { return *mmu_; }
  // Registers may be read; they are changed by what follows.
  const cpu::Core& core() const { return *core_; }
  // What the guest's own tables say, by our walker.
  const CpuWalker& walker() const { return walker_; }

  // Forgets every cached translation, as a TlbFlusher asks.
  void Flush();

  // Makes the access, up to the point where memory would be moved. `from_tlb`: it needed no walk.
  Outcome MakeAccess(std::uint64_t linear, Asked asked, bool& from_tlb);
  // Stores 8 bytes as a supervisor with EFLAGS.AC, where Access for that has found `host`; then
  // says what the processor's outside would: that a protected table was written.
  void Store(std::uint64_t linear, std::uint64_t value);
  // Whether the last access was a write that no SPTE may grant.
  bool lent() const { return lent_.has_value(); }

  // Loads paging registers at large, as a reset or a debugger does.
  void SetPaging(const PagingState& state);
  void SetKeys(std::uint32_t pkru, std::uint32_t pkrs);
  // The instructions. False if they fault, and then change nothing.
  bool MovToControl(unsigned number, std::uint64_t value);
  bool Invlpg(std::uint64_t linear);
  // What INVPCID does once its operands are read.
  void Invpcid(const Invalidation& invalidation);

 private:
  bool HoldsCode(std::uint64_t) const override { return false; }
  void Changed(std::uint64_t, std::size_t) override {}

  void BecomePrivileged(Asked::By by);
  void EnterGuest();
  void PagingHasChanged(const Invalidation& invalidation = {});
  Outcome Resolve(std::uint64_t linear, bool& again);
  bool RunInstruction(bool (*instruction)(cpu::Core&, const cpu::Op&), const cpu::Op& op);

  const GuestMemory& memory_;
  const cpu::CpuModel model_;
  std::unique_ptr<cpu::Core> core_;
  CpuWalker walker_;
  std::unique_ptr<ShadowMmu> mmu_;
  bool tables_set_ = false;
  std::optional<Gpa> lent_;
};

}  // namespace pagesaw
