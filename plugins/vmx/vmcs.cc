module;
#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <optional>
module pagesaw.plugins.vmx.vmcs;

namespace pagesaw::vmx {
namespace {

// An encoding: access type 0, index 9:1, type 11:10, width 14:13; the other bits are clear.
constexpr std::uint64_t kPossible = 0x6ffe;
constexpr std::uint8_t kNoSlot = 0xff;
static_assert(std::size(detail::kEncodings) < kNoSlot);

constexpr unsigned kIndices = 64;
static_assert(std::ranges::all_of(detail::kEncodings, [](std::uint16_t encoding) {
  return (encoding & ~kPossible) == 0 && (encoding >> 1 & 0x1ff) < kIndices;
}));

// By type and width, then index.
constexpr auto kSlots = [] {
  std::array<std::array<std::uint8_t, kIndices>, 16> slots = {};
  for (auto& row : slots) row.fill(kNoSlot);
  for (unsigned slot = 0; slot < std::size(detail::kEncodings); ++slot) {
    const unsigned encoding = detail::kEncodings[slot];
    const unsigned row = (encoding >> 10 & 3) | (encoding >> 13 & 3) << 2;
    slots[row][encoding >> 1 & 0x1ff] = static_cast<std::uint8_t>(slot);
  }
  return slots;
}();

}  // namespace

std::optional<Field> Field::Find(std::uint64_t encoding) {
  if ((encoding & ~kPossible) != 0) return std::nullopt;
  const std::uint64_t index = encoding >> 1 & 0x1ff;
  if (index >= kIndices) return std::nullopt;
  const std::uint8_t slot = kSlots[(encoding >> 10 & 3) | (encoding >> 13 & 3) << 2][index];
  if (slot == kNoSlot) return std::nullopt;
  return Field(static_cast<std::uint16_t>(encoding), slot);
}

std::uint64_t Field::HighestIndex() {
  std::uint64_t highest = 0;
  for (const std::uint16_t encoding : detail::kEncodings) {
    highest = std::max<std::uint64_t>(highest, encoding >> 1 & 0x1ff);
  }
  return highest;
}

}  // namespace pagesaw::vmx
