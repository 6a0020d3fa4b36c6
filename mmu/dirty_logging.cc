// How shadow pages see accesses that SPTEs would let through: dirty logging and aging, the rights
// taken back for them, and how those are given again without the lock.
module;
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>
module pagesaw.mmu.shadow_pages;

import pagesaw.mmu.page_size;

namespace pagesaw {
namespace {

// Words of a log, and frames, that are looked at under one hold of the lock.
constexpr std::size_t kWordsAtOnce = 512;
constexpr std::uint64_t kFramesAtOnce = kWordsAtOnce * DirtyLog::kPagesPerWord;

constexpr std::uint64_t FramesIn(Level level) { return LevelBytes(level) / kPageBytes; }

// Replaces an SPTE by `change(spte)`; returns what it was. A processor may be setting A or D at the
// same time, or somebody without the lock give a right back.
template <typename Change>
std::uint64_t Update(std::uint64_t* spte, Change change) {
  const std::atomic_ref atomic(*spte);
  std::uint64_t old = atomic.load(std::memory_order_relaxed);
  while (!atomic.compare_exchange_weak(old, change(old))) {
  }
  return old;
}

}  // namespace

// -- without the lock

ShadowPages::SptePlace ShadowPages::FindUnlocked(const ShadowPage& root,
                                                 InputAddress address) const {
  const SpteCodec& codec = CodecOf(root.role);
  SptePlace place = {.level = root.role.level, .codec = &codec};
  std::uint64_t* table = root.sptes;
  for (;; place.level = Below(place.level)) {
    place.spte = &table[IndexAt(address, place.level)];
    const std::uint64_t spte = Load(place.spte);
    if (place.level == Level::kPt || !codec.IsLink(spte, place.level)) return place;
    table = reinterpret_cast<std::uint64_t*>(codec.Target(spte).bits());
  }
}

// Whatever leaf stands there when the exchange succeeds says of itself that it may have the rights
// it gets, so it does not matter whether the table is still the one that was looked for. The log is
// told afterwards: told before, it might be read between, and the next reading miss later writes.
std::optional<FaultOutcome> ShadowPages::RegrantUnlocked(SptePlace place, Access access) {
  const SpteCodec& codec = *place.codec;
  const std::atomic_ref atomic(*place.spte);
  std::uint64_t spte = atomic.load(std::memory_order_acquire);
  for (;;) {
    if (!codec.IsLiveLeaf(spte, place.level)) return std::nullopt;
    if (codec.Allows(spte, access)) return FaultOutcome::kSpurious;
    const std::uint64_t regranted = codec.Regranted(spte, access);
    if (!codec.Allows(regranted, access)) return std::nullopt;
    if (atomic.compare_exchange_strong(spte, regranted)) break;
  }
  if (access.is_write()) logs_.MarkHost(codec.Target(spte));
  counters_.fixed_unlocked.fetch_add(1, std::memory_order_relaxed);
  return FaultOutcome::kFixed;
}

// -- leaves of a range of frames

template <typename Visit>
void ShadowPages::ForEachLeafBelow(const ShadowPage& page, Gfn first, std::uint64_t last,
                                   Visit visit) const {
  const SpteCodec& codec = CodecOf(page.role);
  const Level level = page.role.level;
  const std::uint64_t frames = FramesIn(level);
  const std::uint64_t start = page.gfn.number;
  const std::uint64_t end = start + frames * kSptesPerPage - 1;
  if (last < start || first.number > end) return;
  const std::uint64_t from = (std::max(first.number, start) - start) / frames;
  const std::uint64_t to = (std::min(last, end) - start) / frames;
  for (std::uint64_t i = from; i <= to; ++i) {
    const std::uint64_t spte = Load(&page.sptes[i]);
    if (!SpteCodec::IsLive(spte)) continue;
    if (codec.IsLink(spte, level)) {
      ForEachLeafBelow(*PageAt(codec.Target(spte)), first, last, visit);
    } else {
      visit(Gfn{start + i * frames}, level, &page.sptes[i]);
    }
  }
}

// Calls `visit(first frame, level, SPTE)` for each leaf that maps a frame from `first` to `last`.
// A visit may change what the leaf grants.
template <typename Visit>
void ShadowPages::ForEachLeaf(Gfn first, std::uint64_t last, Visit visit) const {
  for (const ShadowPage* root : roots_) ForEachLeafBelow(*root, first, last, visit);
  for (Level level : {Level::kPt, Level::kPd, Level::kPdpt}) {
    rmap_.ForEachIn(first, last, level, [&](Gfn gfn, const SpteList& list) {
      list.ForEach([&](std::uint64_t* spte) { visit(gfn, level, spte); });
    });
  }
}

// -- dirty logging

void ShadowPages::PrepareForLog(LeafSpte& leaf, Gfn gfn, bool writes) const {
  if (writes || logs_.empty()) return;
  const DirtyLog* log = logs_.FindFrame(gfn);
  if (log == nullptr) return;
  leaf.write_logged = log->method() == DirtyLogMethod::kWriteProtect;
  leaf.dirty = false;
}

// A 4 KiB leaf goes and another comes in its place: a processor may have written by the old one, or
// is about to by the new one.
void ShadowPages::NoteWrites(const SpteCodec& codec, std::uint64_t old, std::uint64_t spte) {
  for (const std::uint64_t leaf : {old, spte}) {
    if (SpteCodec::IsLive(leaf) && codec.IsDirty(leaf)) logs_.MarkHost(codec.Target(leaf));
  }
}

bool ShadowPages::StartDirtyLog(const MemorySlot& slot, DirtyLogMethod method) {
  const PageFormat& format = codec_.format();
  const bool has_dirty_bits = format.accessed_dirty && format.layout.dirty != 0;
  if (method == DirtyLogMethod::kDirtyBits && !has_dirty_bits) return false;
  Lock lock = Acquire();
  if (logs_.Find(slot.id) != nullptr) return false;
  // From here on no large page is made, and whoever gives a right back tells the log.
  logs_.Start(slot, method);
  const std::uint64_t last = slot.first.number + slot.page_count - 1;
  ForEachLeaf(slot.first, last, [&](Gfn, Level level, std::uint64_t* spte) {
    const SpteCodec& codec = CodecAt(spte);
    Update(spte, [&](std::uint64_t leaf) {
      leaf = codec.Clean(leaf);
      if (level != Level::kPt) return codec.WriteProtected(leaf);
      return method == DirtyLogMethod::kWriteProtect ? codec.WriteLogged(leaf) : leaf;
    });
  });
  flush_needed_ = true;
  Commit(lock);
  return true;
}

// Reads and forgets `words` words of `log` from `first`, and looks out for the next write to each
// of their pages.
void ShadowPages::TakeWords(DirtyLog& log, std::size_t first, std::span<std::uint64_t> words) {
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = log.TakeWord(first + i);
  const std::uint64_t start = log.slot().first.number + first * DirtyLog::kPagesPerWord;
  const std::uint64_t end = log.slot().first.number + log.slot().page_count;
  if (log.method() == DirtyLogMethod::kDirtyBits) {
    const std::uint64_t last = std::min(start + words.size() * DirtyLog::kPagesPerWord, end) - 1;
    ForEachLeaf(Gfn{start}, last, [&](Gfn gfn, Level level, std::uint64_t* spte) {
      const SpteCodec& codec = CodecAt(spte);
      if (level != Level::kPt || !codec.IsDirty(Load(spte))) return;
      Update(spte, [&](std::uint64_t leaf) { return codec.Clean(leaf); });
      const std::uint64_t page = gfn.number - start;
      words[page / DirtyLog::kPagesPerWord] |= std::uint64_t{1} << page % DirtyLog::kPagesPerWord;
    });
    return;
  }
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == 0) continue;
    const std::uint64_t of_word = start + i * DirtyLog::kPagesPerWord;
    const auto lowest = static_cast<unsigned>(std::countr_zero(words[i]));
    const auto highest = 63 - static_cast<unsigned>(std::countl_zero(words[i]));
    ForEachLeaf(
        Gfn{of_word + lowest}, of_word + highest, [&](Gfn gfn, Level level, std::uint64_t* spte) {
          if (level != Level::kPt || (words[i] >> (gfn.number - of_word) & 1) == 0) return;
          const SpteCodec& codec = CodecAt(spte);
          Update(spte, [&](std::uint64_t leaf) { return codec.Clean(codec.WriteLogged(leaf)); });
        });
  }
}

