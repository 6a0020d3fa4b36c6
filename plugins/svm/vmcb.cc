module;
#include <cstddef>
#include <cstdint>
module pagesaw.plugins.svm.vmcb;

namespace pagesaw::svm {
namespace {

struct SegmentLayout {
  Field<std::uint16_t> selector, attributes;
  Field<std::uint32_t> limit;
  Field<std::uint64_t> base;
};

constexpr SegmentLayout LayoutOf(SegmentField field) {
  const auto at = static_cast<std::uint16_t>(field);
  const auto plus = [at](unsigned bytes) { return static_cast<std::uint16_t>(at + bytes); };
  return {{at}, {plus(2)}, {plus(4)}, {plus(8)}};
}

}  // namespace

void Vmcb::SetCode(const std::byte* code, std::size_t count) {
  Set(field::kCodeCount, count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::uint16_t>(field::kCodeCount.offset + 1 + i);
    Set(Field<std::uint8_t>{at}, std::to_integer<std::uint8_t>(code[i]));
  }
}

// Attributes are those of a descriptor with the four bits of the limit taken out.
Segment Vmcb::GetSegment(SegmentField field) const {
  const SegmentLayout layout = LayoutOf(field);
  const unsigned packed = Get(layout.attributes);
  return {.selector = Get(layout.selector),
          .attributes = static_cast<std::uint16_t>((packed & 0xff) | (packed & 0xf00) << 4),
          .limit = Get(layout.limit),
          .base = Get(layout.base)};
}

void Vmcb::SetSegment(SegmentField field, const Segment& segment) {
  const SegmentLayout layout = LayoutOf(field);
  const unsigned attributes = segment.attributes;
  Set(layout.selector, segment.selector);
  Set(layout.attributes, (attributes & 0xff) | (attributes >> 4 & 0xf00));
  Set(layout.limit, segment.limit);
  Set(layout.base, segment.base);
}

DescriptorTable Vmcb::GetTable(SegmentField field) const {
  const SegmentLayout layout = LayoutOf(field);
  return {.base = Get(layout.base), .limit = static_cast<std::uint16_t>(Get(layout.limit))};
}

void Vmcb::SetTable(SegmentField field, const DescriptorTable& table) {
  const SegmentLayout layout = LayoutOf(field);
  Set(layout.limit, table.limit);
  Set(layout.base, table.base);
}

}  // namespace pagesaw::svm
