// The software TLB: linear page -> host page, by kind of access. It holds only what a hardware walk
// over SPTEs found; whoever changes SPTEs flushes it.
module;
#include <array>
#include <bit>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <span>
export module pagesaw.cpu.tlb;

import pagesaw.core.address;

export namespace pagesaw::cpu {

// An entry that matches no address: bits 11:0 are never clear in it.
inline constexpr std::uint64_t kNoTag = ~std::uint64_t{0};

// Tags are linear page addresses. Each kind of access has its own, so that one compare decides
// presence and rights at once.
struct TlbEntry {
  std::uint64_t read_tag = kNoTag;
  std::uint64_t write_tag = kNoTag;  // only where the page is dirty in every table
  std::uint64_t fetch_tag = kNoTag;
  std::uint64_t addend = 0;  // host address - linear address
};

// In a write tag: the page holds code, or did. No address matches such a tag, so that every store
// there is announced; but nobody has to walk to learn where the page is.
inline constexpr std::uint64_t kAnnounced = 1;

inline constexpr unsigned kTlbEntries = 1024;

// Where the entry for the page of `linear` stands in its bank.
constexpr unsigned TlbIndex(std::uint64_t linear) {
  return static_cast<unsigned>(linear >> 12) & (kTlbEntries - 1);
}

// Some of the places of a bank. Costs to walk over what it costs to look for bits in 16 words.
class TlbPlaces {
 public:
  inline void Add(unsigned index) { words_[index / 64] |= std::uint64_t{1} << (index % 64); }
  inline void Remove(unsigned index) { words_[index / 64] &= ~(std::uint64_t{1} << (index % 64)); }
  inline bool Has(unsigned index) const { return (words_[index / 64] >> (index % 64) & 1) != 0; }
  inline void Clear() { words_.fill(0); }

  // Calls `visit(index)` for each of the `count` places from `first` that is among them; both are
  // multiples of 64. A visit may remove the place it is called for.
  template <typename Visit>
  inline void ForEach(unsigned first, unsigned count, Visit visit) const {
    for (unsigned word = first / 64; word < (first + count) / 64; ++word) {
      for (std::uint64_t left = words_[word]; left != 0; left &= left - 1) {
        visit(word * 64 + static_cast<unsigned>(std::countr_zero(left)));
      }
    }
  }
  template <typename Visit>
  inline void ForEach(Visit visit) const {
    ForEach(0, kTlbEntries, visit);
  }

 private:
  std::array<std::uint64_t, kTlbEntries / 64> words_ = {};
};

// Translations for one way of being privileged.
struct TlbBank {
  std::array<TlbEntry, kTlbEntries> entries;
  TlbPlaces used;  // of entries that may not be empty

  inline TlbEntry& At(std::uint64_t linear) { return entries[TlbIndex(linear)]; }
};

// A few pages, each with the protection key that its cached rights rest on. Told of too many it
// knows that it lost some.
class KeyedPages {
 public:
  struct Page {
    std::uint64_t linear = 0;
    unsigned key = 0;
  };

  void Add(std::uint64_t linear, unsigned key);
  inline void Clear() { count_ = 0, lost_some_ = false; }
  inline bool lost_some() const { return lost_some_; }
  inline std::span<const Page> pages() const { return {pages_.data(), count_}; }

 private:
  std::array<Page, 8> pages_;
  std::size_t count_ = 0;
  bool lost_some_ = false;
};

// Which bank an access uses: rights differ by privilege and, under SMAP, by EFLAGS.AC.
enum class BankName : std::uint8_t {
  kSupervisor,            // explicit supervisor accesses with AC = 0, and implicit ones
  kSupervisorSmapWaived,  // explicit supervisor accesses with AC = 1
  kUser,
  kChecked,  // never filled: user accesses under alignment checking, each judged in the slow path
  kSupervisorShadowStack,  // accesses to shadow stacks, of which ordinary ones tell nothing
  kUserShadowStack,
};

class Tlb {
 public:
  inline TlbBank& bank(BankName name) { return banks_[static_cast<unsigned>(name)]; }

  // Notes that an entry of `bank` for `linear` was made from a page at `level`.
  inline void NoteFill(TlbBank& bank, std::uint64_t linear, Level level) {
    bank.used.Add(TlbIndex(linear));
    if (level == Level::kPd) pieces_2m_.set(RegionOf(linear, k2mShift));
    if (level > Level::kPd) pieces_1g_.set(RegionOf(linear, k1gShift));
  }

  // Notes that cached rights to data of the page of `linear` rest on protection key `key`.
  void NoteKey(std::uint64_t linear, unsigned key);
  // Notes that something outside remembers what the code at `linear` is.
  inline void NoteCode(std::uint64_t linear) {
    const unsigned index = TlbIndex(linear);
    const std::uint64_t page = linear >> 12;
    code_pages_[index] = !code_.Has(index) || code_pages_[index] == page ? page : kManyPages;
    code_.Add(index);
  }

  // Nothing outside remembers code any more.
  inline void ForgetCode() { code_.Clear(); }

  // Forgets everything.
  void Flush();
  // Forgets the page that holds `linear`, of whatever size, with all its pieces. True if code was
  // noted there, or may have been.
  [[nodiscard]] bool FlushPage(std::uint64_t linear);
  // Forgets the rights to data that rest on protection key k, for each bit k of `keys`.
  void FlushKeys(unsigned keys);
  // Makes stores to the host page that holds `host` be announced.
  void AnnounceWritesTo(std::uint64_t host);
  // Forgets every right to write: the next store to a page walks.
  void FlushWrites();

 private:
  static constexpr unsigned k2mShift = 21;
  static constexpr unsigned k1gShift = 30;
  static constexpr unsigned kRegions = 256;  // of a hash of 8 bits

  // Addresses that programs choose differ in few, high bits: all of them count.
  static constexpr unsigned RegionOf(std::uint64_t linear, unsigned shift) {
    return static_cast<unsigned>((linear >> shift) * 0x9e37'79b9'7f4a'7c15 >> 56);
  }
  bool FlushRegion(std::uint64_t linear, unsigned shift);
  bool HoldsCode(std::uint64_t linear, unsigned shift) const;
  static constexpr std::uint64_t kManyPages = ~std::uint64_t{0};

  std::array<TlbBank, 6> banks_;
  // Regions, by a hash, of which some entry may be a piece of a large page.
  std::bitset<kRegions> pieces_2m_, pieces_1g_;
  KeyedPages keyed_;        // by other keys than 0, which most pages have
  unsigned keys_used_ = 0;  // bit k: key k has been noted
  // Where code was noted, and the number of the page, or kManyPages.
  TlbPlaces code_;
  std::array<std::uint64_t, kTlbEntries> code_pages_;
};

}  // namespace pagesaw::cpu
