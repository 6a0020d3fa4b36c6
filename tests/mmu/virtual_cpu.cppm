// One vCPU as the MMU sees it, without a program: the processor's registers, TLB and page walk, the
// shadow MMU that answers its faults, and the part of a run loop that stands between them.
module;
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>
export module pagesaw.tests.mmu.virtual_cpu;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.nested_paging;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.core.shadow_mmu;
import pagesaw.cpu.core;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.tdp_walker;

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
  enum class Kind : std::uint8_t {
    kHost,
    kGuestFault,
    kDevice,
    kNone,
    kNestedFault,  // nested tables refuse
    kRefused,      // a memory attribute does
  };
  Kind kind = Kind::kNone;
  // Host address; error code; guest-physical address; kNestedFault: what was to be translated.
  std::uint64_t value = 0;
  std::uint64_t detail = 0;  // kNestedFault: for who knows the vendor's words
  bool operator==(const Outcome&) const = default;
};

class VirtualCpu final : private cpu::CodeWatcher {
 public:
  // What a vCPU is made over; all of it outlives the vCPU.
  struct Machine {
    const cpu::CpuModel& model;
    const GuestMemory& memory;
    ShadowPages& pages;
    const GuestTables* tables = nullptr;  // null: none are shadowed
    bool two_stages = true;
    const MemoryAttributes* attributes = nullptr;
    TdpWalker::LogDirty log_dirty = {};  // not empty: nested paging is there
  };

  explicit VirtualCpu(const Machine& machine);
  ~VirtualCpu();

  // The shadow MMU whose tables the processor runs on.
  ShadowMmu& mmu() { return *active_; }
  const ShadowMmu& mmu() const { return *active_; }
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

  // What the last access met, if it ended with kNestedFault; whoever translates it into `detail`
  // does so by this.
  const NestedFault& nested_fault() const { return nested_fault_; }

  // Goes into guest mode with nested paging, and out of it.
  void EnterNested(const PagingState& state, const NestedPaging& nested);
  void LeaveNested(const PagingState& state);
  bool nested() const { return active_ != mmu_.get(); }
  // Translations of nested tables are invalidated, in or out of guest mode; and all those of linear
  // addresses with them.
  void InvalidateNested(const NestedInvalidation& invalidation);

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
  void TellOfTableWrites();
  void LendWord(const FaultResolution& resolution);
  void PagingHasChanged(const Invalidation& invalidation = {});
  Outcome TryAccess(std::uint64_t linear, Asked asked, bool& from_tlb);
  Outcome Resolve(std::uint64_t linear, bool& again);
  bool RunInstruction(bool (*instruction)(cpu::Core&, const cpu::Op&), const cpu::Op& op);

  Outcome MeetNestedFault(const TableFault& fault, const FaultResolution& resolution);

  const GuestMemory& memory_;
  const bool two_stages_;
  const cpu::CpuModel model_;
  std::unique_ptr<cpu::Core> core_;
  CpuWalker walker_;
  TdpWalker tdp_walker_;
  std::unique_ptr<ShadowMmu> mmu_;
  std::unique_ptr<ShadowMmu> guest_mmu_;  // or null
  ShadowMmu* active_;
  bool tables_set_ = false;
  std::optional<Gpa> lent_;
  // A word of a table that the processor may be updating, as it was last seen.
  struct LentWord {
    Gpa gpa = {};
    const std::uint64_t* host = nullptr;
    std::uint64_t value = 0;
  };
  std::vector<LentWord> lent_words_;
  NestedFault nested_fault_;
};

}  // namespace pagesaw
