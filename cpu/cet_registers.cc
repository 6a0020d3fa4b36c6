module;
#include <cstdint>
module pagesaw.cpu.cet_registers;

import pagesaw.cpu.segmentation;

namespace pagesaw::cpu {

bool IsLegalCet(const Core& core, std::uint64_t value) {
  constexpr std::uint64_t kShadowStackBits = kCetShadowStack | kCetWriteShadowStack;
  constexpr std::uint64_t kTrackingBits = kCetEndBranch | kCetLegacyBitmap | kCetNoTrack |
                                          kCetSuppressDisable | kCetSuppress | kCetTracker |
                                          kCetBitmapBase;
  std::uint64_t allowed = 0;
  if (core.model->Has(Feature::kShstk)) allowed |= kShadowStackBits;
  if (core.model->Has(Feature::kIbt)) allowed |= kTrackingBits;
  constexpr std::uint64_t kNeverBoth = kCetSuppress | kCetTracker;
  return (value & ~allowed) == 0 && (value & kNeverBoth) != kNeverBoth &&
         IsCanonicalBase(core, value & kCetBitmapBase);
}

bool IsLegalSsp(const Core& core, std::uint64_t value) {
  return (value & 3) == 0 && IsCanonicalBase(core, value);
}

}  // namespace pagesaw::cpu
