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
