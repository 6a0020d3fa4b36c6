#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>

import pagesaw.cpu.breakpoints;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kAt = 0x12345'6008;

// DR7 with breakpoint `n` enabled locally: R/W and LEN as the register has them.
constexpr std::uint64_t Dr7(unsigned n, unsigned watch, unsigned length) {
  return 1u << (2 * n) | std::uint64_t{watch | length << 2} << (16 + 4 * n);
}
constexpr unsigned kExecute = 0, kWrite = 1, kPort = 2, kAccess = 3;
constexpr unsigned kLen1 = 0, kLen2 = 1, kLen8 = 2, kLen4 = 3;

struct DataCase {
  const char* name;
  unsigned watch, length;
  std::uint64_t register_address;
  std::uint64_t linear;
  unsigned bytes;
  bool write;
  bool want;
};
class BreakpointsData : public testing::TestWithParam<DataCase> {};
TEST_P(BreakpointsData, MeetsWhatOverlaps) {
  const DataCase& c = GetParam();
  for (unsigned n = 0; n < 4; ++n) {
    std::array<std::uint64_t, 4> addresses = {};
    addresses[n] = c.register_address;
    const Breakpoints breakpoints(addresses, Dr7(n, c.watch, c.length), false);
    EXPECT_EQ(breakpoints.Data(c.linear, c.bytes, c.write), c.want ? 1u << n : 0u) << n;
  }
}
INSTANTIATE_TEST_SUITE_P(
    Accesses, BreakpointsData,
    testing::Values(DataCase{"Write", kWrite, kLen4, kAt, kAt, 4, true, true},
                    DataCase{"ReadOfWriteBreakpoint", kWrite, kLen4, kAt, kAt, 4, false, false},
                    DataCase{"ReadOfAccessBreakpoint", kAccess, kLen4, kAt, kAt, 4, false, true},
                    DataCase{"WriteOfAccessBreakpoint", kAccess, kLen4, kAt, kAt, 4, true, true},
                    DataCase{"ExecuteIsNoData", kExecute, kLen1, kAt, kAt, 1, true, false},
                    DataCase{"PortIsNoData", kPort, kLen1, kAt, kAt, 1, true, false},
                    DataCase{"LastByteOfFour", kWrite, kLen4, kAt, kAt + 3, 1, true, true},
                    DataCase{"ByteBehindFour", kWrite, kLen4, kAt, kAt + 4, 1, true, false},
                    DataCase{"ByteBefore", kWrite, kLen4, kAt, kAt - 1, 1, true, false},
                    DataCase{"WideAccessAround", kWrite, kLen1, kAt + 5, kAt, 8, true, true},
                    DataCase{"UnalignedRegister", kWrite, kLen4, kAt + 2, kAt, 1, true, true},
                    DataCase{"EightBytes", kWrite, kLen8, kAt, kAt + 7, 1, true, true},
                    DataCase{"TwoBytes", kWrite, kLen2, kAt, kAt + 2, 1, true, false}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Breakpoints, OneThatIsNotEnabledWatchesNothing) {
  const Breakpoints breakpoints({kAt, kAt, kAt, kAt}, 0x0f0f'0400 | 0x0f00'0000, true);
  EXPECT_FALSE(breakpoints.any());
  EXPECT_EQ(breakpoints.Data(kAt, 1, true), 0u);
}

TEST(Breakpoints, EitherEnableBitIsEnough) {
  for (const std::uint64_t enable : {1u, 2u, 3u}) {
    EXPECT_EQ(Breakpoints({kAt, 0, 0, 0}, enable, false).Execute(kAt), 1u);
  }
}

TEST(Breakpoints, InstructionsAreMetAtTheirFirstByte) {
  const Breakpoints breakpoints({kAt, kAt, 0, 0}, Dr7(0, kExecute, kLen1) | Dr7(1, kWrite, kLen1),
                                false);
  EXPECT_EQ(breakpoints.Execute(kAt), 1u);
  EXPECT_EQ(breakpoints.Execute(kAt - 1), 0u);
}

TEST(Breakpoints, PortsNeedDebugExtensions) {
  const std::uint64_t dr7 = Dr7(2, kPort, kLen2);
  EXPECT_EQ(Breakpoints({0, 0, 0x60, 0}, dr7, true).Port(0x61, 1), 4u);
  EXPECT_EQ(Breakpoints({0, 0, 0x60, 0}, dr7, true).Port(0x62, 1), 0u);
  EXPECT_FALSE(Breakpoints({0, 0, 0x60, 0}, dr7, false).any());
}

TEST(Breakpoints, PagesAreKnownByWhatIsWatchedInThem) {
  const Breakpoints breakpoints({kAt, kAt + 0x1000, 0, 0},
                                Dr7(0, kExecute, kLen1) | Dr7(1, kAccess, kLen4), false);
  EXPECT_TRUE(breakpoints.WatchesCodeIn(kAt | 0xfff));
  EXPECT_FALSE(breakpoints.WatchesDataIn(kAt));
  EXPECT_TRUE(breakpoints.WatchesDataIn(kAt + 0xfff));
  EXPECT_FALSE(breakpoints.WatchesCodeIn(kAt + 0x1000));
}

TEST(Breakpoints, TheLastByteOfAllMayBeWatched) {
  const Breakpoints breakpoints({~std::uint64_t{0}, 0, 0, 0}, Dr7(0, kWrite, kLen1), false);
  EXPECT_EQ(breakpoints.Data(~std::uint64_t{0} - 3, 4, true), 1u);
  EXPECT_EQ(breakpoints.Data(0, 4, true), 0u);
}

}  // namespace
}  // namespace pagesaw::cpu
