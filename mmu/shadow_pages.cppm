// The shadow pages of a VM: tables of SPTEs with what must be known about each. Shared by the VM's
// vCPUs and guarded by one lock, the MMU lock; docs/mmu.md has the locking order.
module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>
export module pagesaw.mmu.shadow_pages;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.rmap;
import pagesaw.mmu.spte;
import pagesaw.mmu.spte_list;

export namespace pagesaw {

inline constexpr unsigned kSptesPerPage = 512;

// One table of SPTEs. All fields are guarded by the MMU lock; SPTEs are read by processors and by
// lock-free readers at any time.
struct ShadowPage {
  std::uint64_t* sptes = nullptr;
  Gfn gfn = {};
  ShadowRole role = {};
  std::uint64_t id = 0;
  std::uint64_t generation = 0;     // of the trees, when it was made
  SpteList parents = {};            // the SPTEs that link it; none for a root
  std::uint32_t present_count = 0;  // live SPTEs
  std::uint32_t filled_count = 0;   // those, and marks of devices
  std::uint32_t root_count = 0;     // uses as a vCPU's root, current or kept for later
  // Found by gfn and role, so that it may have many parents, or none for a while. Its leaves are in
  // the reverse map.
  bool shared = false;
  // Some guest write may have gone unseen: SPTEs may be as the entries were before.
  bool unsync = false;
  bool frame_writable = false;  // the guest table can be written without a fault; then unsync too
  bool reachable = false;       // what search number `search` found
  std::uint64_t search = 0;
  std::uint64_t filled_at = 0;     // lowest level: `fill_clock` when an SPTE was last made
  std::uint8_t writes = 0;         // of the guest table that were seen since its last use
  std::uint64_t protected_by = 0;  // the flush since which no processor can write the table unseen
  // What each SPTE was made from. Null if computed from the gfn.
  std::unique_ptr<ShadowedEntries> records = nullptr;
  ShadowPage* older = nullptr;  // in the list of all pages, by creation
  ShadowPage* newer = nullptr;
  ShadowPage* next_zapped = nullptr;
  ShadowPage* next_in_bucket = nullptr;

  inline Hpa table() const { return Hpa(reinterpret_cast<std::uintptr_t>(sptes)); }
  // Whether a guest table stands behind it.
  inline bool shadows() const { return records != nullptr; }
};

// Counted by whoever handles faults, under no lock.
struct FaultCounters {
  std::atomic<std::uint64_t> faults = 0;
  std::atomic<std::uint64_t> fixed = 0;
  std::atomic<std::uint64_t> fixed_unlocked = 0;
  std::atomic<std::uint64_t> spurious = 0;
  std::atomic<std::uint64_t> mmio = 0;
  std::atomic<std::uint64_t> guest = 0;

  // Counts a fault that has been handled.
  void Count(FaultOutcome outcome);
};

class ShadowPages {
 public:
  using Lock = std::unique_lock<std::mutex>;

  // At most `limit` pages at a time. The flusher must outlive the pages, and so must `tables`,
  // which may be null if no guest tables are shadowed, and `attributes`, null if there are none.
  // SPTEs of a guest's guest are of `nested_codec`, which must keep D if `codec` does.
  ShadowPages(const SpteCodec& codec, TlbFlusher& flusher, std::size_t limit,
              const GuestTables* tables = nullptr, const MemoryAttributes* attributes = nullptr,
              const SpteCodec* nested_codec = nullptr);
  ~ShadowPages();
  ShadowPages(const ShadowPages&) = delete;
  ShadowPages& operator=(const ShadowPages&) = delete;

  // Of SPTEs that stand for the guest's own addresses.
  inline const SpteCodec& codec() const { return codec_; }
  inline const SpteCodec& CodecOf(const ShadowRole& role) const {
    return role.guest_mode ? nested_codec_ : codec_;
  }
  FaultCounters& counters() { return counters_; }

  // Takes the MMU lock.
  Lock Acquire() const { return Lock(mutex_); }

  // Of the memory slots: MMIO SPTEs of another generation count for nothing.
  std::uint16_t generation() const { return generation_.load(std::memory_order_acquire); }

