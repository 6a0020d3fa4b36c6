#include <gtest/gtest.h>

#include <cstdint>
#include <string>

import pagesaw.cpu.memory_type_ranges;

namespace pagesaw::cpu {
namespace {

constexpr unsigned kPhysicalBits = 46;

TEST(MemoryTypeRanges, OwnsTheRegistersThatItsCapabilitiesPromise) {
  const std::uint64_t capabilities = MemoryTypeRanges().Read(0xfe);
  EXPECT_EQ(capabilities, 0x508u);
  for (std::uint32_t i = 0; i < 2 * (capabilities & 0xff); ++i) {
    EXPECT_TRUE(MemoryTypeRanges::Owns(0x200 + i)) << i;
  }
  for (const std::uint32_t index : {0xfdu, 0xffu, 0x1ffu, 0x210u, 0x251u, 0x267u, 0x270u, 0x2feu}) {
    EXPECT_FALSE(MemoryTypeRanges::Owns(index)) << index;
  }
}

TEST(MemoryTypeRanges, AreOnAndWriteBackAtFirst) {
  EXPECT_EQ(MemoryTypeRanges().Read(0x2ff), 0xc06u);
  EXPECT_EQ(MemoryTypeRanges().Read(0x250), 0x0606'0606'0606'0606u);
  EXPECT_EQ(MemoryTypeRanges().Read(0x259), 0u);
}

struct WriteCase {
  const char* name;
  std::uint32_t index;
  std::uint64_t value;
  bool want;
};
class MemoryTypeRangesWrite : public testing::TestWithParam<WriteCase> {};
TEST_P(MemoryTypeRangesWrite, IsKeptOrRefused) {
  MemoryTypeRanges ranges;
  const std::uint64_t before = ranges.Read(GetParam().index);
  EXPECT_EQ(ranges.Write(GetParam().index, GetParam().value, kPhysicalBits), GetParam().want);
  EXPECT_EQ(ranges.Read(GetParam().index), GetParam().want ? GetParam().value : before);
}
INSTANTIATE_TEST_SUITE_P(
    Values, MemoryTypeRangesWrite,
    testing::Values(WriteCase{"Capabilities", 0xfe, 0x508, false},
                    WriteCase{"DefaultOff", 0x2ff, 0, true},
                    WriteCase{"DefaultUncachedOn", 0x2ff, 0xc00, true},
                    WriteCase{"DefaultReservedType", 0x2ff, 0xc02, false},
                    WriteCase{"DefaultReservedBit", 0x2ff, 0x1c06, false},
                    WriteCase{"DefaultReservedBit9", 0x2ff, 0xe06, false},
                    WriteCase{"FixedTypes", 0x268, 0x0001'0405'0600'0104, true},
                    WriteCase{"FixedReservedType", 0x26f, 0x0700'0000'0000'0000, false},
                    WriteCase{"Base", 0x200, 0x3fff'ffff'f001, true},
                    WriteCase{"BaseReservedType", 0x202, 0x1003, false},
                    WriteCase{"BaseReservedBit", 0x204, 0x1106, false},
                    WriteCase{"BaseTooWide", 0x206, std::uint64_t{1} << kPhysicalBits, false},
                    WriteCase{"Mask", 0x20f, 0x3fff'c000'0800, true},
                    WriteCase{"MaskWithType", 0x20f, 0x3fff'c000'0806, false},
                    WriteCase{"MaskTooWide", 0x20f, 0x7fff'c000'0800, false}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw::cpu