std::optional<std::vector<std::uint64_t>> ShadowPages::TakeDirtyLog(std::uint32_t slot_id) {
  Lock lock = Acquire();
  const DirtyLog* const begun = logs_.Find(slot_id);
  if (begun == nullptr) return std::nullopt;
  std::vector<std::uint64_t> words(begun->word_count());
  for (std::size_t done = 0; done < words.size(); done += kWordsAtOnce) {
    if (done != 0) {
      flush_needed_ = true;  // for whoever comes between
      lock.unlock();
      lock.lock();
    }
    // It may have been stopped meanwhile, and another started.
    DirtyLog* log = logs_.Find(slot_id);
    if (log == nullptr || log->word_count() != words.size()) return std::nullopt;
    TakeWords(*log, done,
              std::span(words).subspan(done, std::min(kWordsAtOnce, words.size() - done)));
  }
  // Also where no SPTE changed: one that went just now may be in some TLB still, with a write to
  // come that this call has told of.
  flush_needed_ = true;
  Commit(lock);
  return words;
}

bool ShadowPages::StopDirtyLog(std::uint32_t slot_id) {
  Lock lock = Acquire();
  const DirtyLog* log = logs_.Find(slot_id);
  if (log == nullptr) return false;
  const MemorySlot slot = log->slot();
  logs_.Stop(slot_id);
  RecoverLargePages(lock, slot);
  return true;
}

