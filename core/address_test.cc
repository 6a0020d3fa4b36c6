#include <gtest/gtest.h>

#include <concepts>
#include <cstdint>
#include <ostream>
#include <type_traits>

import pagesaw.core.address;

namespace pagesaw {
namespace {

static_assert(!std::equality_comparable_with<Gva, Gpa>);
static_assert(!std::is_convertible_v<std::uint64_t, Gpa>);
static_assert(!std::is_convertible_v<Gpa, Hpa>);
static_assert(!std::is_invocable_v<decltype([](Gpa gpa) { return GfnOf(gpa); }), Gva>);

TEST(Address, FrameAndAddressConvertBothWays) {
  EXPECT_EQ(GfnOf(Gpa(0x12345fff)).number, 0x12345u);
  EXPECT_EQ(GpaOf(Gfn{0x12345}).bits(), 0x12345000u);
}

TEST(Address, CheckedAddRefusesToWrap) {
  EXPECT_EQ(CheckedAdd(Gpa(0x1000), 0x234)->bits(), 0x1234u);
  EXPECT_EQ(CheckedAdd(Gpa(~std::uint64_t{0}), 0)->bits(), ~std::uint64_t{0});
  EXPECT_FALSE(CheckedAdd(Gpa(~std::uint64_t{0}), 1).has_value());
}

struct IndexCase {
  std::uint64_t address;
  Level level;
  unsigned index_bits;
  unsigned want;
};

class AddressIndex : public testing::TestWithParam<IndexCase> {};

TEST_P(AddressIndex, SelectsTheEntry) {
  const IndexCase& c = GetParam();
  EXPECT_EQ(IndexAt(Gva(c.address), c.level, c.index_bits), c.want);
}

INSTANTIATE_TEST_SUITE_P(Levels, AddressIndex,
                         testing::Values(IndexCase{0x0000'0000'0000'5000, Level::kPt, 9, 5},
                                         IndexCase{0x0000'0000'0060'0000, Level::kPd, 9, 3},
                                         IndexCase{0x0000'0001'c000'0000, Level::kPdpt, 9, 7},
                                         IndexCase{0xffff'8000'0000'0000, Level::kPml4, 9, 256},
                                         IndexCase{0xff80'0000'0000'0000, Level::kPml5, 9, 0x180},
                                         IndexCase{0xffc0'1000, Level::kPd, 10, 1023},
                                         IndexCase{0xffc0'1000, Level::kPt, 10, 1}));

TEST(Address, LevelsCoverWhatTheirTablesDo) {
  EXPECT_EQ(LevelBytes(Level::kPt), 4096u);
  EXPECT_EQ(LevelBytes(Level::kPd), 2u << 20);
  EXPECT_EQ(LevelBytes(Level::kPdpt), 1u << 30);
  EXPECT_EQ(LevelBytes(Level::kPd, 10), 4u << 20);
  EXPECT_EQ(OffsetIn(Gva(0x12345678), Level::kPd), 0x145678u);
  EXPECT_EQ(AlignDown(Gpa(0x12345678), Level::kPd).bits(), 0x12200000u);
}

TEST(Address, CanonicalMeansSignExtended) {
  EXPECT_TRUE(IsCanonical(Gva(0x7fff'ffff'ffff), 48));
  EXPECT_FALSE(IsCanonical(Gva(0x8000'0000'0000), 48));
  EXPECT_TRUE(IsCanonical(Gva(0x8000'0000'0000), 57));
  EXPECT_TRUE(IsCanonical(Gva(0xff00'0000'0000'0000), 57));
  EXPECT_FALSE(IsCanonical(Gva(0xfe00'0000'0000'0000), 57));
}

}  // namespace
}  // namespace pagesaw
