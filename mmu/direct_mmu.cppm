// `root_mmu` where the processor has two stages (TDP on): the tables map guest physical addresses
// straight to the memory of the slots. No table of the guest stands behind them.
module;
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>
export module pagesaw.mmu.direct_mmu;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.shadow_pages;

export namespace pagesaw {

// One vCPU's view of a tree that all vCPUs of the VM share.
class DirectMmu final : public ShadowMmu {
 public:
  // Null if the host has no memory for the root. Everything given must outlive the MMU. Trees are
  // `root_level` levels deep; addresses beyond their reach are devices'.
  static std::unique_ptr<DirectMmu> Make(ShadowPages& pages, const GuestMemory& memory,
                                         const PageWalker& cpu_walk, Level root_level);
  ~DirectMmu() override;

  std::string_view name() const override { return "root_mmu"; }
  const PageFormat& format() const override { return pages_.codec().format(); }
  ShadowRole root_role() const override { return role_; }
  const PageWalker& walker() const override { return walker_; }

  ShadowRoot Root() override;
  bool roots_obsolete() const override { return pages_.tree_generation() != root_generation_; }

  FaultResolution HandleFault(const MmuFault& fault) override;
  void GuestWrote(Gpa gpa, std::uint64_t bytes) override { pages_.GuestWrote(gpa, bytes); }

  // Takes the MMU lock.
  WalkResult Inspect(InputAddress address, Access access, WalkTrace* trace) const override;
  std::vector<RootInfo> Roots() const override;

 private:
  DirectMmu(ShadowPages& pages, const GuestMemory& memory, const PageWalker& walker,
            const ShadowRole& role, ShadowPage* root);

  void Reload(ShadowPages::Lock& lock);
  OutputAddress RootTable() const;
  bool Reaches(Gpa gpa) const;
  std::optional<FaultOutcome> ResolveUnlocked(Gpa gpa, Access access) const;
  FaultOutcome Map(ShadowPages::Lock& lock, Gpa gpa, const MmuFault& fault,
                   FaultResolution& resolution);
  FaultOutcome MapMemory(const MemorySlot& slot, Gpa gpa, Access access,
                         const MemoryAttribute& attribute);
  FaultOutcome MarkMmio(Gpa gpa);
  ShadowPage* Descend(Gpa gpa, Level level);

  ShadowPages& pages_;
  const GuestMemory& memory_;
  const PageWalker& walker_;
  const ShadowRole role_;
  // Changed by the vCPU's thread under the MMU lock. Null: the host had no memory for it.
  ShadowPage* root_;
  std::uint64_t root_generation_;  // of the trees, when the processor was given its root
};

}  // namespace pagesaw
