// A VM made of chance whose guest is a hypervisor with nested paging: nested tables, and tables of
// the hypervisor's guest, that lead anywhere; several vCPUs, in guest mode and out of it, that use
// and change all of them in turn; a host that writes memory, moves slots, restricts frames and logs
// writes. After every access its outcome is compared with what the manuals allow for any mix of the
// values that entries have had since that vCPU last invalidated them.
//
// L1 is the hypervisor, L2 its guest.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>
export module pagesaw.tests.mmu.nested_vm;

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.cpu.model;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.paging_oracle;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_log_witness;
import pagesaw.mmu.test_memory;
import pagesaw.tests.mmu.choices;
import pagesaw.tests.mmu.differential_vm;
import pagesaw.tests.mmu.entry_history;
import pagesaw.tests.mmu.nesting;
import pagesaw.tests.mmu.two_stage_oracle;
import pagesaw.tests.mmu.virtual_cpu;

export namespace pagesaw {

class NestedVm final : public DifferentialVm, private TlbFlusher {
 public:
  // What hypervisors have. L1 itself runs on one stage or on two, as it comes.
  static constexpr unsigned kKinds = 4;
  static const char* NameOf(unsigned kind);

  // A VM of `kind` with 1 to 4 vCPUs. `choices` must outlive it.
  NestedVm(unsigned kind, unsigned vcpu_count, Choices& choices);
  ~NestedVm() override;

  std::optional<std::string> Step() override;
  std::optional<std::string> CheckAllSptes() const override;
  std::string Describe() const override;

 private:
  using Complaint = std::optional<std::string>;

  // Of both histories.
  struct Moment {
    std::uint64_t told = 1, untold = 1;
  };
  // A vCPU, and since when it can use nothing older than what tables say now.
  struct Cpu {
    std::unique_ptr<VirtualCpu> cpu;
    PagingState l1, l2;
    Nesting nesting;
    Moment linear_since = {};                    // what L2's, or L1's, own tables say
    std::map<std::uint64_t, Moment> page_since;  // by linear page
    Moment nested_since = {};                    // what nested tables say
    std::map<std::uint64_t, Moment> root_since;  // by root
    std::map<std::uint16_t, Moment> tag_since;
    bool log_full = false;
    unsigned logged = 0;  // by the step at hand
  };
  struct AllowedOutcomes {
    std::vector<Outcome> outcomes;
    std::vector<oracle::Use> uses;
    bool certain = true;   // the tables have not changed since the vCPU last invalidated
    bool complete = true;  // they are all listed
  };
  class World;

  void FlushAll() override;
  cpu::CpuModel MakeModel();
  Moment Now() const { return {told_.now(), untold_.now()}; }

  void Choose(Cpu& cpu);
  void EnterL2(Cpu& cpu);
  void LeaveL2(Cpu& cpu);
  void EnterOrLeave(Cpu& cpu);
  void ChangeL1(Cpu& cpu);
  void ChangeL2(Cpu& cpu);
  void ChangeNesting(Cpu& cpu);
  void InvalidateNested(Cpu& cpu);
  void Invlpg(Cpu& cpu);
  void HostWrites();
  void ChangeSlot();
  void SetAttribute();
  Complaint DriveLog();
  Complaint CheckedAccess(Cpu& cpu, std::uint64_t linear, Asked asked);
  Complaint Writes(Cpu& cpu, std::uint64_t linear);
  // Makes the access, and notes what the walks have set.
  Outcome MakeAccess(Cpu& cpu, std::uint64_t linear, Asked asked, bool& from_tlb);
  Complaint NoteUpdates(const Cpu& cpu, std::uint64_t but = ~std::uint64_t{0});
  void NoteChange(std::uint64_t at, bool told);

  std::uint64_t HostFrame();
  std::uint64_t NestedEntry(const Cpu& cpu, std::uint64_t table);
  std::uint64_t GuestEntry(std::uint64_t table);
  std::uint64_t AnyEntry(const Cpu& cpu, std::uint64_t at);
  std::uint64_t WideFrame(std::uint64_t low);
  std::uint64_t SomeEntry(const Cpu& cpu);
  unsigned RandomIndex(unsigned count);
  std::uint64_t RandomLinear(const Cpu& cpu);
  Asked RandomAsked();

  static bool in_l2(const Cpu& cpu) { return cpu.cpu->nested(); }
  static PagingState StateOf(const Cpu& cpu) { return in_l2(cpu) ? cpu.l2 : cpu.l1; }
  Moment LinearSince(const Cpu& cpu, std::uint64_t linear) const;
  Moment NestedSince(const Cpu& cpu) const;
  AllowedOutcomes Allowed(const Cpu& cpu, std::uint64_t linear, Asked asked) const;
  Outcome OutcomeOf(const oracle::Ending& ending, Asked asked) const;
  bool HasUsed(const std::vector<oracle::Use>& uses) const;
  std::uint64_t WordAt(std::uint64_t address, bool by_hardware) const;
  std::optional<std::uint64_t> GpaOfHost(std::uint64_t host) const;
  Complaint CheckSptesBelow(const Cpu& cpu, const ShadowPage& root, const ShadowPage& page,
                            std::uint64_t address) const;
  Complaint CheckLeaf(const Cpu& cpu, const ShadowPage& root, std::uint64_t address,
                      Level level) const;
  std::string Words(const Cpu& cpu, std::uint64_t linear, Asked asked, const char* what,
                    Outcome got, const AllowedOutcomes& allowed) const;

  const NestingKind kind_;
  Choices* choices_;
  const bool two_stages_;  // of L1
  const cpu::CpuModel model_;
  TestMemory memory_;
  MemoryAttributes attributes_;
  const GuestTables tables_;
  const SpteCodec nested_codec_;
  ShadowPages pages_;
  LogWitness log_;
  // Values of entries of shadowed tables: what the MMU is told of counts at once. And of others.
  EntryHistory told_, untold_;
  std::vector<std::uint64_t> copy_;  // of the frames that may be tables
  std::vector<Cpu> cpus_;
  Cpu* current_ = nullptr;
  std::array<std::uint64_t, 4> recent_ = {};  // linear pages
  std::uint64_t habit_ = 0;
  bool ordered_ = false;  // entries lead where they mostly make sense
  unsigned slot_state_ = 0;
  bool ending_ = false;  // vCPUs are going
};

}  // namespace pagesaw