  // To be called when slots that touch `count` frames from `first` have been added, removed or
  // changed, after the change can be seen: SPTEs made from the old state are gone, and forgotten by
  // all processors, when it returns. Takes the MMU lock.
  void SlotsChanged(Gfn first, std::uint64_t count);
  // The same for every frame.
  void AllSlotsChanged();
  // Makes every page obsolete at once, whatever it takes to free them, and returns when processors
  // know and they are freed. Roots have to be asked for again. Takes the MMU lock, for a while at a
  // time.
  void ZapAll();

  // To be called when the attributes of `count` frames from `first` have been restricted, after
  // that can be seen: no SPTE grants more than they say any more, and no processor does, when it
  // returns. Takes the MMU lock. Nobody need be told of more rights: faults find them.
  void AttributesChanged(Gfn first, std::uint64_t count);

  // What the host lets the guest do with `gfn`.
  MemoryAttribute AttributeOf(Gfn gfn) const {
    return attributes_ != nullptr ? attributes_->Of(gfn) : MemoryAttribute{};
  }

  // `bytes` bytes of guest memory from `gpa` may have changed, and can be seen. What was made from
  // guest tables there is right again, and processors have forgotten the rest, when it returns.
  // Takes the MMU lock if any table is shadowed.
  void GuestWrote(Gpa gpa, std::uint64_t bytes);

  // Dirty logging: which frames of a slot are written from now on, by whatever means. The first
  // write to each is looked out for by `method`; large pages of the slot are broken by their first
  // write. Every call returns when processors know, and takes the MMU lock, for a while at a time.
  //
  // False if the slot is logged, or the format keeps no D for the method.
  [[nodiscard]] bool StartDirtyLog(const MemorySlot& slot, DirtyLogMethod method);
  // Ends it, and lets the slot be mapped by large pages again. False if the slot is not logged.
  bool StopDirtyLog(std::uint32_t slot_id);
  // The frames that were written since the start or the last call, as bit i % 64 of word i / 64 for
  // page i of the slot, and forgets them: a write is told of by this call, or by the next if it
  // comes after what the caller then reads. Nothing if the slot is not logged.
  std::optional<std::vector<std::uint64_t>> TakeDirtyLog(std::uint32_t slot_id);
  // What marks writes that no SPTE lets through.
  const DirtyLogs& dirty_logs() const { return logs_; }

  // How many of `count` frames from `first` have been accessed through SPTEs since they were mapped
  // or since the last call. Takes the MMU lock.
  std::uint64_t TestAndClearYoung(Gfn first, std::uint64_t count);

  // What needs no lock: an SPTE on the way to `address` from `root`, the first that is no link.
  // Nobody keeps it from being changed, or from being taken for another page.
  struct SptePlace {
    std::uint64_t* spte = nullptr;
    Level level = Level::kPt;
    const SpteCodec* codec = nullptr;
  };
  SptePlace FindUnlocked(const ShadowPage& root, InputAddress address) const;
  // Whether the leaf at `place` allows `access` already (kSpurious), or does once it has the rights
  // back that were taken from it to see the next access (kFixed). Nothing if that is not all.
  std::optional<FaultOutcome> RegrantUnlocked(SptePlace place, Access access);

  // Of the trees: pages of another generation are obsolete.
  std::uint64_t tree_generation() const { return tree_generation_.load(); }

  // Changes whenever a page that is somebody's root has been zapped.
  std::uint64_t root_epoch() const { return root_epoch_.load(std::memory_order_acquire); }

  MmuStatistics Statistics() const;
  // Up to `count` pages whose ids are above `after`, by ascending id.
  std::vector<ShadowPageInfo> List(std::uint64_t after, std::size_t count) const;

  // What follows needs the MMU lock.

  // Makes room for a fault's worth of pages by zapping old ones if it must; may let go of `lock`
  // for a while. False if there is no room yet: the fault is to be tried again.
  [[nodiscard]] bool EnsureRoom(Lock& lock);
  // Whether `page` is no part of the VM's trees any more. A root that is has to be let go of.
  bool IsObsolete(const ShadowPage& page) const {
    return page.role.invalid || page.generation != tree_generation();
  }
  // An empty page, or null if the host has no memory or the limit is reached.
  ShadowPage* Make(Gfn gfn, const ShadowRole& role);
  // The root of `role` that starts at frame 0, made if there is none, with one more user. Null as
  // for Make.
  ShadowPage* AcquireRoot(const ShadowRole& role);
  // One user less; the last one takes the tree away.
  void ReleaseRoot(Lock& lock, ShadowPage* root);

