// The shadow MMU whose tables shadow tables of the guest's. As `root_mmu` where the processor has
// one stage (TDP off): the tables map linear addresses to host memory, and shadow those that the
// guest's CR3 names. As `guest_mmu`: they map physical addresses of a guest's guest, and shadow the
// nested tables that its hypervisor has made. docs/mmu.md tells how they stay true.
module;
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>
export module pagesaw.mmu.shadowing_mmu;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadow_root;
import pagesaw.mmu.spte;
import pagesaw.mmu.tdp_walker;

export namespace pagesaw {

// The format of the SPTEs that stand for linear addresses; what a `ShadowPages` for ShadowingMmu
// is made with.
PageFormat LinearSpteFormat();

// One vCPU's shadow MMU, over shadow pages that all vCPUs of the VM share.
class ShadowingMmu final : public ShadowMmu {
 public:
  // Null if the host has no memory. Everything given must outlive the MMU. `walker` must be told of
  // a paging state before `PagingChanged` is; both start without paging.
  static std::unique_ptr<ShadowingMmu> Make(ShadowPages& pages, const GuestMemory& memory,
                                            const GuestTables& tables, PageWalker& walker);
  // The same for nested tables, in shadow pages of a `nested_codec`. `walker` must be told of
  // nested paging before `NestedPagingChanged` is.
  static std::unique_ptr<ShadowingMmu> MakeNested(ShadowPages& pages, const GuestMemory& memory,
                                                  const GuestTables& tables, TdpWalker& walker);
  ~ShadowingMmu() override;

  std::string_view name() const override { return nested_ ? "guest_mmu" : "root_mmu"; }
  // Of the SPTEs, with the rules that the processor applies to them now.
  const PageFormat& format() const override { return formats_[format_index_]; }
  // Takes the MMU lock.
  ShadowRole root_role() const override;
  const PageWalker& walker() const override { return walker_; }

  ShadowRoot Root() override;
  bool roots_obsolete() const override { return root_stale_ || pages_.root_epoch() != root_epoch_; }
  FaultResolution HandleFault(const MmuFault& fault) override;
  void PagingChanged(const PagingState& state, const Invalidation& invalidation) override;
  void Invalidate(const Invalidation& invalidation) override;
  void NestedPagingChanged(const NestedPaging& nested) override;
  void InvalidateNested(const NestedInvalidation& invalidation) override;
  void GuestWrote(Gpa gpa, std::uint64_t bytes) override { pages_.GuestWrote(gpa, bytes); }

  // Takes the MMU lock.
  WalkResult Inspect(InputAddress address, Access access, WalkTrace* trace) const override;
  std::vector<RootInfo> Roots() const override;

 private:
  // A root as one PCID of this vCPU, or one tag of nested paging, knows it.
  struct CachedRoot {
    ShadowPage* page = nullptr;
    RootKey key = {};
    std::uint16_t pcid = 0;
    std::uint64_t root_register = 0;
    Gpa table = {};  // nested paging: the root table
    // The `fill_clock` until which its SPTEs may be used though their entries have changed since:
    // the PCID has been able to cache them, and nothing has invalidated them.
    std::uint64_t trusted_until = 0;
  };
  static constexpr std::uint64_t kAlways = ~std::uint64_t{0};  // it is in use
  // The way to an address through shadow pages: in each but the last, `index` links the next.
  struct PathStep {
    ShadowPage* page = nullptr;
    unsigned index = 0;
    std::uint64_t record = 0;
  };
  struct Path {
    std::array<PathStep, 2 * kMaxLevels> steps;
    unsigned count = 0;
    ShadowedEntry leaf = {};  // what the guest says about the address
    Level leaf_level = Level::kPt;
    Rights rights = {};                           // AND over all levels
    FaultOutcome failure = FaultOutcome::kRetry;  // if there is no way
  };
  static constexpr unsigned kPreviousRoots = 3;
  static constexpr unsigned kFormatCount = 64;

  ShadowingMmu(ShadowPages& pages, const GuestMemory& memory, const GuestTables& tables,
               PageWalker& walker, const TdpWalker* tdp_walker, ShadowPage* empty_root);

  const SpteCodec& CodecHere() const { return pages_.CodecOf(empty_root_->role); }
  RootKey KeyNow() const;
  bool HasTable(const RootKey& key) const;
  ShadowPage* MakeRoot(ShadowPages::Lock& lock, const RootKey& key);
  void SwitchRoot(ShadowPages::Lock& lock, const RootKey& key);
  void Distrust(const Invalidation& invalidation);
  void InvalidateAddress(Gva linear);
  void Release(ShadowPages::Lock& lock, CachedRoot& root);

  bool RegrantWrite(const MmuFault& fault);
  FaultOutcome Map(ShadowPages::Lock& lock, InputAddress address, Access access,
                   FaultResolution& resolution);
  bool FindPath(InputAddress address, Path& path);
  std::optional<ShadowedEntry> ReadEntry(const ShadowPage& page, unsigned index) const;
  ShadowRole ChildRole(const ShadowPage& page, unsigned index, const ShadowedEntry& entry) const;
  bool LinkPath(Path& path, InputAddress address, Level level, Rights rights);
  void LinkIfNeeded(const PathStep& step, ShadowPage& child);
  FaultOutcome MapMemory(Path& path, InputAddress address, Access access, const MemorySlot& slot,
                         Gpa gpa, const MemoryAttribute& attribute);
  FaultOutcome MarkMmio(Path& path, InputAddress address, Gpa gpa);
  Access JudgedByAttribute(Access access, const Path& path) const;
  Rights GrantedBy(const Path& path) const;
  void FlipForSupervisorWrite(Rights& rights) const;

  ShadowPages& pages_;
  const GuestMemory& memory_;
  const GuestTables& tables_;
  PageWalker& walker_;
  const TdpWalker* const tdp_walker_;  // the same, if it is one
  ShadowPage* const empty_root_;       // stands for a root table that is in no memory

  // By CR0.WP, CR4.SMEP, SMAP, PKE, PKS and CET; with nested paging there is one.
  std::vector<PageFormat> formats_;
  std::atomic<unsigned> format_index_ = 0;

  PagingState state_;  // of the vCPU's thread, like what follows
  // `guest_mmu` only, and always; guarded by the MMU lock for others.
  std::optional<NestedPaging> nested_;
  std::uint8_t nested_format_ = 0;  // its number
  std::uint64_t last_used_ = 0;     // `fill_clock` when the current root was last seen in use
  std::atomic<bool> root_stale_ = true;
  std::atomic<std::uint64_t> root_epoch_ = 0;  // of the shadow pages, when the root was looked at
  CachedRoot current_;  // guarded by the MMU lock for others; as is what follows
  std::array<CachedRoot, kPreviousRoots> previous_ = {};
};

}  // namespace pagesaw
