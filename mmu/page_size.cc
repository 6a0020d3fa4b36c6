module;
#include <cstdint>
module pagesaw.mmu.page_size;

namespace pagesaw {

Level LargestPage(const SpteCodec& codec, const MemorySlot& slot, Gpa gpa, Level level_max) {
  for (Level level = Level::kPdpt; level != Level::kPt; level = Below(level)) {
    if (level > level_max || !codec.HasLeavesAt(level)) continue;
    const Gfn first = GfnOf(AlignDown(gpa, level));
    const std::uint64_t frames = LevelBytes(level) / kPageBytes;
    const bool inside = first >= slot.first && slot.page_count >= frames &&
                        first.number - slot.first.number <= slot.page_count - frames;
    if (!inside) continue;
    const auto host = reinterpret_cast<std::uintptr_t>(slot.HostOf(GpaOf(first)));
    if ((host & (LevelBytes(level) - 1)) == 0) return level;
  }
  return Level::kPt;
}

}  // namespace pagesaw