  // The page whose table `address` lies in.
  static ShadowPage* PageAt(Hpa address);

  // Sets SPTE `index` of `page`; `record` is what it was made from, if the page has records. A link
  // that goes takes the pages below with it that are not shared.
  void Set(ShadowPage& page, unsigned index, std::uint64_t spte, std::uint64_t record = 0);
  // Links `child` there.
  void Link(ShadowPage& page, unsigned index, ShadowPage& child, std::uint64_t record = 0);

  // The shared page of `gfn` and `role`, made if there is none, or null as for Make. One that is
  // made for a guest table takes the guest's right to write it unseen: if `NeedsCommit`, entries
  // must be read after Commit.
  ShadowPage* FindOrMake(Gfn gfn, const ShadowRole& role);
  // Keeps `page` from being taken away for good while it is a root.
  void HoldRoot(ShadowPage& page) { ++page.root_count; }
  // A page of its own for a root that stands for registers.
  ShadowPage* MakePrivateRoot(const ShadowRole& role);
  // Takes a shared page away.
  void ZapPage(ShadowPage& page);
  bool NeedsCommit() const { return flush_needed_; }

  // Whether a leaf of `level` may map the frames from `first`: no guest table that is shadowed is
  // among them, no frame that is logged, and their attributes are the same.
  bool LargePageAllowed(Gfn first, Level level) const;
  // Makes `leaf`, for an access that writes or not, so that the log of its frame, if there is one,
  // will know of writes.
  void PrepareForLog(LeafSpte& leaf, Gfn gfn, bool writes) const;
  // Whether SPTEs may let the guest write `gfn` unseen. With `try_unsync`, tables of the lowest
  // level there are given up to be written, until the next synchronization.
  bool MayBeWritten(Gfn gfn, bool try_unsync);
  // Brings the unsync pages that `page` leads to, and itself, up to date with the guest's tables:
  // SPTEs that do not hold any more go. To be called where `page` is about to be linked anew.
  void ResyncBelow(ShadowPage& page);
  // The same below `root` for pages in which SPTEs have been made since `fill_clock` was `since`;
  // from then on writes to their tables are seen again. Lets go of `lock` for a while if there is
  // anything to do, and commits.
  void Sync(Lock& lock, const ShadowPage& root, std::uint64_t since);
  // Counts the SPTEs made at the lowest level: when an SPTE was made.
  std::uint64_t fill_clock() const { return fill_clock_; }

  // Looks for contradictions and describes the first; for tests.
  std::optional<std::string> Audit() const;

  // Makes processors forget what has been taken away, and frees the pages that went. Lets go of
  // `lock` meanwhile if there is anything to do. Nobody may rely on a removal before.
  void Commit(Lock& lock);

  // Reads an SPTE; needs no lock.
  static inline std::uint64_t Load(const std::uint64_t* spte) {
    return std::atomic_ref(*const_cast<std::uint64_t*>(spte)).load(std::memory_order_acquire);
  }

 private:
  class Arena;

  void Zap(ShadowPage& page);
  void ZapRange(ShadowPage& page, Gfn first, std::uint64_t last);
  void ZapSharedRange(Gfn first, std::uint64_t last);
  void ZapAll(Lock& lock);
  void ZapObsoleteRoots();
  void FreeZapped(ShadowPage* zapped);
  void Append(ShadowPage& page);
  void TakeOut(ShadowPage& page);
  void Unlink(ShadowPage& page);
  void TakeAway(ShadowPage& page);
  void Drop(std::uint64_t* spte);
  std::size_t ZapOldest(std::size_t count, bool obsolete_only);

