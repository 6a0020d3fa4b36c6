// Translations of the second stage, by guest frame: what makes the many table accesses of a
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
    const Entry& entry = EntryOf(gpa);
    if (entry.frame != GfnOf(gpa)) return false;
    found = entry.translation;
    const bool clean = format.accessed_dirty && (found.leaf & format.layout.dirty) == 0;
    if (format.PermissionFault(found.rights, access) || (access.is_write() && clean)) return false;
    found.output =
        OutputAddress((found.output.bits() & ~(kPageBytes - 1)) | (gpa.bits() & (kPageBytes - 1)));
    return true;
  }

  inline void Enter(Gpa gpa, const Translation& translation) {
    EntryOf(gpa) = {GfnOf(gpa), translation};
    used_.Add(IndexOf(gpa));
  }

  inline void Flush() {
    used_.ForEach(0, kEntries, [this](unsigned index) { entries_[index].frame = kNone; });
    used_.Clear();
  }

 private:
  static constexpr unsigned kEntries = 256;
  static constexpr Gfn kNone{~std::uint64_t{0}};
  struct Entry {
    Gfn frame = kNone;
    Translation translation;
  };

  static constexpr unsigned IndexOf(Gpa gpa) {
    return static_cast<unsigned>(GfnOf(gpa).number) & (kEntries - 1);
  }
  inline Entry& EntryOf(Gpa gpa) { return entries_[IndexOf(gpa)]; }

  std::array<Entry, kEntries> entries_;
  TlbPlaces used_;  // of entries that may not be empty
};

}  // namespace pagesaw::cpu