// -- large pages come back

// Whether frames from `gfn` could be mapped by one leaf of `level`.
bool ShadowPages::CouldBeLarge(const SpteCodec& codec, const MemorySlot& slot, Gfn gfn,
                               Level level) const {
  return slot.Contains(gfn) && LargePageAllowed(gfn, level) &&
         LargestPage(codec, slot, GpaOf(gfn), Level::kPdpt) >= level;
}

// Drops the links below `page` to tables that map, piece by piece, what one leaf could.
void ShadowPages::ZapSmallPages(ShadowPage& page, const MemorySlot& slot, Gfn first,
                                std::uint64_t last) {
  const SpteCodec& codec = CodecOf(page.role);
  const Level level = page.role.level;
  const std::uint64_t frames = FramesIn(level);
  const std::uint64_t start = page.gfn.number;
  const std::uint64_t end = start + frames * kSptesPerPage - 1;
  if (level == Level::kPt || last < start || first.number > end) return;
  const std::uint64_t to = (std::min(last, end) - start) / frames;
  for (std::uint64_t i = (std::max(first.number, start) - start) / frames; i <= to; ++i) {
    const std::uint64_t spte = Load(&page.sptes[i]);
    if (!codec.IsLink(spte, level)) continue;
    if (level <= Level::kPdpt && CouldBeLarge(codec, slot, Gfn{start + i * frames}, level)) {
      Set(page, static_cast<unsigned>(i), 0);
    } else {
      ZapSmallPages(*PageAt(codec.Target(spte)), slot, first, last);
    }
  }
}

void ShadowPages::RecoverLargePages(Lock& lock, const MemorySlot& slot) {
  const std::uint64_t end = slot.first.number + slot.page_count;
  for (std::uint64_t first = slot.first.number; first < end; first += kFramesAtOnce) {
    const std::uint64_t last = std::min(first + kFramesAtOnce, end) - 1;
    for (std::size_t i = 0; i < roots_.size(); ++i) {
      ZapSmallPages(*roots_[i], slot, Gfn{first}, last);
    }
    Commit(lock);
  }
  // Under a guest's large page, or without paging. Tables that shadow a guest's are as they must
  // be.
  for (ShadowPage* page = oldest_; page != nullptr;) {
    ShadowPage* const newer = page->newer;
    if (page->shared && page->role.direct && page->role.level <= Level::kPd &&
        CouldBeLarge(CodecOf(page->role), slot, page->gfn, Above(page->role.level))) {
      ZapPage(*page);
    }
    page = newer;
  }
  Commit(lock);
}

// -- aging

std::uint64_t ShadowPages::TestAndClearYoung(Gfn first, std::uint64_t count) {
  std::uint64_t young = 0;
  if (count == 0) return young;
  const std::uint64_t end = count > ~first.number ? ~std::uint64_t{0} : first.number + count;
  Lock lock = Acquire();
  // A frame that several SPTEs map counts once: they come one after the other.
  std::uint64_t counted = ~std::uint64_t{0};
  ForEachLeaf(first, end - 1, [&](Gfn gfn, Level level, std::uint64_t* spte) {
    const SpteCodec& codec = CodecAt(spte);
    if (!codec.IsYoung(Update(spte, [&](std::uint64_t leaf) { return codec.Old(leaf); }))) return;
    if (gfn.number == counted) return;
    counted = gfn.number;
    const std::uint64_t from = std::max(gfn.number, first.number);
    young += std::min(gfn.number + FramesIn(level), end) - from;
    flush_needed_ = true;
  });
  Commit(lock);
  return young;
}

}  // namespace pagesaw
