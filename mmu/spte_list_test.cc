#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>

import pagesaw.mmu.spte_list;

namespace pagesaw {
namespace {

std::set<std::uint64_t*> Members(const SpteList& list) {
  std::set<std::uint64_t*> members;
  list.ForEach([&](std::uint64_t* spte) { members.insert(spte); });
  return members;
}

TEST(SpteList, HoldsWhatWasAddedAndNotRemoved) {
  std::array<std::uint64_t, 200> sptes = {};
  std::mt19937 random(1);
  SpteList list;
  std::set<std::uint64_t*> want;
  for (unsigned step = 0; step < 20'000; ++step) {
    std::uint64_t* spte = &sptes[random() % sptes.size()];
    if (want.insert(spte).second) {
      list.Add(spte);
    } else {
      want.erase(spte);
      list.Remove(spte);
    }
    ASSERT_EQ(list.size(), want.size()) << "step " << step;
    ASSERT_EQ(list.empty(), want.empty());
    ASSERT_EQ(Members(list), want) << "step " << step;
  }
}

TEST(SpteList, SomeIsAMember) {
  std::array<std::uint64_t, 40> sptes = {};
  SpteList list;
  for (std::uint64_t& spte : sptes) {
    list.Add(&spte);
    EXPECT_TRUE(Members(list).contains(list.Some()));
  }
  for (std::size_t left = sptes.size(); left > 0; --left) {
    EXPECT_EQ(list.size(), left);
    list.Remove(list.Some());
  }
  EXPECT_TRUE(list.empty());
}

}  // namespace
}  // namespace pagesaw
