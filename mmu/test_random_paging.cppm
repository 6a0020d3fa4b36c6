// For tests: what a guest might have in its tables and registers, and what a host might say of its
// memory, at random. Tables are in the first frames; addresses are few, so that they meet.
module;
#include <array>
#include <cstdint>
#include <random>
export module pagesaw.mmu.test_random_paging;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.paging_state;

export namespace pagesaw {

class RandomPaging {
 public:
  static constexpr unsigned kTables = 14;            // the first frames hold tables
  static constexpr std::uint64_t kNamedFrames = 64;  // of memory, which entries name
  static constexpr std::uint64_t kReadOnlyBase = 0x1000'0000;
  static constexpr std::uint64_t kNoMemory = 0x5000'0000;

  explicit RandomPaging(unsigned seed) : random_(seed), layered_(Chance(2)) {}

  std::uint64_t Word() { return random_(); }
  std::uint64_t Below(std::uint64_t bound) { return random_() % bound; }
  bool Chance(unsigned in) { return Below(in) == 0; }

  PagingFeatures Features() {
    PagingFeatures features;
    features.physical_bits = static_cast<std::uint8_t>(36 + Below(16));
    features.gib_pages = !Chance(4);
    features.pse36_bits = 40;
    features.root_bit8_reserved = Chance(2);
    features.la57 = true;
    return features;
  }

  // -- tables