  ShadowPage*& Bucket(Gfn gfn);
  template <typename Visit>
  void ForEachShadow(Gfn gfn, Visit visit) const;
  void BeginShadowing(ShadowPage& page);
  void EndShadowing(ShadowPage& page);
  void ZapOtherAccessedDirty(Gfn gfn, const EntryLayout& layout);
  void WriteProtectFrame(Gfn gfn);
  void WriteProtectLeaf(std::uint64_t* spte);
  void WriteProtectBelow(ShadowPage& root, Gfn gfn);
  void Resync(ShadowPage& page);
  void ResyncRange(ShadowPage& page, unsigned first, unsigned count);
  bool LeadsTo(const ShadowPage& top, ShadowPage& page);
  template <typename Visit>
  void ForEachUnsyncBelow(const ShadowPage& top, Visit visit);
  void TableWritten(Gfn gfn, std::uint64_t offset, std::uint64_t bytes);
  void AddToRmap(ShadowPage& page, unsigned index);
  void RemoveFromRmap(ShadowPage& page, unsigned index);
  static Gfn FrameOf(const ShadowPage& page, unsigned index);
  std::optional<const char*> AuditRights(const SpteCodec& codec, std::uint64_t spte, Gfn gfn,
                                         Level level) const;
  std::optional<std::string> AuditPage(const ShadowPage& page) const;
  std::optional<std::string> AuditCounts() const;
  bool HoldsTable(Gfn first, Level level) const;
  const char* AuditLimits(const ShadowPage& page, unsigned index, std::uint64_t spte) const;
  template <typename Visit>
  void ForEachLeafBelow(const ShadowPage& page, Gfn first, std::uint64_t last, Visit visit) const;
  template <typename Visit>
  void ForEachLeaf(Gfn first, std::uint64_t last, Visit visit) const;
  void NoteWrites(const SpteCodec& codec, std::uint64_t old, std::uint64_t spte);
  void TakeWords(DirtyLog& log, std::size_t first, std::span<std::uint64_t> words);
  bool CouldBeLarge(const SpteCodec& codec, const MemorySlot& slot, Gfn gfn, Level level) const;
  void ZapSmallPages(ShadowPage& page, const MemorySlot& slot, Gfn first, std::uint64_t last);
  void RecoverLargePages(Lock& lock, const MemorySlot& slot);
  bool NewGeneration();
  void Count(const SpteCodec& codec, std::uint64_t spte, Level level, std::uint64_t change);
  inline const SpteCodec& CodecAt(const std::uint64_t* spte) const {
    return CodecOf(PageAt(Hpa(reinterpret_cast<std::uintptr_t>(spte)))->role);
  }

  const SpteCodec codec_;
  const SpteCodec nested_codec_;
  TlbFlusher& flusher_;
  const std::size_t limit_;
  FaultCounters counters_;
  std::atomic<std::uint16_t> generation_ = 0;
  std::atomic<std::uint64_t> tree_generation_ = 0;

  mutable std::mutex mutex_;
  std::unique_ptr<Arena> arena_;
  const GuestTables* const tables_;
  const MemoryAttributes* const attributes_;
  std::vector<ShadowPage*> roots_;    // of trees that are not shared
  std::vector<ShadowPage*> buckets_;  // of shared pages, by gfn
  std::vector<ShadowPage*> unsync_;
  std::uint64_t fill_clock_ = 1;
  std::uint64_t last_search_ = 0;
  mutable Rmap rmap_;
  DirtyLogs logs_;
  // How many pages shadow tables in each block of 2 MiB and of 1 GiB.
  std::unordered_map<std::uint64_t, std::uint32_t> shadowed_in_[2];
  std::atomic<std::size_t> shadowing_count_ = 0;
  std::atomic<std::uint64_t> root_epoch_ = 0;
  ShadowPage* oldest_ = nullptr;
  ShadowPage* newest_ = nullptr;
  ShadowPage* zapped_ = nullptr;  // gone from their tree, perhaps still known to a processor
  bool flush_needed_ = false;
  std::uint64_t flush_count_ = 0;  // begun
  // The latest that is done, and with it every one that was begun before.
  std::uint64_t flush_done_ = 0;
  std::uint64_t last_id_ = 0;
  std::size_t page_count_ = 0;  // in trees or zapped
  MmuStatistics statistics_;    // all but the fault counters
};

}  // namespace pagesaw
