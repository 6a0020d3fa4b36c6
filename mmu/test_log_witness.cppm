// For tests: whether the dirty log of a slot misses a write. Keeps a copy of the slot's memory that
// follows it by the log alone.
module;
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>
export module pagesaw.mmu.test_log_witness;

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.spte;

export namespace pagesaw {

// Pages are numbered in the slot.
class LogWitness {
 public:
  // `pages` outlive it. Nothing else starts or stops a log of `slot`.
  LogWitness(ShadowPages& pages, const MemorySlot& slot) : pages_(pages), slot_(slot) {}

  bool logging() const { return log() != nullptr; }
  const MemorySlot& slot() const { return slot_; }

  // False if the log cannot be started.
  [[nodiscard]] bool Start(DirtyLogMethod method) {
    if (!pages_.StartDirtyLog(slot_, method)) return false;
    copy_.assign(slot_.host, slot_.host + slot_.page_count * kPageBytes);
    known_dirty_.clear();
    return true;
  }
  void Stop() { pages_.StopDirtyLog(slot_.id); }

  // Takes the log. A complaint if memory has changed elsewhere, or nothing.
  std::optional<std::string> Take() {
    const auto words = pages_.TakeDirtyLog(slot_.id);
    if (!words) return "a log that was started is gone";
    known_dirty_.clear();
    for (std::uint64_t page = 0; page < slot_.page_count; ++page) {
      const bool told = ((*words)[page / 64] >> page % 64 & 1) != 0;
      if (told && slot_.read_only) return Complain(page, "is read-only and called written");
      if (told) std::memcpy(CopyOf(page), HostOf(page), kPageBytes);
      if (!told && Changed(page)) return Complain(page, "was written and is not in the log");
    }
    return std::nullopt;
  }

  // A complaint if any of the first `count` pages has changed and taking the log now would not
  // tell.
  std::optional<std::string> Check(std::uint64_t count) {
    for (std::uint64_t page = 0; logging() && page < count; ++page) {
      if (Changed(page) && !Knows(page)) return Complain(page, "was written and nothing says so");
    }
    return std::nullopt;
  }
  // A complaint if the page at `host` is in the slot and its writes go unseen. It has been written,
  // or could be at any time by a processor that need not ask.
  std::optional<std::string> CheckWritable(Hpa host) {
    const std::uint64_t offset = host.bits() - reinterpret_cast<std::uintptr_t>(slot_.host);
    if (!logging() || offset >= slot_.page_count * kPageBytes) return std::nullopt;
    if (Knows(offset / kPageBytes)) return std::nullopt;
    return Complain(offset / kPageBytes, "can be written, or was, and nothing says so");
  }

 private:
  const DirtyLog* log() const { return pages_.dirty_logs().Find(slot_.id); }

  std::byte* HostOf(std::uint64_t page) const { return slot_.host + page * kPageBytes; }
  std::byte* CopyOf(std::uint64_t page) { return copy_.data() + page * kPageBytes; }
  bool Changed(std::uint64_t page) {
    return std::memcmp(CopyOf(page), HostOf(page), kPageBytes) != 0;
  }

  // Whether the log has the page, or will find D set in an SPTE. A D that was once seen is not
  // looked for again: if it gets lost, Take complains.
  bool Knows(std::uint64_t page) {
    if (log()->IsMarked(page)) return true;
    if (log()->method() != DirtyLogMethod::kDirtyBits) return false;
    if (!known_dirty_.contains(page) && HasDirtySpte(page)) known_dirty_.insert(page);
    return known_dirty_.contains(page);
  }
  bool HasDirtySpte(std::uint64_t page) const {
    const Hpa host(reinterpret_cast<std::uintptr_t>(HostOf(page)));
    for (const ShadowPageInfo& info : pages_.List(0, ~std::size_t{0})) {
      if (info.role.level != Level::kPt) continue;
      const SpteCodec& codec = pages_.CodecOf(info.role);
      const std::span sptes(reinterpret_cast<const std::uint64_t*>(info.table.bits()),
                            kSptesPerPage);
      for (const std::uint64_t& at : sptes) {
        const std::uint64_t spte = ShadowPages::Load(&at);
        if (SpteCodec::IsLive(spte) && codec.IsDirty(spte) && codec.Target(spte) == host) {
          return true;
        }
      }
    }
    return false;
  }

  std::string Complain(std::uint64_t page, const char* what) const {
    return "page " + std::to_string(page) + " of slot " + std::to_string(slot_.id) + " " + what;
  }

  ShadowPages& pages_;
  const MemorySlot slot_;
  std::vector<std::byte> copy_;          // as of the last Take, or the start
  std::set<std::uint64_t> known_dirty_;  // pages with D in an SPTE since then
};

}  // namespace pagesaw