  // An entry of the table in frame `table`.
  std::uint64_t Entry(std::uint64_t table) {
    std::uint64_t entry = Frame(table) << 12;
    if (!Chance(12)) entry |= 1;
    if (!Chance(4)) entry |= 2;
    if (!Chance(4)) entry |= 4;
    if (!Chance(3)) entry |= 0x20;
    if (!Chance(3)) entry |= 0x40;
    if (Chance(6)) entry = (entry & ~std::uint64_t{0x1f'f000}) | 0x80;
    if (Chance(40)) entry |= 0x100;
    if (Chance(10)) entry |= std::uint64_t{1} << 63;
    if (Chance(10)) entry |= Below(16) << 59;
    if (Chance(60)) entry |= std::uint64_t{1} << (13 + Below(39));
    return entry;
  }

  // Of an entry, or of an address at one level.
  unsigned Index(unsigned count) { return Chance(4) ? count - 1 : static_cast<unsigned>(Below(4)); }

  // Where an entry of `bytes` bytes is, which mostly is what a guest in `state` has.
  Gpa EntryAddress(const PagingState& state, unsigned& bytes) {
    bytes = state.mode() == PagingMode::k32Bit || Chance(8) ? 4 : 8;
    const unsigned index = Index(4096 / bytes);
    return Gpa((Below(kTables) << 12) + std::uint64_t{index} * bytes);
  }

  // -- registers

  // Another paging mode. PDPTEs are as they were.
  void ChangeMode(PagingState& state) {
    const auto mode = Below(9);
    state.cr0 = kCr0Pe | (mode == 0 ? 0 : kCr0Pg);
    state.cr4 = 0;
    state.efer = 0;
    if (mode >= 3) state.cr4 |= kCr4Pae;
    if (mode >= 5) state.efer |= kEferLme | kEferLma;
    if (mode >= 5 && !Chance(3)) state.cr4 |= kCr4Pcide;
    if (mode >= 7) state.cr4 |= kCr4La57;
    state.cr3 = Cr3(state);
    FlipBits(state);
  }

  // The bits that change what entries grant, or CR0.WP alone.
  void ChangeBits(PagingState& state) {
    if (Chance(2) && (state.cr4 & kCr4Cet) == 0) {
      state.cr0 ^= kCr0Wp;
    } else {
      FlipBits(state);
    }
  }

  void ChangeKeys(PagingState& state) {
    state.pkru = Chance(2) ? 0 : static_cast<std::uint32_t>(Word());
    state.pkrs = Chance(2) ? 0 : static_cast<std::uint32_t>(Word());
  }

  std::uint64_t Cr3(const PagingState& state) {
    const std::uint64_t root = Chance(30) ? kNoMemory : Below(5) << 12;
    return root | ((state.cr4 & kCr4Pcide) != 0 ? Below(3) : 0);
  }

  // -- accesses

  std::uint64_t Linear(const PagingState& state) {
    if (state.mode() == PagingMode::k32Bit) {
      return std::uint64_t{Index(1024)} << 22 | std::uint64_t{Index(1024)} << 12 | Below(4096);
    }
    std::uint64_t linear = Below(4096);
    for (unsigned level = 1; level <= 5; ++level) {
      linear |= std::uint64_t{Index(512)} << (12 + 9 * (level - 1));
    }
    if (!state.long_mode()) return linear & 0xffff'ffff;
    const unsigned shift = 64 - state.linear_bits();
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(linear << shift) >> shift);
  }

  Access AnyAccess(const PagingState& state) {
    const Privilege by = Chance(2) ? Privilege::kUser : Privilege::kSupervisor;
    const bool shadow_stacks = state.paging() && (state.cr4 & kCr4Cet) != 0;
    const auto kind = Below(shadow_stacks ? 5 : 3);
    if (kind == 3) return Access::ShadowStackRead(by);
    if (kind == 4) return Access::ShadowStackWrite(by);
    if (kind == 0) return Access::Fetch(by);
    const Access access = kind == 1 ? Access::Write(by) : Access::Read(by);
    return by == Privilege::kSupervisor && Chance(3) ? access.WithSmapWaived() : access;
  }

  // -- the host

  // A range of frames and what they may be used for; mostly it takes restrictions away again, so
  // that guests get somewhere.
  struct Restriction {
    Gfn first = {};
    std::uint64_t count = 0;
    MemoryAttribute attribute = {};
  };
  Restriction AnyRestriction() {
    Restriction result = {
        .first = Gfn{Chance(20) ? GfnOf(Gpa(kNoMemory)).number + Below(4) : Below(kNamedFrames)},
        .count = Chance(20) ? 1u << 20 : 1 + Below(Chance(3) ? 600 : 3)};
    if (!Chance(2)) {
      // What SPTEs of linear addresses can say.
      result.attribute.rights =
          Rights(Chance(3) ? 0u : Rights::kRead | static_cast<unsigned>(Below(8)) << 1);
      result.attribute.policy = static_cast<ViolationPolicy>(Below(4));
      static_assert(static_cast<unsigned>(ViolationPolicy::kLog) == 3);
    } else if (Chance(2)) {
      result.count = 1u << 21;
    }
    return result;
  }

 private:
  // What an entry of `table` names. In half of the guests tables stand in layers, as kernels build
  // them, so that the lowest are often written unseen; in the others any is of any level.
  std::uint64_t Frame(std::uint64_t table) {
    const auto first_of = [](std::uint64_t layer) { return (kTables * layer + 3) / 4; };
    if (layered_ && table < kTables && !Chance(10)) {
      const std::uint64_t below = table * 4 / kTables + 1;
      if (below < 4) return first_of(below) + Below(first_of(below + 1) - first_of(below));
      if (Chance(2)) return first_of(3) + Below(kTables - first_of(3));
    }
    if (Chance(40)) return (kReadOnlyBase >> 12) + Below(4);
    if (Chance(40)) return (kNoMemory >> 12) + Below(4);
    return Chance(2) ? Below(kTables) : Below(kNamedFrames);
  }

  void FlipBits(PagingState& state) {
    const auto flip = [this](std::uint64_t& word, std::uint64_t bit, unsigned in) {
      word = Chance(in) ? word & ~bit : word | bit;
    };
    flip(state.cr0, kCr0Wp, 2);
    flip(state.cr4, kCr4Pse, 3);
    flip(state.cr4, kCr4Smep, 2);
    flip(state.cr4, kCr4Smap, 2);
    flip(state.cr4, kCr4Pke, 2);
    flip(state.cr4, kCr4Pks, 2);
    flip(state.efer, kEferNxe, 4);
    flip(state.cr4, kCr4Cet, 2);
    // CET needs WP.
    if (!state.write_protect()) state.cr4 &= ~kCr4Cet;
  }

  std::mt19937_64 random_;
  const bool layered_;
};

}  // namespace pagesaw
