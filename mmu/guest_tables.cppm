// The guest's tables as shadow pages see them: what the guest entry behind one SPTE says now, by
// the shadow page's role alone. Walkers find faults; this finds what an SPTE may be made from.
module;
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>
export module pagesaw.mmu.guest_tables;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.memory_attributes;

export namespace pagesaw {

// What a guest entry grants and names, as far as an SPTE made from it depends on it.
struct ShadowedEntry {
  Gfn gfn = {};  // the table below; or the first frame of what this SPTE can map
  // Of the entry alone. A leaf that may be a shadow stack's is that whatever CR4.CET says: without
  // it nobody asks.
  Rights rights = {};
  bool leaf = false;
  bool dirty = false;               // leaf only
  std::uint8_t protection_key = 0;  // leaf only

  constexpr bool operator==(const ShadowedEntry&) const = default;

  // Whether what was made from `this` is still right when the entry has become `now`: it says the
  // same, or it has only become dirty, which may have made it a shadow stack's.
  constexpr bool StillHolds(ShadowedEntry now) const {
    now.dirty = now.dirty && dirty;
    if (!dirty) now.rights = now.rights.Without(Rights::kShadowStack);
    return *this == now;
  }

  // As one word that is never 0.
  constexpr std::uint64_t Pack() const {
    return gfn.number << 13 | std::uint64_t{leaf} << 12 | std::uint64_t{dirty} << 11 |
           std::uint64_t{protection_key} << 7 | 1u << 6 | rights.bits();
  }
  static constexpr ShadowedEntry Unpack(std::uint64_t word) {
    return {.gfn = Gfn{word >> 13},
            .rights = Rights(word & 63),
            .leaf = (word >> 12 & 1) != 0,
            .dirty = (word >> 11 & 1) != 0,
            .protection_key = static_cast<std::uint8_t>(word >> 7 & 15)};
  }
};
static_assert((Rights::All() | Rights(Rights::kShadowStack)).bits() < 64);

// What each SPTE of a page was made from, as ShadowedEntry packs it; 0: nothing. Seven bytes hold
// the 40 bits of a frame and the 13 of the rest: there is one for each page that a guest maps.
class ShadowedEntries {
 public:
  inline std::uint64_t Get(unsigned index) const {
    std::uint64_t word;
    __builtin_memcpy(&word, &bytes_[kBytes * index], sizeof(word));
    return word & kMask;
  }
  inline void Set(unsigned index, std::uint64_t word) {
    __builtin_memcpy(&bytes_[kBytes * index], &word, kBytes);
  }
  inline ShadowedEntry At(unsigned index) const { return ShadowedEntry::Unpack(Get(index)); }

 private:
  static constexpr unsigned kCount = 512;
  static constexpr unsigned kBytes = 7;
  static constexpr std::uint64_t kMask = (std::uint64_t{1} << (8 * kBytes)) - 1;
  static_assert(40 + 13 <= 8 * kBytes);

  std::array<std::byte, kCount * kBytes + 1> bytes_ = {};
};

class GuestTables {
 public:
  // Tables in `memory` of a processor with `features`. `attributes` may be null. What is given by
  // reference or pointer must outlive this.
  GuestTables(const GuestMemory& memory, const PagingFeatures& features,
              const MemoryAttributes* attributes = nullptr);

  // A table as the shadow pages of one role see it.
  class Table {
   public:
    // The entry that SPTE `index` stands for. Nothing if it is not present, malformed, was never
    // accessed, is in no memory, or in memory that the guest may not read.
    std::optional<ShadowedEntry> Read(unsigned index) const;
    // Whether what was made from `entry`, as it was read there before, is still right.
    bool Backs(unsigned index, const ShadowedEntry& entry) const;

   private:
    std::optional<ShadowedEntry> ReadInline(unsigned index) const;

    friend class GuestTables;
    const PageFormat* format_ = nullptr;
    const ShadowRole* role_ = nullptr;
    std::byte* host_ = nullptr;  // null: no memory, or none to be read
    bool read_only_ = false;
  };

  // The table at `gfn`. `role` must outlive what is returned, and so must the memory slot.
  Table Open(Gfn gfn, const ShadowRole& role) const;
  // One entry of it.
  std::optional<ShadowedEntry> Read(Gfn gfn, const ShadowRole& role, unsigned index) const {
    return Open(gfn, role).Read(index);
  }

  // The number by which roles name tables of a guest's hypervisor that look as `format` says; 0 if
  // there are too many kinds. Under the MMU lock.
  std::uint8_t NumberOf(const PageFormat& format) const;
  // What the tables that pages of `role` shadow look like.
  const PageFormat& FormatOf(const ShadowRole& role) const;

  // The SPTEs of a page of `role` that stand for any of `bytes` bytes from `offset` of the table.
  struct Range {
    unsigned first = 0;
    unsigned count = 0;
  };
  static Range Covering(const ShadowRole& role, std::uint64_t offset, std::uint64_t bytes);

 private:
  // More than processors can ask for: a format has few bits that its user chooses.
  static constexpr std::size_t kMaxNestedFormats = 255;

  const GuestMemory& memory_;
  const MemoryAttributes* const attributes_;
  // By NXE: 4-byte entries, the same without PSE, PAE, long mode.
  std::array<std::array<PageFormat, 4>, 2> formats_;
  // In the order in which they were met: format n has number n + 1.
  mutable std::vector<std::unique_ptr<const PageFormat>> nested_formats_;
};

}  // namespace pagesaw
