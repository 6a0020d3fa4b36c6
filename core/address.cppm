// Addresses, frames and levels: the types that keep the address spaces of a virtual machine apart.
// What a given address maps to is the business of walkers and shadow MMUs.
module;
#include <compare>
#include <cstdint>
#include <optional>
export module pagesaw.core.address;

export namespace pagesaw {

// An address of the space that `Tag` names. Addresses of different spaces do not compare or
// convert.
template <typename Tag>
class Address {
 public:
  constexpr Address() = default;
  constexpr explicit Address(std::uint64_t bits) : bits_(bits) {}
  constexpr std::uint64_t bits() const { return bits_; }
  constexpr auto operator<=>(const Address&) const = default;

 private:
  std::uint64_t bits_ = 0;
};

using Gva = Address<struct GvaTag>;  // guest virtual: the linear address of whatever runs now
using Gpa = Address<struct GpaTag>;  // guest physical: what the VM's memory slots are addressed by
using Ngpa = Address<struct NgpaTag>;  // nested guest physical: what a guest's guest calls physical

// Host physical, as the software processor sees it: an address of this process. SPTEs hold it.
using Hpa = Address<struct HpaTag>;

// The input of a tree of tables, whichever space that tree translates from: a Gva, a Gpa or an
// Ngpa.
using InputAddress = Address<struct InputAddressTag>;

constexpr InputAddress InputOf(Gva gva) { return InputAddress(gva.bits()); }
constexpr InputAddress InputOf(Gpa gpa) { return InputAddress(gpa.bits()); }
constexpr InputAddress InputOf(Ngpa ngpa) { return InputAddress(ngpa.bits()); }

inline constexpr unsigned kPageShift = 12;
inline constexpr std::uint64_t kPageBytes = std::uint64_t{1} << kPageShift;

// A guest frame number: a Gpa without its page offset.
struct Gfn {
  std::uint64_t number = 0;
  constexpr auto operator<=>(const Gfn&) const = default;
};

constexpr Gfn GfnOf(Gpa gpa) { return Gfn{gpa.bits() >> kPageShift}; }
constexpr Gpa GpaOf(Gfn gfn) { return Gpa(gfn.number << kPageShift); }

// The level of a table in its tree: 1 maps 4 KiB pages, 5 is the root of 5-level paging.
enum class Level : std::uint8_t { kPt = 1, kPd = 2, kPdpt = 3, kPml4 = 4, kPml5 = 5 };

inline constexpr unsigned kMaxLevels = 5;

constexpr unsigned Number(Level level) { return static_cast<unsigned>(level); }
constexpr Level Below(Level level) { return static_cast<Level>(Number(level) - 1); }
constexpr Level Above(Level level) { return static_cast<Level>(Number(level) + 1); }

// log2 of the bytes that one entry at `level` covers, in tables of 2^index_bits entries.
constexpr unsigned LevelShift(Level level, unsigned index_bits = 9) {
  return kPageShift + index_bits * (Number(level) - 1);
}

// Bytes that one entry at `level` covers.
constexpr std::uint64_t LevelBytes(Level level, unsigned index_bits = 9) {
  return std::uint64_t{1} << LevelShift(level, index_bits);
}

// The offset of `address` in the page that a leaf at `level` maps.
template <typename Tag>
constexpr std::uint64_t OffsetIn(Address<Tag> address, Level level, unsigned index_bits = 9) {
  return address.bits() & (LevelBytes(level, index_bits) - 1);
}

// The first address of the page at `level` that holds `address`.
template <typename Tag>
constexpr Address<Tag> AlignDown(Address<Tag> address, Level level) {
  return Address<Tag>(address.bits() & ~(LevelBytes(level) - 1));
}

// The index that selects the entry for `address` in a table at `level`.
template <typename Tag>
constexpr unsigned IndexAt(Address<Tag> address, Level level, unsigned index_bits = 9) {
  return static_cast<unsigned>(address.bits() >> LevelShift(level, index_bits)) &
         ((1u << index_bits) - 1);
}

// `address` + `bytes`, or nothing if that wraps.
template <typename Tag>
constexpr std::optional<Address<Tag>> CheckedAdd(Address<Tag> address, std::uint64_t bytes) {
  const std::uint64_t sum = address.bits() + bytes;
  if (sum < bytes) return std::nullopt;
  return Address<Tag>(sum);
}

// Whether the bits of `gva` above `width` (48 or 57) repeat bit width-1.
// [intel/vol1] "Canonical Addressing"
constexpr bool IsCanonical(Gva gva, unsigned width) {
  const unsigned shift = 64 - width;
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(gva.bits() << shift) >> shift) ==
         gva.bits();
}

static_assert(IsCanonical(Gva(0xffff'8000'0000'0000), 48));
static_assert(!IsCanonical(Gva(0x8000'0000'0000), 48));
static_assert(IndexAt(Gva(0xffff'ffff'ffff'f000), Level::kPml4) == 511);

}  // namespace pagesaw
