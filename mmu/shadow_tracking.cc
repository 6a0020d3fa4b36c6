// Shared shadow pages: how they are found, and how they stay true to the guest tables behind them.
module;
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>
module pagesaw.mmu.shadow_pages;

import pagesaw.mmu.attribute_limit;
import pagesaw.mmu.second_stage_rights;

namespace pagesaw {
namespace {

// A frame that more SPTEs map than this loses them all, to be faulted in again where they are
// still used: searching longer chains would cost more.
constexpr std::size_t kMaxSptesPerFrame = 1000;
// A table above the lowest level that was written this often without being used is probably none
// any more.
constexpr unsigned kFloodWrites = 3;
// A page that more SPTEs link than this is not searched for who leads to it.
constexpr std::size_t kManyParents = 64;

// The last frame that an address of 52 bits can lie in.
constexpr std::uint64_t kLastGfn = (std::uint64_t{1} << 40) - 1;

constexpr std::uint64_t FramesIn(Level level) { return LevelBytes(level) / kPageBytes; }

// The block of 2 MiB or 1 GiB that holds `gfn`.
constexpr std::uint64_t BlockOf(Gfn gfn, Level level) { return gfn.number / FramesIn(level); }
constexpr unsigned BlockIndex(Level level) { return Number(level) - Number(Level::kPd); }

// Whether a write of this size and place is one that a guest makes to a table.
bool LooksLikeEntryWrite(const ShadowRole& role, std::uint64_t offset, std::uint64_t bytes) {
  const std::uint64_t entry_bytes = role.has_4_byte_entries ? 4 : 8;
  if (bytes >= kPageBytes) return true;  // no single write: its extent is not known
  if (bytes == 1) return offset % entry_bytes == 0;
  return bytes >= 4 && offset / entry_bytes == (offset + bytes - 1) / entry_bytes;
}

}  // namespace

// -- finding

ShadowPage*& ShadowPages::Bucket(Gfn gfn) {
  return buckets_[gfn.number * 0x9e37'79b9'7f4a'7c15 >> 32 & (buckets_.size() - 1)];
}

// Calls `visit(page)` for each page that shadows the guest table at `gfn`. A visit may not add or
// remove pages.
template <typename Visit>
void ShadowPages::ForEachShadow(Gfn gfn, Visit visit) const {
  if (shadowing_count_.load(std::memory_order_relaxed) == 0) return;
  for (ShadowPage* page = const_cast<ShadowPages*>(this)->Bucket(gfn); page != nullptr;
       page = page->next_in_bucket) {
    if (page->gfn == gfn && page->shadows()) visit(*page);
  }
}

ShadowPage* ShadowPages::FindOrMake(Gfn gfn, const ShadowRole& role) {
  for (ShadowPage* page = Bucket(gfn); page != nullptr; page = page->next_in_bucket) {
    if (page->gfn != gfn || page->role != role || IsObsolete(*page)) continue;
    // Whoever made it has not seen to it yet that no processor can write the table unseen.
    if (page->protected_by > flush_done_) flush_needed_ = true;
    return page;
  }
  std::unique_ptr<ShadowedEntries> records;
  if (!role.direct) {
    records.reset(new (std::nothrow) ShadowedEntries);
    if (records == nullptr) return nullptr;
  }
  ShadowPage* page = Make(gfn, role);
  if (page == nullptr) return nullptr;
  page->records = std::move(records);
  page->shared = true;
  BeginShadowing(*page);
  return page;
}

ShadowPage* ShadowPages::MakePrivateRoot(const ShadowRole& role) {
  ShadowPage* page = Make(Gfn{0}, role);
  if (page != nullptr) page->root_count = 1;
  return page;
}

void ShadowPages::BeginShadowing(ShadowPage& page) {
  if (page.shadows()) ZapOtherAccessedDirty(page.gfn, tables_->FormatOf(page.role).layout);
  page.next_in_bucket = Bucket(page.gfn);
  Bucket(page.gfn) = &page;
  if (!page.shadows()) return;
  shadowing_count_.fetch_add(1, std::memory_order_relaxed);
  for (Level level : {Level::kPd, Level::kPdpt}) {
    ++shadowed_in_[BlockIndex(level)][BlockOf(page.gfn, level)];
  }
  WriteProtectFrame(page.gfn);
  if (flush_needed_) page.protected_by = flush_count_ + 1;
}

// A walk that sets A or D in one entry tells nobody. It may not change what another one says, as it
// would where 4-byte entries overlap 8-byte ones, or the bits mean something else.
void ShadowPages::ZapOtherAccessedDirty(Gfn gfn, const EntryLayout& layout) {
  std::vector<ShadowPage*> others;
  ForEachShadow(gfn, [&](ShadowPage& page) {
    const EntryLayout& other = tables_->FormatOf(page.role).layout;
    const bool same = other.entry_bytes == layout.entry_bytes &&
                      other.accessed == layout.accessed && other.dirty == layout.dirty;
    if (!same) others.push_back(&page);
  });
  for (ShadowPage* other : others) ZapPage(*other);
}

void ShadowPages::EndShadowing(ShadowPage& page) {
  ShadowPage** link = &Bucket(page.gfn);
  while (*link != &page) link = &(*link)->next_in_bucket;
  *link = page.next_in_bucket;
  if (page.unsync) std::erase(unsync_, &page);
  page.unsync = page.frame_writable = false;
  if (!page.shadows()) return;
  shadowing_count_.fetch_sub(1, std::memory_order_relaxed);
  for (Level level : {Level::kPd, Level::kPdpt}) {
    auto& blocks = shadowed_in_[BlockIndex(level)];
    const auto block = blocks.find(BlockOf(page.gfn, level));
    if (--block->second == 0) blocks.erase(block);
  }
}

bool ShadowPages::LargePageAllowed(Gfn first, Level level) const {
  if (level == Level::kPt) return true;
  if (attributes_ != nullptr && !attributes_->Uniform(first, FramesIn(level))) return false;
  return !HoldsTable(first, level) && !logs_.AnyIn(first, FramesIn(level));
}

// Whether a guest table is shadowed in the large page of `level` from `first`.
bool ShadowPages::HoldsTable(Gfn first, Level level) const {
  return shadowed_in_[BlockIndex(level)].contains(BlockOf(first, level));
}

// -- the reverse map

// The first frame that the leaf at `index` maps.
Gfn ShadowPages::FrameOf(const ShadowPage& page, unsigned index) {
  if (page.records != nullptr) return page.records->At(index).gfn;
  return Gfn{page.gfn.number + index * FramesIn(page.role.level)};
}

void ShadowPages::AddToRmap(ShadowPage& page, unsigned index) {
  SpteList& list = rmap_.At(FrameOf(page, index), page.role.level);
  if (list.size() >= kMaxSptesPerFrame) {
    while (!list.empty()) Drop(list.Some());
  }
  list.Add(&page.sptes[index]);
}

void ShadowPages::RemoveFromRmap(ShadowPage& page, unsigned index) {
  rmap_.Find(FrameOf(page, index), page.role.level)->Remove(&page.sptes[index]);
}

void ShadowPages::WriteProtectLeaf(std::uint64_t* spte) {
  const SpteCodec& codec = CodecAt(spte);
  // A processor may be setting A or D at the same time.
  const std::atomic_ref atomic(*spte);
  std::uint64_t old = atomic.load(std::memory_order_relaxed);
  while (!atomic.compare_exchange_weak(old, codec.WriteProtected(old))) {
  }
  if (!logs_.empty()) NoteWrites(codec, old, 0);
  if (codec.IsWritable(old) || codec.IsShadowStack(old)) flush_needed_ = true;
}

// The same in a tree that is not shared, whose leaves are found by address.
void ShadowPages::WriteProtectBelow(ShadowPage& root, Gfn gfn) {
  for (ShadowPage* page = &root;;) {
    const SpteCodec& codec = CodecOf(page->role);
    const Level level = page->role.level;
    // Beyond the reach of the tree nothing is mapped.
    if (gfn.number / FramesIn(level) / kSptesPerPage !=
        page->gfn.number / FramesIn(level) / kSptesPerPage)
      return;
    const auto index = static_cast<unsigned>(gfn.number / FramesIn(level) % kSptesPerPage);
    std::uint64_t* const spte = &page->sptes[index];
    if (codec.IsLink(Load(spte), level)) {
      page = PageAt(codec.Target(Load(spte)));
      continue;
    }
    if (!codec.IsLiveLeaf(Load(spte), level)) return;
    if (level == Level::kPt) return WriteProtectLeaf(spte);
    return Drop(spte);
  }
}

// Takes the right to write `gfn` from every SPTE, so that writes fault.
void ShadowPages::WriteProtectFrame(Gfn gfn) {
  for (ShadowPage* root : roots_) WriteProtectBelow(*root, gfn);
  for (Level level : {Level::kPd, Level::kPdpt}) {
    SpteList* large = rmap_.Find(gfn, level);
    while (large != nullptr && !large->empty()) Drop(large->Some());
  }
  if (const SpteList* list = rmap_.Find(gfn, Level::kPt)) {
    list->ForEach([this](std::uint64_t* spte) { WriteProtectLeaf(spte); });
  }
  // An SPTE that is gone already, or protected, may still be in some TLB.
  if (flush_done_ != flush_count_) flush_needed_ = true;
  ForEachShadow(gfn, [](ShadowPage& page) { page.frame_writable = false; });
}

// -- staying true

bool ShadowPages::MayBeWritten(Gfn gfn, bool try_unsync) {
  bool lowest = true, writable = true;
  ForEachShadow(gfn, [&](const ShadowPage& page) {
    lowest = lowest && page.role.level == Level::kPt;
    writable = writable && page.frame_writable;
  });
  if (writable || !try_unsync || !lowest) return writable;
  ForEachShadow(gfn, [this](ShadowPage& page) {
    if (!page.unsync) unsync_.push_back(&page);
    page.unsync = page.frame_writable = true;
  });
  return true;
}

void ShadowPages::ResyncRange(ShadowPage& page, unsigned first, unsigned count) {
  const GuestTables::Table table = tables_->Open(page.gfn, page.role);
  unsigned left = page.filled_count;
  for (unsigned i = first; i < first + count && left != 0; ++i) {
    if (Load(&page.sptes[i]) == 0) continue;
    --left;
    if (!table.Backs(i, page.records->At(i))) Set(page, i, 0);
  }
}

void ShadowPages::Resync(ShadowPage& page) {
  if (page.shadows()) ResyncRange(page, 0, kSptesPerPage);
}

// Whether links lead from `top` to `page`. Where many do, it is taken for granted: to bring a page
// up to date that need not be is never wrong.
bool ShadowPages::LeadsTo(const ShadowPage& top, ShadowPage& page) {
  if (&page == &top) return true;
  if (Number(page.role.level) >= Number(top.role.level)) return false;
  if (page.search == last_search_) return page.reachable;
  page.search = last_search_;
  page.reachable = page.parents.size() > kManyParents;
  page.parents.ForEach([&](const std::uint64_t* spte) {
    ShadowPage& parent = *PageAt(Hpa(reinterpret_cast<std::uintptr_t>(spte)));
    page.reachable = page.reachable || LeadsTo(top, parent);
  });
  return page.reachable;
}

template <typename Visit>
void ShadowPages::ForEachUnsyncBelow(const ShadowPage& top, Visit visit) {
  ++last_search_;
  for (ShadowPage* page : unsync_) {
    if (LeadsTo(top, *page)) visit(*page);
  }
}

void ShadowPages::ResyncBelow(ShadowPage& page) {
  if (unsync_.empty() || page.present_count == 0) return;
  ForEachUnsyncBelow(page, [this](ShadowPage& unsync) { Resync(unsync); });
}

void ShadowPages::Sync(Lock& lock, const ShadowPage& root, std::uint64_t since) {
  if (unsync_.empty()) return;
  bool any = false;
  ForEachUnsyncBelow(root, [&](ShadowPage& page) {
    if (page.filled_at <= since) return;
    any = true;
    if (page.frame_writable) WriteProtectFrame(page.gfn);
  });
  if (!any) return;
  // Entries are read when nobody can write them unseen any more. Whoever got the right back in the
  // meantime leaves the page unsync, but true to what was written before.
  Commit(lock);
  ForEachUnsyncBelow(root, [&](ShadowPage& page) {
    if (page.filled_at <= since) return;
    Resync(page);
    page.unsync = page.frame_writable;
  });
  std::erase_if(unsync_, [](const ShadowPage* page) { return !page->unsync; });
  Commit(lock);
}

void ShadowPages::GuestWrote(Gpa gpa, std::uint64_t bytes) {
  logs_.Mark(gpa, bytes);
  if (bytes == 0 || shadowing_count_.load(std::memory_order_relaxed) == 0) return;
  Lock lock = Acquire();
  for (std::uint64_t done = 0; done < bytes;) {
    const Gpa at(gpa.bits() + done);
    const std::uint64_t offset = OffsetIn(at, Level::kPt);
    const std::uint64_t piece = std::min(bytes - done, kPageBytes - offset);
    TableWritten(GfnOf(at), offset, piece);
    done += piece;
  }
  Commit(lock);
}

void ShadowPages::TableWritten(Gfn gfn, std::uint64_t offset, std::uint64_t bytes) {
  std::vector<ShadowPage*> useless;
  ForEachShadow(gfn, [&](ShadowPage& page) {
    const bool flood = page.role.level != Level::kPt && ++page.writes >= kFloodWrites;
    if (!page.unsync && (flood || !LooksLikeEntryWrite(page.role, offset, bytes))) {
      useless.push_back(&page);
      return;
    }
    const GuestTables::Range range = GuestTables::Covering(page.role, offset, bytes);
    ResyncRange(page, range.first, range.count);
  });
  for (ShadowPage* page : useless) ZapPage(*page);
}

// -- looking for contradictions

// What a leaf that maps the frames from `gfn` must not say of writes. Holds while no fault is being
// handled without the lock.
std::optional<const char*> ShadowPages::AuditRights(const SpteCodec& codec, std::uint64_t spte,
                                                    Gfn gfn, Level level) const {
  const bool may_write = (spte & kSpteMmuWritable) != 0;
  if (codec.IsWritable(spte) && !may_write) return "is writable against the MMU's will";
  const bool shadow_stack = codec.IsShadowStack(spte);
  if ((may_write || shadow_stack) && (spte & kSpteHostWritable) == 0) {
    return "is to write what is read-only";
  }
  if (level != Level::kPt) {
    const bool logged = (may_write || shadow_stack) && logs_.AnyIn(gfn, FramesIn(level));
    return logged ? std::optional("is large and writable in a slot that is logged") : std::nullopt;
  }
  const DirtyLog* log = logs_.FindFrame(gfn);
  if (log == nullptr || log->method() != DirtyLogMethod::kWriteProtect) return std::nullopt;
  const bool marked = log->IsMarked(gfn.number - log->slot().first.number);
  if ((codec.IsWritable(spte) || shadow_stack) && !marked) {
    return "is writable though the log says it is clean";
  }
  return std::nullopt;
}

// What is wrong with the rights of a leaf: it grants more than the guest's entry (and those above)
// or than the attributes of what it maps. Null if nothing is.
const char* ShadowPages::AuditLimits(const ShadowPage& page, unsigned index,
                                     std::uint64_t spte) const {
  const SpteCodec& codec = CodecOf(page.role);
  const Rights grants = codec.GrantsOf(spte);
  // A large leaf may outlast the equality of its frames when some are widened.
  Rights limit = MemoryAttribute::kEverything;
  if (attributes_ != nullptr) {
    limit = attributes_->LeastRights(FrameOf(page, index), FramesIn(page.role.level));
  }
  if (!limit.write() && (spte & kSpteMmuWritable) != 0) {
    return "may be made writable against its attribute";
  }
  if (!codec.format().second_stage) {
    Rights guest = page.role.access;
    if (page.shadows()) guest = guest & page.records->At(index).rights;
    const bool user = codec.format().RightsOf(spte).user();
    if (user && !guest.user()) return "is a user's, though the guest's page is not";
    // Without CR0.WP a supervisor writes what the guest protects.
    const bool flipped = !user && !page.role.write_protect;
    if (grants.write() && !guest.write() && !flipped) return "is writable against the guest";
    if (grants.exec_supervisor() && !guest.exec_user()) return "is executable against the guest";
    limit = OfPage(limit, guest.user() || !guest.exec_supervisor());
  } else if (page.role.guest_mode && page.shadows()) {
    const Rights guest = page.role.access & page.records->At(index).rights;
    limit = limit & GrantedBySecondStage(tables_->FormatOf(page.role), guest);
  }
  if (codec.IsShadowStack(spte) && !limit.write()) return "is a shadow stack against its attribute";
  return limit.Covers(grants) ? nullptr : "grants more than its attribute";
}

std::optional<std::string> ShadowPages::AuditPage(const ShadowPage& page) const {
  const auto complain = [&page](const char* what, unsigned index) {
    return "page " + std::to_string(page.id) + ", SPTE " + std::to_string(index) + ": " + what;
  };
  const SpteCodec& codec = CodecOf(page.role);
  unsigned live = 0;
  unsigned filled = 0;
  for (unsigned i = 0; i < kSptesPerPage; ++i) {
    const std::uint64_t spte = Load(&page.sptes[i]);
    filled += spte != 0 ? 1 : 0;
    if (!SpteCodec::IsLive(spte)) continue;
    ++live;
    const auto contains = [&](const SpteList& list) {
      unsigned found = 0;
      list.ForEach([&](const std::uint64_t* other) { found += other == &page.sptes[i] ? 1 : 0; });
      return found == 1;
    };
    if (codec.IsLink(spte, page.role.level)) {
      const ShadowPage& child = *PageAt(codec.Target(spte));
      if (child.role.invalid) return complain("links a zapped page", i);
      if (Number(child.role.level) + 1 != Number(page.role.level)) {
        return complain("links another level", i);
      }
      if (!contains(child.parents)) return complain("is no parent of its child", i);
      if (child.role.direct && child.role.access.write() && page.shadows() &&
          !page.records->At(i).dirty) {
        return complain("leads to writable pages though the guest's page is clean", i);
      }
      continue;
    }
    if (const char* wrong = AuditLimits(page, i, spte)) return complain(wrong, i);
    const Gfn frame = FrameOf(page, i);
    if (auto complaint = AuditRights(codec, spte, frame, page.role.level))
      return complain(*complaint, i);
    const SpteList* mappers = page.shared ? rmap_.Find(frame, page.role.level) : nullptr;
    if (page.shared && (mappers == nullptr || !contains(*mappers))) {
      return complain("is not in the rmap", i);
    }
    if (page.shared && page.role.level != Level::kPt && HoldsTable(frame, page.role.level)) {
      return complain("maps a table large", i);
    }
    if ((spte & kSpteMmuWritable) != 0 || codec.IsShadowStack(spte)) {
      bool watched = false;
      ForEachShadow(frame,
                    [&](const ShadowPage& shadow) { watched = watched || !shadow.frame_writable; });
      if (watched) return complain("lets a watched table be written", i);
      if (page.shadows() && !page.records->At(i).dirty) {
        return complain("is writable though the guest's page is clean", i);
      }
    }
  }
  if (live != page.present_count) return complain("count of live SPTEs is wrong", live);
  if (filled != page.filled_count) return complain("count of SPTEs is wrong", filled);
  return std::nullopt;
}

// Whether parent lists and the reverse map hold nothing but what AuditPage finds in them: SPTEs
// that went must be gone from there.
std::optional<std::string> ShadowPages::AuditCounts() const {
  std::unordered_map<const ShadowPage*, std::size_t> links;
  std::size_t leaves = 0;
  for (const ShadowPage* page = oldest_; page != nullptr; page = page->newer) {
    for (unsigned i = 0; i < kSptesPerPage; ++i) {
      const std::uint64_t spte = Load(&page->sptes[i]);
      const SpteCodec& codec = CodecOf(page->role);
      if (codec.IsLink(spte, page->role.level)) ++links[PageAt(codec.Target(spte))];
      if (page->shared && codec.IsLiveLeaf(spte, page->role.level)) ++leaves;
    }
  }
  for (const ShadowPage* page = oldest_; page != nullptr; page = page->newer) {
    if (page->parents.size() != links[page]) {
      return "page " + std::to_string(page->id) + ": parents that are none";
    }
  }
  std::size_t mapped = 0;
  for (Level level : {Level::kPt, Level::kPd, Level::kPdpt}) {
    rmap_.ForEachIn(Gfn{0}, kLastGfn, level,
                    [&](Gfn, const SpteList& list) { mapped += list.size(); });
  }
  if (mapped != leaves) return "the reverse map holds SPTEs that are none";
  return std::nullopt;
}

std::optional<std::string> ShadowPages::Audit() const {
  std::uint64_t count = 0;
  for (const ShadowPage* page = oldest_; page != nullptr; page = page->newer) {
    ++count;
    if (auto complaint = AuditPage(*page)) return complaint;
    if (page->frame_writable && !page->unsync) return "a writable table is not unsync";
    if (!page->shadows() || page->unsync) continue;
    for (unsigned i = 0; i < kSptesPerPage; ++i) {
      if (Load(&page->sptes[i]) == 0) continue;
      const auto now = tables_->Read(page->gfn, page->role, i);
      if (!now || !page->records->At(i).StillHolds(*now)) {
        return "page " + std::to_string(page->id) + ", SPTE " + std::to_string(i) +
               ": does not hold any more";
      }
    }
  }
  if (count != statistics_.shadow_pages) return "the count of shadow pages is wrong";
  return AuditCounts();
}

}  // namespace pagesaw
