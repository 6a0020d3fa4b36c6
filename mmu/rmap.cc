module;
#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
module pagesaw.mmu.rmap;

namespace pagesaw {

SpteList& Rmap::At(Gfn gfn, Level level) {
  const std::uint64_t number = PageNumber(gfn, level);
  std::unique_ptr<Chunk>& chunk = chunks_[Number(level) - 1][number >> kChunkBits];
  if (chunk == nullptr) chunk = std::make_unique<Chunk>();
  return (*chunk)[number & (chunk->size() - 1)];
}

SpteList* Rmap::Find(Gfn gfn, Level level) {
  const std::uint64_t number = PageNumber(gfn, level);
  const auto& chunks = chunks_[Number(level) - 1];
  const auto found = chunks.find(number >> kChunkBits);
  if (found == chunks.end()) return nullptr;
  return &(*found->second)[number & (found->second->size() - 1)];
}

}  // namespace pagesaw
