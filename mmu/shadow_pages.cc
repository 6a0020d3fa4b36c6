module;
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>
module pagesaw.mmu.shadow_pages;

namespace pagesaw {
namespace {

// A fault makes at most this many pages: one for each level below a root of five.
constexpr std::size_t kRoomForFault = kMaxLevels;
// How many pages are zapped at a time when there is no room.
constexpr std::size_t kReclaimBatch = 32;
// How many obsolete pages are freed under one hold of the lock.
constexpr std::size_t kFreeBatch = 64;
// From this many frames on, emptying all trees is cheaper than looking for those of the frames.
constexpr std::uint64_t kManyFrames = LevelBytes(Level::kPdpt) / kPageBytes;
constexpr std::size_t kBuckets = 4096;

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr std::size_t kPagesPerChunk = kChunkBytes / kPageBytes;
// The first pages of a chunk hold the records of the others.
constexpr std::size_t kRecordPages =
    (kPagesPerChunk * sizeof(ShadowPage) + kPageBytes - 1) / kPageBytes;
static_assert(kRecordPages < kPagesPerChunk / 16, "records must stay small beside tables");

ShadowPage* RecordOf(std::uintptr_t table) {
  const std::uintptr_t chunk = table & ~(kChunkBytes - 1);
  return reinterpret_cast<ShadowPage*>(chunk) + (table - chunk) / kPageBytes;
}

// A page that is taken again may be under the eyes of a lock-free reader: no plain stores.
void Clear(std::uint64_t* sptes) {
  for (unsigned i = 0; i < kSptesPerPage; ++i) {
    std::atomic_ref(sptes[i]).store(0, std::memory_order_relaxed);
  }
}

}  // namespace

// Tables and their records, in chunks that are kept until the end: a reader without a lock may hold
// the address of a table that has been freed, and then reads zeroes or SPTEs of another page.
class ShadowPages::Arena {
 public:
  Arena() = default;
  ~Arena() {
    for (std::byte* chunk : chunks_) munmap(chunk, kChunkBytes);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // A record with an empty table, or null.
  ShadowPage* Take() {
    if (free_ != nullptr) {
      ShadowPage* page = std::exchange(free_, free_->next_zapped);
      page->next_zapped = nullptr;
      return page;
    }
    if (next_ == kPagesPerChunk && !AddChunk()) return nullptr;
    std::byte* table = chunks_.back() + kPageBytes * next_++;
    auto* sptes = reinterpret_cast<std::uint64_t*>(table);
    return new (RecordOf(reinterpret_cast<std::uintptr_t>(table))) ShadowPage{.sptes = sptes};
  }

  void Give(ShadowPage* page) {
    std::uint64_t* sptes = page->sptes;
    Clear(sptes);
    page->~ShadowPage();
    free_ = new (page) ShadowPage{.sptes = sptes, .next_zapped = free_};
  }

 private:
  bool AddChunk() {
    chunks_.reserve(chunks_.size() + 1);
    // Twice as much as needed holds an aligned chunk.
    void* mapped = mmap(nullptr, 2 * kChunkBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return false;
    auto* start = static_cast<std::byte*>(mapped);
    const std::size_t before = -reinterpret_cast<std::uintptr_t>(start) & (kChunkBytes - 1);
    if (before != 0) munmap(start, before);
    std::byte* chunk = start + before;
    munmap(chunk + kChunkBytes, kChunkBytes - before);
    chunks_.push_back(chunk);
    next_ = kRecordPages;
    return true;
  }

  std::vector<std::byte*> chunks_;
  std::size_t next_ = kPagesPerChunk;  // the first page of the last chunk that was never used
  ShadowPage* free_ = nullptr;
};

void FaultCounters::Count(FaultOutcome outcome) {
  const auto increment = [](std::atomic<std::uint64_t>& counter) {
    counter.fetch_add(1, std::memory_order_relaxed);
  };
  increment(faults);
  switch (outcome) {
    case FaultOutcome::kFixed:
      return increment(fixed);
    case FaultOutcome::kSpurious:
      return increment(spurious);
    case FaultOutcome::kMmio:
      return increment(mmio);
    case FaultOutcome::kGuestFault:
      return increment(guest);
    case FaultOutcome::kRetry:
    case FaultOutcome::kWriteProtected:
    case FaultOutcome::kAttributeViolation:
    case FaultOutcome::kOutOfMemory:
      return;
  }
}

ShadowPages::ShadowPages(const SpteCodec& codec, TlbFlusher& flusher, std::size_t limit,
                         const GuestTables* tables, const MemoryAttributes* attributes,
                         const SpteCodec* nested_codec)
    : codec_(codec),
      nested_codec_(nested_codec != nullptr ? *nested_codec : codec),
      flusher_(flusher),
      limit_(std::max(limit, 4 * kRoomForFault)),
      arena_(std::make_unique<Arena>()),
      tables_(tables),
      attributes_(attributes),
      buckets_(tables != nullptr ? kBuckets : 0) {}

ShadowPages::~ShadowPages() {
  for (ShadowPage* page = oldest_; page != nullptr;)
    std::exchange(page, page->newer)->~ShadowPage();
}

ShadowPage* ShadowPages::PageAt(Hpa address) { return RecordOf(address.bits()); }

ShadowPage* ShadowPages::Make(Gfn gfn, const ShadowRole& role) {
  if (page_count_ >= limit_) return nullptr;
  ShadowPage* page = arena_->Take();
  if (page == nullptr) return nullptr;
  page->gfn = gfn;
  page->role = role;
  Append(*page);
  ++page_count_;
  ++statistics_.shadow_pages;
  ++statistics_.shadow_pages_made;
  return page;
}

// The list is by creation, and so by id.
void ShadowPages::Append(ShadowPage& page) {
  page.id = ++last_id_;
  page.generation = tree_generation();
  page.older = newest_;
  page.newer = nullptr;
  (newest_ != nullptr ? newest_->newer : oldest_) = &page;
  newest_ = &page;
}

void ShadowPages::TakeOut(ShadowPage& page) {
  (page.older != nullptr ? page.older->newer : oldest_) = page.newer;
  (page.newer != nullptr ? page.newer->older : newest_) = page.older;
}

ShadowPage* ShadowPages::AcquireRoot(const ShadowRole& role) {
  for (ShadowPage* root : roots_) {
    if (root->role == role && !IsObsolete(*root)) {
      ++root->root_count;
      return root;
    }
  }
  ShadowPage* root = Make(Gfn{0}, role);
  if (root == nullptr) return nullptr;
  root->root_count = 1;
  roots_.push_back(root);
  return root;
}

void ShadowPages::ReleaseRoot(Lock& lock, ShadowPage* root) {
  if (--root->root_count != 0) return;
  // Whoever made it obsolete will free the tree, piece by piece.
  if (!root->role.invalid && IsObsolete(*root)) return;
  if (root->role.invalid) {
    root->next_zapped = zapped_;
    zapped_ = root;
    flush_needed_ = true;
  } else if (!root->shared) {
    std::erase(roots_, root);
    Zap(*root);
  }
  Commit(lock);
}

// Keeps the statistics when an SPTE comes (`change` is 1) or goes (-1).
void ShadowPages::Count(const SpteCodec& codec, std::uint64_t spte, Level level,
                        std::uint64_t change) {
  if (codec.IsMmio(spte)) statistics_.mmio_sptes += change;
  if (!codec.IsLiveLeaf(spte, level)) return;
  if (level == Level::kPt) statistics_.pages_4k += change;
  if (level == Level::kPd) statistics_.pages_2m += change;
  if (level == Level::kPdpt) statistics_.pages_1g += change;
}

void ShadowPages::Set(ShadowPage& page, unsigned index, std::uint64_t spte, std::uint64_t record) {
  const SpteCodec& codec = CodecOf(page.role);
  const Level level = page.role.level;
  std::uint64_t* const at = &page.sptes[index];
  const std::uint64_t old = std::atomic_ref(*at).exchange(spte, std::memory_order_acq_rel);
  Count(codec, old, level, ~std::uint64_t{0});
  Count(codec, spte, level, 1);
  if (level == Level::kPt && !logs_.empty()) NoteWrites(codec, old, spte);
  if (page.shared && codec.IsLiveLeaf(old, level)) RemoveFromRmap(page, index);
  if (page.records != nullptr) page.records->Set(index, record);
  if (page.shared && codec.IsLiveLeaf(spte, level)) AddToRmap(page, index);
  if (spte != 0 && level == Level::kPt) page.filled_at = ++fill_clock_;
  page.filled_count += (spte != 0 ? 1 : 0) - (old != 0 ? 1 : 0);
  if (SpteCodec::IsLive(spte)) ++page.present_count;
  if (!SpteCodec::IsLive(old)) return;
  --page.present_count;
  flush_needed_ = true;
  if (!codec.IsLink(old, level)) {
    ++statistics_.zaps;
    return;
  }
  ShadowPage& child = *PageAt(codec.Target(old));
  child.parents.Remove(at);
  if (!child.shared && child.parents.empty()) Zap(child);
}

void ShadowPages::Link(ShadowPage& page, unsigned index, ShadowPage& child, std::uint64_t record) {
  Set(page, index, CodecOf(page.role).Link(child.table()), record);
  child.parents.Add(&page.sptes[index]);
}

// Takes `page`, whose link is gone, and everything below out of the trees. The tables are not used
// again until every processor has forgotten them.
void ShadowPages::Zap(ShadowPage& page) {
  for (unsigned i = 0; i < kSptesPerPage && page.filled_count != 0; ++i) {
    if (Load(&page.sptes[i]) != 0) Set(page, i, 0);
  }
  TakeOut(page);
  if (page.shared) EndShadowing(page);
  page.role.invalid = true;
  flush_needed_ = true;
  --statistics_.shadow_pages;
  ++statistics_.zaps;
  if (page.root_count != 0) {
    // It stays, empty, until its users have let go of it.
    root_epoch_.fetch_add(1, std::memory_order_release);
    return;
  }
  page.next_zapped = zapped_;
  zapped_ = &page;
}

// Drops what maps frames `first` to `last` below `page`.
void ShadowPages::ZapRange(ShadowPage& page, Gfn first, std::uint64_t last) {
  const SpteCodec& codec = CodecOf(page.role);
  const Level level = page.role.level;
  const std::uint64_t frames = LevelBytes(level) / kPageBytes;
  const std::uint64_t start = page.gfn.number;
  const std::uint64_t end = start + frames * kSptesPerPage - 1;
  if (last < start || first.number > end) return;
  const std::uint64_t from = (std::max(first.number, start) - start) / frames;
  const std::uint64_t to = (std::min(last, end) - start) / frames;
  for (std::uint64_t i = from; i <= to; ++i) {
    const std::uint64_t spte = Load(&page.sptes[i]);
    if (spte == 0) continue;
    const std::uint64_t entry_first = start + i * frames;
    const bool whole = first.number <= entry_first && entry_first + frames - 1 <= last;
    if (!whole && codec.IsLink(spte, level)) {
      ZapRange(*PageAt(codec.Target(spte)), first, last);
    } else {
      Set(page, static_cast<unsigned>(i), 0);
    }
  }
}

// False if the numbers begin again: markers of long ago must not come back to life.
bool ShadowPages::NewGeneration() {
  const auto next = static_cast<std::uint16_t>(generation() + 1);
  generation_.store(next, std::memory_order_release);
  return next != 0;
}

void ShadowPages::SlotsChanged(Gfn first, std::uint64_t count) {
  if (count == 0) return;
  Lock lock = Acquire();
  if (!NewGeneration() || count >= kManyFrames) return ZapAll(lock);
  const std::uint64_t last = std::max(first.number + (count - 1), first.number);
  for (ShadowPage* root : roots_) ZapRange(*root, first, last);
  ZapSharedRange(first, last);
  // A root table may be in memory now that was not before.
  root_epoch_.fetch_add(1, std::memory_order_release);
  Commit(lock);
}

void ShadowPages::AllSlotsChanged() { SlotsChanged(Gfn{0}, ~std::uint64_t{0}); }

void ShadowPages::AttributesChanged(Gfn first, std::uint64_t count) {
  if (count == 0) return;
  Lock lock = Acquire();
  // A new generation, because the marks of devices grant everything.
  if (!NewGeneration() || count >= kManyFrames) return ZapAll(lock);
  const std::uint64_t last = first.number + (count - 1);
  for (ShadowPage* root : roots_) ZapRange(*root, first, last);
  ZapSharedRange(first, last);
  Commit(lock);
}

void ShadowPages::ZapAll() {
  Lock lock = Acquire();
  ZapAll(lock);
}

// Once every processor has left the guest, none enters it again with an obsolete root, and none
// knows an obsolete page: those are freed without more flushes.
void ShadowPages::ZapAll(Lock& lock) {
  tree_generation_.fetch_add(1);
  root_epoch_.fetch_add(1, std::memory_order_release);
  flush_needed_ = true;
  while (flush_needed_) Commit(lock);
  const auto free_unflushed = [&] {
    FreeZapped(std::exchange(zapped_, nullptr));
    flush_needed_ = false;
  };
  while (ZapOldest(kFreeBatch, true) != 0) {
    free_unflushed();
    lock.unlock();
    lock.lock();
    while (flush_needed_) Commit(lock);  // somebody else's
  }
  ZapObsoleteRoots();
  free_unflushed();
}

// Those that are empty and private stand for nothing that has changed: they count again.
void ShadowPages::ZapObsoleteRoots() {
  for (ShadowPage* page = oldest_; page != nullptr;) {
    ShadowPage* const newer = page->newer;
    if (IsObsolete(*page)) {
      const bool keep = !page->shared && page->present_count == 0 &&
                        std::find(roots_.begin(), roots_.end(), page) == roots_.end();
      if (keep) {
        TakeOut(*page);
        Append(*page);
      } else {
        std::erase(roots_, page);
        Zap(*page);
      }
    }
    page = newer;
  }
}

// Clears an SPTE that is known by its place.
void ShadowPages::Drop(std::uint64_t* spte) {
  ShadowPage& page = *PageAt(Hpa(reinterpret_cast<std::uintptr_t>(spte)));
  Set(page, static_cast<unsigned>(spte - page.sptes), 0);
}

// Takes the links to `page` away. A page that is not shared is zapped with its only one.
void ShadowPages::Unlink(ShadowPage& page) {
  if (!page.shared) return Drop(page.parents.Some());
  while (!page.parents.empty()) Drop(page.parents.Some());
}

void ShadowPages::ZapPage(ShadowPage& page) {
  Unlink(page);
  Zap(page);
}

// Drops what maps frames `first` to `last`, and the shadows of tables that lie there.
void ShadowPages::ZapSharedRange(Gfn first, std::uint64_t last) {
  for (Level level : {Level::kPt, Level::kPd, Level::kPdpt}) {
    rmap_.ForEachIn(first, last, level, [this](Gfn, SpteList& list) {
      while (!list.empty()) Drop(list.Some());
    });
  }
  for (ShadowPage* page = oldest_; page != nullptr;) {
    ShadowPage* const newer = page->newer;  // zapping a shared page zaps no other
    if (page->shadows() && page->gfn >= first && page->gfn.number <= last) ZapPage(*page);
    page = newer;
  }
}

// Takes a page away that is no root, or was one of a tree that is obsolete.
void ShadowPages::TakeAway(ShadowPage& page) {
  if (page.shared) return ZapPage(page);
  if (!page.parents.empty()) return Unlink(page);
  std::erase(roots_, &page);
  Zap(page);
}

// Tables at the bottom of their tree go first, so that old upper tables do not take everything
// away.
std::size_t ShadowPages::ZapOldest(std::size_t count, bool obsolete_only) {
  std::size_t zapped = 0;
  ShadowPage* top = nullptr;
  for (ShadowPage* page = oldest_; page != nullptr && zapped < count;) {
    ShadowPage* newer = page->newer;
    if (page->root_count == 0 && (!obsolete_only || IsObsolete(*page))) {
      if (page->role.level == Level::kPt || page->present_count == 0) {
        TakeAway(*page);
        ++zapped;
      } else if (top == nullptr) {
        top = page;
      }
    }
    page = newer;
  }
  if (zapped == 0 && top != nullptr) {
    TakeAway(*top);
    ++zapped;
  }
  return zapped;
}

bool ShadowPages::EnsureRoom(Lock& lock) {
  if (page_count_ + kRoomForFault <= limit_) return true;
  ZapOldest(std::min(kReclaimBatch, limit_ / 2), false);
  Commit(lock);
  return page_count_ + kRoomForFault <= limit_;
}

void ShadowPages::Commit(Lock& lock) {
  if (!flush_needed_) return;
  flush_needed_ = false;
  ShadowPage* zapped = std::exchange(zapped_, nullptr);
  ++statistics_.remote_flushes;
  const std::uint64_t flush = ++flush_count_;
  lock.unlock();
  flusher_.FlushAll();
  lock.lock();
  flush_done_ = std::max(flush_done_, flush);
  FreeZapped(zapped);
}

void ShadowPages::FreeZapped(ShadowPage* zapped) {
  while (zapped != nullptr) {
    arena_->Give(std::exchange(zapped, zapped->next_zapped));
    --page_count_;
  }
}

MmuStatistics ShadowPages::Statistics() const {
  const auto read = [](const std::atomic<std::uint64_t>& n) {
    return n.load(std::memory_order_relaxed);
  };
  const Lock lock = Acquire();
  MmuStatistics result = statistics_;
  result.faults = read(counters_.faults);
  result.faults_fixed = read(counters_.fixed);
  result.faults_fixed_unlocked = read(counters_.fixed_unlocked);
  result.faults_spurious = read(counters_.spurious);
  result.faults_mmio = read(counters_.mmio);
  result.faults_guest = read(counters_.guest);
  return result;
}

std::vector<ShadowPageInfo> ShadowPages::List(std::uint64_t after, std::size_t count) const {
  std::vector<ShadowPageInfo> result;
  const Lock lock = Acquire();
  for (const ShadowPage* page = oldest_; page != nullptr && result.size() < count;
       page = page->newer) {
    if (page->id <= after) continue;
    result.push_back({.id = page->id,
                      .table = page->table(),
                      .gfn = page->gfn,
                      .role = page->role,
                      .present_count = page->present_count,
                      .parent_count = static_cast<unsigned>(page->parents.size()),
                      .root_count = page->root_count,
                      .unsync = page->unsync});
  }
  return result;
}

}  // namespace pagesaw
