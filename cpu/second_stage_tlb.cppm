// Translations of the second stage, by guest page: what makes the many table accesses of a
// two-stage walk cheap. Like every TLB it holds what walks found, and whoever changes SPTEs
// flushes it.
module;
#include <array>
#include <cstdint>
export module pagesaw.cpu.second_stage_tlb;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.cpu.tlb;

export namespace pagesaw::cpu {

class SecondStageTlb {
 public:
  // Whether the translation of `gpa` is known and allows `access` without a walk.
  inline bool Find(const PageFormat& format, Gpa gpa, Access access, Translation& found) {
    for (const unsigned shift : {kLargeShift, kSmallShift}) {
      const Entry& entry = entries_[IndexOf(gpa, shift)];
      if (entry.tag != TagOf(gpa, shift)) continue;
      found = entry.translation;
      const bool clean = format.accessed_dirty && (found.leaf & format.layout.dirty) == 0;
      if (format.PermissionFault(found.rights, access) || (access.is_write() && clean))
        return false;
      const std::uint64_t offset = (std::uint64_t{1} << shift) - 1;
      found.output = OutputAddress((found.output.bits() & ~offset) | (gpa.bits() & offset));
      return true;
    }
    return false;
  }

  inline void Enter(Gpa gpa, const Translation& translation) {
    const unsigned shift = translation.level == Level::kPt ? kSmallShift : kLargeShift;
    entries_[IndexOf(gpa, shift)] = {TagOf(gpa, shift), translation};
    used_.Add(IndexOf(gpa, shift));
  }

  inline void Flush() {
    used_.ForEach(0, kSmall + kLarge, [this](unsigned index) { entries_[index].tag = kNone; });
    used_.Clear();
  }

 private:
  static constexpr unsigned kSmallShift = 12, kLargeShift = 21;  // larger pages are kept in pieces
  static constexpr unsigned kSmall = 256, kLarge = 64;           // entries of each kind
  static constexpr std::uint64_t kNone = ~std::uint64_t{0};
  struct Entry {
    std::uint64_t tag = kNone;  // the number of the page of 4 KiB or 2 MiB
    Translation translation;
  };

  static constexpr std::uint64_t TagOf(Gpa gpa, unsigned shift) { return gpa.bits() >> shift; }
  static constexpr unsigned IndexOf(Gpa gpa, unsigned shift) {
    const auto number = static_cast<unsigned>(TagOf(gpa, shift));
    return shift == kSmallShift ? number & (kSmall - 1) : kSmall + (number & (kLarge - 1));
  }

  std::array<Entry, kSmall + kLarge> entries_;
  TlbPlaces used_;  // of entries that may not be empty
};

}  // namespace pagesaw::cpu
