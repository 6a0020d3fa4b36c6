module;
#include <array>
#include <cstdint>
module pagesaw.cpu.memory_type_ranges;

namespace pagesaw::cpu {
namespace {

constexpr std::uint32_t kCapabilities = 0xfe, kFirstVariable = 0x200, kDefaultType = 0x2ff;
constexpr std::array<std::uint32_t, 11> kFixed = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                                  0x26b, 0x26c, 0x26d, 0x26e, 0x26f};

// IA32_MTRRCAP: how many variable ranges, fixed ranges, write-combining.
constexpr std::uint64_t kCapabilityBits = MemoryTypeRanges::kVariableRanges | 1u << 8 | 1u << 10;

enum Type : std::uint8_t {
  kUncached,
  kWriteCombining,
  kWriteThrough = 4,
  kWriteProtected,
  kWriteBack
};

constexpr std::uint64_t kTypeBits = 0xff;
constexpr std::uint64_t kFixedOn = 1u << 10, kOn = 1u << 11;  // of the default-type register
constexpr std::uint64_t kValid = 1u << 11;                    // of a mask

bool IsType(std::uint64_t type) {
  return type == kUncached || type == kWriteCombining ||
         (type >= kWriteThrough && type <= kWriteBack);
}

// A register of eight types.
bool AreTypes(std::uint64_t value) {
  for (unsigned shift = 0; shift < 64; shift += 8) {
    if (!IsType(value >> shift & kTypeBits)) return false;
  }
  return true;
}

constexpr std::uint64_t EightTimes(Type type) { return type * 0x0101'0101'0101'0101u; }

// Where the fixed range register `index` stands in `kFixed`, or its size.
unsigned FixedNumber(std::uint32_t index) {
  unsigned number = 0;
  while (number < kFixed.size() && kFixed[number] != index) ++number;
  return number;
}

bool IsVariable(std::uint32_t index) {
  return index - kFirstVariable < 2 * MemoryTypeRanges::kVariableRanges;
}

}  // namespace

MemoryTypeRanges::MemoryTypeRanges() : default_type_(kOn | kFixedOn | kWriteBack) {
  fixed_.fill(EightTimes(kWriteBack));
  fixed_[FixedNumber(0x259)] = EightTimes(kUncached);  // A0000h to BFFFFh
}

bool MemoryTypeRanges::Owns(std::uint32_t index) {
  return index == kCapabilities || index == kDefaultType || IsVariable(index) ||
         FixedNumber(index) < kFixed.size();
}

std::uint64_t MemoryTypeRanges::Read(std::uint32_t index) const {
  if (index == kCapabilities) return kCapabilityBits;
  if (index == kDefaultType) return default_type_;
  return IsVariable(index) ? variable_[index - kFirstVariable] : fixed_[FixedNumber(index)];
}

bool MemoryTypeRanges::Write(std::uint32_t index, std::uint64_t value, unsigned physical_bits) {
  if (index == kCapabilities) return false;
  if (index == kDefaultType) {
    if ((value & ~(kOn | kFixedOn | kTypeBits)) != 0 || !IsType(value & kTypeBits)) return false;
    default_type_ = value;
    return true;
  }
  if (!IsVariable(index)) {
    if (!AreTypes(value)) return false;
    fixed_[FixedNumber(index)] = value;
    return true;
  }
  const bool is_mask = (index & 1) != 0;
  const std::uint64_t pages = ((std::uint64_t{1} << physical_bits) - 1) & ~std::uint64_t{0xfff};
  if ((value & ~(pages | (is_mask ? kValid : kTypeBits))) != 0) return false;
  if (!is_mask && !IsType(value & kTypeBits)) return false;
  variable_[index - kFirstVariable] = value;
  return true;
}

}  // namespace pagesaw::cpu
