// Where the lower tables of recent walks are, so that most walks begin there and read one entry or
// two. It holds what walks read in upper entries, and is flushed with the TLB: by a page's
// invalidation, too, as a whole. [intel/vol3] "Paging-Structure Caches"
module;
#include <array>
#include <cstdint>
export module pagesaw.cpu.paging_structure_cache;

import pagesaw.core.address;
import pagesaw.core.page_walker;

export namespace pagesaw::cpu {

// A table below the root, and the AND of the entries that lead to it, execute-disable inverted.
struct CachedTable {
  OutputAddress table;
  Level level = Level::kPt;
  std::uint64_t granted = 0;
};

// For tables of 512 entries.
class PagingStructureCache {
 public:
  // The lowest table known for `linear`, or null.
  inline const CachedTable* Find(std::uint64_t linear) const {
    for (const Level level : {Level::kPt, Level::kPd}) {
      const Entry& entry = entries_[IndexOf(linear, level)];
      if (entry.tag == TagOf(linear, level)) return &entry.cached;
    }
    return nullptr;
  }

  // Remembers the table that walks of `linear` find at its level, if it is of a level that is kept:
  // every entry above has its A bit, or there are none.
  inline void Enter(std::uint64_t linear, const CachedTable& cached) {
    if (cached.level > Level::kPd) return;
    entries_[IndexOf(linear, cached.level)] = {TagOf(linear, cached.level), cached};
  }

  inline void Flush() {
    if ((++generation_ & kGenerations) != 0) return;
    entries_.fill(Entry());
    generation_ = 1;
  }

 private:
  static constexpr unsigned kEntriesPerLevel = 64;
  static constexpr unsigned kRegionBits = 57 - 21;  // what is above the page's 2 MiB
  static constexpr std::uint64_t kGenerations = (std::uint64_t{1} << (64 - kRegionBits)) - 1;
  struct Entry {
    std::uint64_t tag = 0;  // of no generation
    CachedTable cached;
  };

  // The number of the region that a table of `level` maps.
  static constexpr std::uint64_t RegionOf(std::uint64_t linear, Level level) {
    const unsigned shift = level == Level::kPt ? 21 : 30;
    return (linear & ((std::uint64_t{1} << 57) - 1)) >> shift;
  }
  static constexpr unsigned IndexOf(std::uint64_t linear, Level level) {
    const unsigned first = level == Level::kPt ? 0 : kEntriesPerLevel;
    return first + static_cast<unsigned>(RegionOf(linear, level) & (kEntriesPerLevel - 1));
  }
  inline std::uint64_t TagOf(std::uint64_t linear, Level level) const {
    return generation_ << kRegionBits | RegionOf(linear, level);
  }

  std::array<Entry, 2 * kEntriesPerLevel> entries_;
  std::uint64_t generation_ = 1;
};

}  // namespace pagesaw::cpu
