// The reverse map: which leaf SPTEs map a guest frame, by the size of the leaf.
// Guarded by whoever owns it.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
export module pagesaw.mmu.rmap;

import pagesaw.core.address;
import pagesaw.mmu.spte_list;

export namespace pagesaw {

class Rmap {
 public:
  // The SPTEs of `level` that map the page of that size around `gfn`. Made if there was none.
  SpteList& At(Gfn gfn, Level level);
  // The same, or null if no SPTE was ever there.
  SpteList* Find(Gfn gfn, Level level);

  // Calls `visit(page, list)` for each list of `level` that is not empty and whose page has a frame
  // from `first` to `last`; `page` is its first frame.
  template <typename Visit>
  void ForEachIn(Gfn first, std::uint64_t last, Level level, Visit visit) {
    const unsigned shift = LevelShift(level) - kPageShift;
    const std::uint64_t from = first.number >> shift, to = last >> shift;
    const auto visit_chunk = [&](std::uint64_t chunk_number, Chunk& chunk) {
      const std::uint64_t start = chunk_number << kChunkBits;
      const std::uint64_t begin = from > start ? from - start : 0;
      const std::uint64_t end = to - start < chunk.size() ? to - start + 1 : chunk.size();
      for (std::uint64_t i = begin; i < end; ++i) {
        if (!chunk[i].empty()) visit(Gfn{(start + i) << shift}, chunk[i]);
      }
    };
    auto& chunks = chunks_[Number(level) - 1];
    const std::uint64_t first_chunk = from >> kChunkBits, last_chunk = to >> kChunkBits;
    if (last_chunk - first_chunk < chunks.size()) {
      for (std::uint64_t number = first_chunk; number <= last_chunk; ++number) {
        const auto found = chunks.find(number);
        if (found != chunks.end()) visit_chunk(number, *found->second);
      }
      return;
    }
    for (auto& [number, chunk] : chunks) {
      if (number >= first_chunk && number <= last_chunk) visit_chunk(number, *chunk);
    }
  }

 private:
  static constexpr unsigned kChunkBits = 9;
  using Chunk = std::array<SpteList, std::size_t{1} << kChunkBits>;

  // The number of the page at `level` around `gfn`.
  static std::uint64_t PageNumber(Gfn gfn, Level level) {
    return gfn.number >> (LevelShift(level) - kPageShift);
  }

  std::array<std::unordered_map<std::uint64_t, std::unique_ptr<Chunk>>, 3> chunks_;
};

}  // namespace pagesaw
