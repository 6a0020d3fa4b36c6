// A VM made of chance: guest tables that point at one another, several vCPUs that use and change
// them in turn, a host that writes memory and moves slots. After every access its outcome is
// compared with what the manuals allow; now and then all SPTEs are.
module;
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>
export module pagesaw.tests.mmu.random_vm;

import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.cpu.model;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.paging_oracle;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.test_memory;
import pagesaw.tests.mmu.choices;
import pagesaw.tests.mmu.differential_vm;
import pagesaw.tests.mmu.entry_history;
import pagesaw.tests.mmu.virtual_cpu;

export namespace pagesaw {

class RandomVm final : public DifferentialVm, private TlbFlusher {
 public:
  // The kinds of table that the processors believe in: shadows of the guest's own, or a second
  // stage.
  static constexpr unsigned kKinds = 5;
  static const char* NameOf(unsigned kind);

  // A VM of `kind` with 1 to 4 vCPUs. `choices` must outlive it.
  RandomVm(unsigned kind, unsigned vcpu_count, Choices& choices);
  ~RandomVm() override;

  std::optional<std::string> Step() override;
  std::optional<std::string> CheckAllSptes() const override;
  std::string Describe() const override;

 private:
  // A vCPU, and since when it can use nothing older than what tables say now.
  struct Cpu {
    std::unique_ptr<VirtualCpu> cpu;
    std::uint64_t all_since = 1;                                             // all its translations
    std::map<unsigned, std::uint64_t> space_since;                           // by PCID
    std::map<std::pair<unsigned, std::uint64_t>, std::uint64_t> page_since;  // and linear page
  };
  struct AllowedOutcomes {
    std::vector<Outcome> outcomes;
    bool certain = true;   // the tables have not changed since the vCPU last invalidated
    bool complete = true;  // they are all listed
  };

  void FlushAll() override;

  bool shadows() const { return kind_ == 0; }
  PageFormat SpteFormat() const;
  cpu::CpuModel MakeModel();

  void ChangeMode(Cpu& cpu);
  void LoadRegisters(Cpu& cpu, std::uint64_t mode);
  std::optional<std::string> LoadCr3(Cpu& cpu);
  void FlipControlBits(Cpu& cpu);
  std::optional<std::string> Invalidate(Cpu& cpu);
  void HostWrites();
  void ChangeSlot();
  std::optional<std::string> CheckedAccess(Cpu& cpu, std::uint64_t linear);
  std::optional<std::string> GuestWrites(Cpu& cpu);
  // Makes the access, and keeps the history right where the walk's A and D are another entry's
  // address.
  Outcome MakeAccess(Cpu& cpu, std::uint64_t linear, Asked asked, bool& from_tlb);

  std::uint64_t RandomFrame(std::uint64_t table);
  std::uint64_t RandomEntry(std::uint64_t table);
  unsigned RandomIndex(unsigned count);
  std::uint64_t RandomRoot(PagingMode mode);
  std::uint64_t RandomLinear(const Cpu& cpu);
  Asked RandomAsked();
  Gpa RandomEntryAddress(const Cpu& cpu, unsigned& bytes);

  static PagingState StateOf(const Cpu& cpu) { return cpu.cpu->core().Paging(); }
  static unsigned PcidOf(const Cpu& cpu);
  std::uint64_t Since(const Cpu& cpu, std::uint64_t linear) const;
  AllowedOutcomes Allowed(const Cpu& cpu, std::uint64_t linear, Asked asked) const;
  Outcome OutcomeOf(const oracle::Verdict& verdict, Asked asked) const;
  bool HasAccessedDirty(const Cpu& cpu, std::uint64_t linear, Asked asked) const;
  // The 8 bytes at a guest-physical address; all ones where nothing is.
  std::uint64_t MemoryAt(std::uint64_t address) const;
  // What a walk reads there.
  std::uint64_t WordAt(std::uint64_t address) const;
  std::optional<std::uint64_t> GpaOfHost(std::uint64_t host) const;
  std::optional<std::string> CheckSptesBelow(const Cpu& cpu, const ShadowPage& root,
                                             const ShadowPage& page, std::uint64_t linear) const;
  std::optional<std::string> CheckLeaf(const Cpu& cpu, const ShadowPage& root,
                                       std::uint64_t address, Level level) const;
  std::string Words(const Cpu& cpu, std::uint64_t linear, Asked asked, const char* what,
                    Outcome got, const AllowedOutcomes& allowed) const;

  const unsigned kind_;
  Choices* choices_;
  const cpu::CpuModel model_;
  TestMemory memory_;
  const GuestTables tables_;
  ShadowPages pages_;
  EntryHistory history_;
  std::vector<Cpu> cpus_;
  const Cpu* current_ = nullptr;
  std::array<std::uint64_t, 4> recent_ = {};  // linear pages
  bool ordered_ = false;                      // tables of the lowest level are those alone
  unsigned slot_state_ = 0;
  bool ending_ = false;  // vCPUs are going
};

}  // namespace pagesaw
