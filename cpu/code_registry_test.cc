#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>

import pagesaw.cpu.code_registry;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kPage = 0x1234;

struct One {
  explicit One(CodeRegistry& registry) : member(registry, attention) {}
  std::atomic<bool> attention{false};
  CodeRegistry::Member member;
};

class CodeRegistryTest : public testing::Test {
 protected:
  // What a processor does at its look-ups.
  static CodeNews LookUp(One& one) {
    CodeNews news = one.member.TakeNews();
    one.attention = false;
    one.member.Confirm(news);
    return news;
  }

  CodeRegistry registry_;
  One a_{registry_}, b_{registry_};
};

TEST_F(CodeRegistryTest, IsUnsettledUntilOthersDroppedTheirTags) {
  a_.member.Enter();
  b_.member.Enter();
  a_.member.Hold(kPage);
  EXPECT_FALSE(a_.member.IsSettled(kPage));
  EXPECT_TRUE(b_.attention);
  const CodeNews news = LookUp(b_);
  ASSERT_EQ(news.held.size(), 1u);
  EXPECT_EQ(news.held[0].page, kPage);
  EXPECT_TRUE(a_.member.IsSettled(kPage));
  EXPECT_TRUE(b_.member.OthersHold(kPage));
  EXPECT_FALSE(a_.member.OthersHold(kPage));
}

TEST_F(CodeRegistryTest, DoesNotWaitForWhoDoesNotRun) {
  a_.member.Enter();
  a_.member.Hold(kPage);
  EXPECT_TRUE(a_.member.IsSettled(kPage));
  b_.member.Enter();
  ASSERT_TRUE(b_.member.HasNews());
  EXPECT_TRUE(LookUp(b_).drop_all_write_tags);
}

TEST_F(CodeRegistryTest, LeavingConfirms) {
  a_.member.Enter();
  b_.member.Enter();
  a_.member.Hold(kPage);
  b_.member.Leave();
  EXPECT_TRUE(a_.member.IsSettled(kPage));
  b_.member.Enter();
  ASSERT_TRUE(b_.member.HasNews());
  EXPECT_TRUE(LookUp(b_).drop_all_write_tags);
}

TEST_F(CodeRegistryTest, AStoreIsToldAndUnsettlesUntilItIsMade) {
  a_.member.Enter();
  b_.member.Enter();
  a_.member.Hold(kPage);
  (void)LookUp(b_);
  b_.member.Announce(kPage << 12 | 0x80, 4);
  EXPECT_TRUE(a_.attention);
  const CodeNews news = LookUp(a_);
  ASSERT_EQ(news.changes.size(), 1u);
  EXPECT_EQ(news.changes[0].host, kPage << 12 | 0x80);
  EXPECT_EQ(news.changes[0].bytes, 4u);
  EXPECT_FALSE(a_.member.IsSettled(kPage));
  (void)LookUp(b_);  // its store is done by now
  EXPECT_TRUE(a_.member.IsSettled(kPage));
}

TEST_F(CodeRegistryTest, AnOldConfirmationDoesNotCountForANewHold) {
  a_.member.Enter();
  b_.member.Enter();
  a_.member.Hold(kPage);
  const CodeNews old = b_.member.TakeNews();
  a_.member.Release(kPage);
  a_.member.Hold(kPage);
  b_.member.Confirm(old);
  EXPECT_FALSE(a_.member.IsSettled(kPage));
  (void)LookUp(b_);
  EXPECT_TRUE(a_.member.IsSettled(kPage));
}

TEST_F(CodeRegistryTest, ManyChangesBecomeOne) {
  a_.member.Enter();
  b_.member.Enter();
  a_.member.Hold(kPage);
  for (unsigned i = 0; i < 1000; ++i) b_.member.Announce((kPage << 12) + i, 1);
  const CodeNews news = LookUp(a_);
  EXPECT_TRUE(news.forget_all_code);
  EXPECT_TRUE(news.changes.empty());
}

TEST_F(CodeRegistryTest, ForgetsPagesThatNobodyHolds) {
  a_.member.Enter();
  a_.member.Hold(kPage);
  a_.member.Release(kPage);
  EXPECT_FALSE(b_.member.OthersHold(kPage));
  EXPECT_FALSE(a_.member.IsSettled(kPage));
}

TEST_F(CodeRegistryTest, AWriteFromOutsideIsToldToWhoHoldsThePage) {
  a_.member.Enter();
  b_.member.Enter();
  a_.member.Hold(kPage);
  (void)LookUp(b_);
  EXPECT_TRUE(a_.member.Changed(kPage << 12 | 0x80, 4));
  EXPECT_FALSE(a_.member.Changed((kPage + 1) << 12, 4));
  EXPECT_FALSE(b_.member.Changed(kPage << 12, 4));
  EXPECT_TRUE(a_.attention);
  EXPECT_FALSE(b_.member.HasNews());
  const CodeNews news = LookUp(a_);
  ASSERT_EQ(news.changes.size(), 1u);
  EXPECT_EQ(news.changes[0].host, kPage << 12 | 0x80);
  EXPECT_EQ(news.changes[0].bytes, 4u);
  EXPECT_TRUE(a_.member.IsSettled(kPage));  // it has been made
}

TEST(CodeRegistryAlone, HearsOfWritesFromOutside) {
  CodeRegistry registry;
  One one(registry);
  one.member.Hold(kPage);
  EXPECT_TRUE(one.member.Changed(kPage << 12, 8));
  EXPECT_EQ(one.member.TakeNews().changes.size(), 1u);
  one.member.Release(kPage);
  EXPECT_FALSE(one.member.Changed(kPage << 12, 8));
  EXPECT_FALSE(one.member.HasNews());
}

TEST(CodeRegistryAlone, HasNothingToSay) {
  CodeRegistry registry;
  One one(registry);
  one.member.Enter();
  one.member.Hold(kPage);
  EXPECT_TRUE(one.member.IsSettled(kPage));
  EXPECT_FALSE(one.member.OthersHold(kPage));
  one.member.Announce(kPage << 12, 8);
  EXPECT_FALSE(one.member.HasNews());
}

}  // namespace
}  // namespace pagesaw::cpu
