#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <random>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.mmu.memory_attributes;

namespace pagesaw {
namespace {

using Change = MemoryAttributes::Change;

constexpr MemoryAttribute kReadOnly = {.rights = Rights(Rights::kRead)};
constexpr MemoryAttribute kNothing = {.rights = Rights()};
constexpr MemoryAttribute kLogged = {.rights = Rights(), .policy = ViolationPolicy::kLog};

TEST(MemoryAttributes, AllowsEverythingWhereNothingWasSet) {
  MemoryAttributes attributes;
  EXPECT_FALSE(attributes.any());
  EXPECT_TRUE(attributes.Of(Gfn{5}).unrestricted());
  EXPECT_EQ(attributes.Set(Gfn{5}, 1, {}), Change::kNone);
  EXPECT_FALSE(attributes.any());
}

TEST(MemoryAttributes, MergesEqualNeighbours) {
  MemoryAttributes attributes;
  EXPECT_EQ(attributes.Set(Gfn{10}, 2, kReadOnly), Change::kRestricted);
  EXPECT_EQ(attributes.Set(Gfn{14}, 2, kReadOnly), Change::kRestricted);
  EXPECT_EQ(attributes.List().size(), 2u);
  EXPECT_EQ(attributes.Set(Gfn{12}, 2, kReadOnly), Change::kRestricted);
  EXPECT_EQ(attributes.List(),
            (std::vector<AttributeRange>{{.first = Gfn{10}, .count = 6, .attribute = kReadOnly}}));
}

TEST(MemoryAttributes, SplitsWhatIsChangedInTheMiddle) {
  MemoryAttributes attributes;
  (void)attributes.Set(Gfn{10}, 10, kReadOnly);
  EXPECT_EQ(attributes.Set(Gfn{12}, 3, {}), Change::kWidened);
  EXPECT_EQ(attributes.List(),
            (std::vector<AttributeRange>{{.first = Gfn{10}, .count = 2, .attribute = kReadOnly},
                                         {.first = Gfn{15}, .count = 5, .attribute = kReadOnly}}));
  EXPECT_EQ(attributes.Set(Gfn{0}, 100, {}), Change::kWidened);
  EXPECT_FALSE(attributes.any());
}

TEST(MemoryAttributes, LoggingWhatWasFreeCountsAsRestricting) {
  MemoryAttributes attributes;
  EXPECT_EQ(attributes.Set(Gfn{1}, 1, kLogged), Change::kRestricted);
  EXPECT_EQ(attributes.Set(Gfn{1}, 1, kNothing), Change::kRestricted);
  EXPECT_EQ(attributes.Set(Gfn{1}, 1, kLogged), Change::kWidened);
}

TEST(MemoryAttributes, RefusesMoreRangesThanItHolds) {
  MemoryAttributes attributes(3);
  EXPECT_EQ(attributes.Set(Gfn{0}, 10, kReadOnly), Change::kRestricted);
  EXPECT_EQ(attributes.Set(Gfn{5}, 1, {}), Change::kWidened);
  const std::vector<AttributeRange> before = attributes.List();
  EXPECT_EQ(attributes.Set(Gfn{7}, 1, kNothing), Change::kRefused) << "that would be four";
  EXPECT_EQ(attributes.List(), before);
  EXPECT_EQ(attributes.Set(Gfn{9}, 1, kNothing), Change::kRestricted);
}

// Against one attribute for each frame.
TEST(MemoryAttributes, AgreesWithAListOfFrames) {
  constexpr std::uint64_t kFrames = 64;
  std::mt19937 random(1);
  MemoryAttributes attributes;
  std::array<MemoryAttribute, kFrames> frames = {};
  for (unsigned step = 0; step < 20'000; ++step) {
    const std::uint64_t first = random() % kFrames;
    const std::uint64_t count = 1 + random() % (kFrames - first);
    const MemoryAttribute attribute = {.rights = Rights(random() % 4 == 0 ? 15 : random() % 16),
                                       .policy = static_cast<ViolationPolicy>(random() % 4)};
    bool restricts = false;
    const auto before = frames;
    for (std::uint64_t i = first; i < first + count; ++i) {
      const MemoryAttribute normal = attribute.rights.bits() == 15 ? MemoryAttribute{} : attribute;
      const unsigned had = frames[i].policy == ViolationPolicy::kLog ? 15 : frames[i].rights.bits();
      restricts = restricts || (had & ~normal.rights.bits()) != 0;
      frames[i] = normal;
    }
    const Change want = frames == before ? Change::kNone
                        : restricts      ? Change::kRestricted
                                         : Change::kWidened;
    ASSERT_EQ(attributes.Set(Gfn{first}, count, attribute), want) << "step " << step;

    for (std::uint64_t i = 0; i < kFrames; ++i) ASSERT_EQ(attributes.Of(Gfn{i}), frames[i]);
    const std::uint64_t from = random() % kFrames, length = 1 + random() % (kFrames - from);
    bool uniform = length == 1 || frames[from].policy != ViolationPolicy::kLog;
    for (std::uint64_t i = from; i < from + length; ++i) {
      uniform = uniform && frames[i] == frames[from];
    }
    ASSERT_EQ(attributes.Uniform(Gfn{from}, length), uniform) << "step " << step;
    unsigned least = 15;
    for (std::uint64_t i = from; i < from + length; ++i) {
      least &= frames[i].policy == ViolationPolicy::kLog ? 15 : frames[i].rights.bits();
    }
    ASSERT_EQ(attributes.LeastRights(Gfn{from}, length), Rights(least)) << "step " << step;
    const std::vector<AttributeRange> ranges = attributes.List();
    for (std::size_t i = 1; i < ranges.size(); ++i) {
      ASSERT_GT(ranges[i].first.number, ranges[i - 1].last());
      ASSERT_FALSE(ranges[i].first.number == ranges[i - 1].last() + 1 &&
                   ranges[i].attribute == ranges[i - 1].attribute);
    }
  }
}

}  // namespace
}  // namespace pagesaw
