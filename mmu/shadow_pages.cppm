// The shadow pages of a VM: tables of SPTEs with what must be known about each. Shared by the VM's
// vCPUs and guarded by one lock, the MMU lock; docs/mmu.md has the locking order.
module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>
export module pagesaw.mmu.shadow_pages;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.spte;

export namespace pagesaw {

inline constexpr unsigned kSptesPerPage = 512;

// One table of SPTEs. All fields are guarded by the MMU lock; SPTEs are read by processors and by
// lock-free readers at any time.
struct ShadowPage {
  std::uint64_t* sptes = nullptr;
  Gfn gfn = {};
  ShadowRole role = {};
  std::uint64_t id = 0;
  std::uint64_t* parent = nullptr;  // the SPTE that links it; null for a root
  std::uint32_t present_count = 0;  // live SPTEs
  std::uint32_t root_count = 0;     // vCPUs that have it as a root
  ShadowPage* older = nullptr;      // in the list of all pages, by creation
  ShadowPage* newer = nullptr;
  ShadowPage* next_zapped = nullptr;

  Hpa table() const { return Hpa(reinterpret_cast<std::uintptr_t>(sptes)); }
};

// Counted by whoever handles faults, under no lock.
struct FaultCounters {
  std::atomic<std::uint64_t> faults = 0;
  std::atomic<std::uint64_t> fixed = 0;
  std::atomic<std::uint64_t> spurious = 0;
  std::atomic<std::uint64_t> mmio = 0;
  std::atomic<std::uint64_t> guest = 0;
};

class ShadowPages {
 public:
  using Lock = std::unique_lock<std::mutex>;

  // At most `limit` pages at a time. The flusher must outlive the pages.
  ShadowPages(const SpteCodec& codec, TlbFlusher& flusher, std::size_t limit);
  ~ShadowPages();
  ShadowPages(const ShadowPages&) = delete;
  ShadowPages& operator=(const ShadowPages&) = delete;

  const SpteCodec& codec() const { return codec_; }
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

  MmuStatistics Statistics() const;
  // Up to `count` pages whose ids are above `after`, by ascending id.
  std::vector<ShadowPageInfo> List(std::uint64_t after, std::size_t count) const;

  // What follows needs the MMU lock.

  // Makes room for a fault's worth of pages by zapping old ones if it must; may let go of `lock`
  // for a while. False if there is no room yet: the fault is to be tried again.
  [[nodiscard]] bool EnsureRoom(Lock& lock);
  // An empty page, or null if the host has no memory or the limit is reached.
  ShadowPage* Make(Gfn gfn, const ShadowRole& role);
  // The root of `role` that starts at frame 0, made if there is none, with one more user. Null as
  // for Make.
  ShadowPage* AcquireRoot(const ShadowRole& role);
  // One user less; the last one takes the tree away.
  void ReleaseRoot(Lock& lock, ShadowPage* root);

  // The page whose table is at `table`.
  static ShadowPage* PageAt(Hpa table);

  // Sets SPTE `index` of `page`. A link that goes takes the pages below with it.
  void Set(ShadowPage& page, unsigned index, std::uint64_t spte);
  // Links `child` there.
  void Link(ShadowPage& page, unsigned index, ShadowPage& child);
  // Makes processors forget what has been taken away, and frees the pages that went. Lets go of
  // `lock` meanwhile if there is anything to do. Nobody may rely on a removal before.
  void Commit(Lock& lock);

  // Reads an SPTE; needs no lock.
  static std::uint64_t Load(const std::uint64_t* spte) {
    return std::atomic_ref(*const_cast<std::uint64_t*>(spte)).load(std::memory_order_acquire);
  }

 private:
  class Arena;

  void Zap(ShadowPage& page);
  void ZapRange(ShadowPage& page, Gfn first, std::uint64_t last);
  void Unlink(ShadowPage& page);
  std::size_t ZapOldest(std::size_t count);
  void NewGeneration();
  void Count(std::uint64_t spte, Level level, std::uint64_t change);

  const SpteCodec codec_;
  TlbFlusher& flusher_;
  const std::size_t limit_;
  FaultCounters counters_;
  std::atomic<std::uint16_t> generation_ = 0;

  mutable std::mutex mutex_;
  std::unique_ptr<Arena> arena_;
  std::vector<ShadowPage*> roots_;
  ShadowPage* oldest_ = nullptr;
  ShadowPage* newest_ = nullptr;
  ShadowPage* zapped_ = nullptr;  // gone from their tree, perhaps still known to a processor
  bool flush_needed_ = false;
  std::uint64_t last_id_ = 0;
  std::size_t page_count_ = 0;  // in trees or zapped
  MmuStatistics statistics_;    // all but the fault counters
};

}  // namespace pagesaw
