#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_formats;

namespace pagesaw {
namespace {

struct FormatCase {
  const char* name;
  PageFormat format;
  // Whether execution as {XS, XU} can be had for a user page; given R.
  bool xs_only, xu_only;
};

std::vector<FormatCase> Formats() {
  return {{"LegacyShadow", MakeLegacySpteFormat(kTestPhysicalBits, false), true, true},
          {"LegacySecondStage", LegacySecondStage(false), false, false},
          {"LegacySecondStageSplit", LegacySecondStage(true), false, true},
          {"Explicit", ExplicitSecondStage(false), false, false},
          {"ExplicitSplit", ExplicitSecondStage(true), true, true}};
}

class Spte : public testing::TestWithParam<FormatCase> {
 protected:
  SpteCodec codec_{GetParam().format};
  const PageFormat& format_ = codec_.format();
};

INSTANTIATE_TEST_SUITE_P(Formats, Spte, testing::ValuesIn(Formats()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(Spte, LeavesAreWellFormedAndPointWhereTheyShould) {
  for (Level level : {Level::kPt, Level::kPd, Level::kPdpt}) {
    ASSERT_TRUE(codec_.HasLeavesAt(level));
    const std::uint64_t spte = codec_.Leaf({.page = Hpa(0x7f00'4000'0000), .level = level});
    EXPECT_TRUE(format_.IsPresent(spte));
    EXPECT_TRUE(codec_.IsLiveLeaf(spte, level));
    EXPECT_FALSE(codec_.IsLink(spte, level));
    EXPECT_FALSE(codec_.IsMmio(spte));
    EXPECT_FALSE(format_.IsMalformed(spte, level));
    EXPECT_EQ(codec_.Target(spte), Hpa(0x7f00'4000'0000));
    EXPECT_EQ(spte & format_.layout.accessed, format_.layout.accessed);
  }
}

TEST_P(Spte, LinksGrantEverythingAndAreWellFormedAtEveryLevel) {
  const std::uint64_t spte = codec_.Link(Hpa(0x7f12'3456'7000));
  for (unsigned level = 2; level <= kMaxLevels; ++level) {
    const Level at = static_cast<Level>(level);
    EXPECT_FALSE(format_.IsMalformed(spte, at)) << level;
    EXPECT_TRUE(codec_.IsLink(spte, at));
  }
  EXPECT_EQ(codec_.Target(spte), Hpa(0x7f12'3456'7000));
  EXPECT_TRUE(format_.RightsOf(spte).Covers(Rights::All()));
}

TEST_P(Spte, WritingNeedsHostAndMmu) {
  const Access write = Access::Write(Privilege::kUser);
  for (bool host : {false, true}) {
    for (bool mmu : {false, true}) {
      const std::uint64_t spte = codec_.Leaf({.host_writable = host, .mmu_writable = mmu});
      EXPECT_EQ(codec_.Allows(spte, write), host && mmu);
      EXPECT_EQ((spte & kSpteMmuWritable) != 0, host && mmu);
      EXPECT_EQ((spte & kSpteHostWritable) != 0, host);
      EXPECT_TRUE(codec_.Allows(spte, Access::Read(Privilege::kUser)));
    }
  }
}

TEST_P(Spte, NeverGrantsMoreThanAskedForAndCanExpressIsTrue) {
  for (unsigned bits = 0; bits < 32; ++bits) {
    const Rights rights(bits);
    const std::uint64_t spte = codec_.Leaf({.rights = rights});
    SCOPED_TRACE(testing::Message() << "rights " << bits << " spte " << std::hex << spte);
    if (spte == 0) continue;
    EXPECT_FALSE(format_.IsMalformed(spte, Level::kPt));
    for (Privilege by : {Privilege::kSupervisor, Privilege::kUser}) {
      // In a first stage the guest's own U/S keeps the other mode away, or SMEP does.
      if (!format_.second_stage && rights.user() != (by == Privilege::kUser)) continue;
      const bool execute = by == Privilege::kUser ? rights.exec_user() : rights.exec_supervisor();
      EXPECT_LE(codec_.Allows(spte, Access::Read(by)), rights.read());
      EXPECT_LE(codec_.Allows(spte, Access::Write(by)), rights.write());
      EXPECT_LE(codec_.Allows(spte, Access::Fetch(by)), execute);
    }
  }
}

TEST_P(Spte, ExpressesTheSplitsOfExecutionThatTheFormatHas) {
  constexpr unsigned kBase = Rights::kRead | Rights::kUser;
  constexpr unsigned kXs = Rights::kExecSupervisor, kXu = Rights::kExecUser;
  for (unsigned write : {0u, unsigned{Rights::kWrite}}) {
    EXPECT_TRUE(codec_.CanExpress(Rights(kBase | write)));
    EXPECT_TRUE(codec_.CanExpress(Rights(kBase | write | kXs | kXu)));
    EXPECT_EQ(codec_.CanExpress(Rights(kBase | write | kXs)), GetParam().xs_only);
    EXPECT_EQ(codec_.CanExpress(Rights(kBase | write | kXu)), GetParam().xu_only);
  }
  EXPECT_TRUE(codec_.CanExpress(Rights()));
  EXPECT_FALSE(codec_.CanExpress(Rights(Rights::kWrite))) << "writing without reading";
}

TEST_P(Spte, MmioMarkersAreMalformedAndCarryWhatTheyWereMadeFrom) {
  for (std::uint64_t gfn : {std::uint64_t{0}, std::uint64_t{0xfee00}, std::uint64_t{0xff'ffff'ffff},
                            std::uint64_t{1} << 39, std::uint64_t{0x55'5555'5555}}) {
    for (unsigned generation = 0; generation <= 0xffff; generation += 0x1235) {
      for (unsigned flags = 0; flags < 4; ++flags) {
        const MmioSpte mmio = {.gfn = Gfn{gfn},
                               .write = (flags & 1) != 0,
                               .user = (flags & 2) != 0,
                               .generation = static_cast<std::uint16_t>(generation)};
        const std::uint64_t spte = codec_.Mmio(mmio);
        ASSERT_TRUE(format_.IsPresent(spte));
        ASSERT_TRUE(format_.IsMalformed(spte, Level::kPt));
        ASSERT_FALSE(SpteCodec::IsLive(spte));
        ASSERT_EQ(codec_.DecodeMmio(spte), mmio);
      }
    }
  }
  EXPECT_FALSE(codec_.DecodeMmio(0).has_value());
}

TEST(SpteCodec, HasNoMmioMarkerWhereNoAddressBitIsReserved) {
  const SpteCodec codec(LegacySecondStage(false, 52));
  EXPECT_EQ(codec.Mmio({.gfn = Gfn{1}}), 0u);
  EXPECT_FALSE(codec.IsMmio(codec.Leaf({})));
}

TEST(SpteCodec, ExecuteOnlyNeedsAFormatThatKnowsIt) {
  const Rights execute_only(Rights::kExecSupervisor | Rights::kExecUser | Rights::kUser);
  EXPECT_TRUE(SpteCodec(ExplicitSecondStage(false, true)).CanExpress(execute_only));
  EXPECT_FALSE(SpteCodec(ExplicitSecondStage(false, false)).CanExpress(execute_only));
  EXPECT_FALSE(SpteCodec(LegacySecondStage(false)).CanExpress(execute_only));
}

TEST(SpteCodec, LargeLeavesOnlyWhereTheFormatHasThem) {
  PageFormat format = LegacySecondStage(false);
  format.reserved[1][2] |= 0x80;
  EXPECT_FALSE(SpteCodec(format).HasLeavesAt(Level::kPdpt));
  EXPECT_TRUE(SpteCodec(format).HasLeavesAt(Level::kPd));
  EXPECT_FALSE(SpteCodec(format).HasLeavesAt(Level::kPml4));
}

}  // namespace
}  // namespace pagesaw
