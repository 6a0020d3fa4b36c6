#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

import pagesaw.cpu.core;
import pagesaw.cpu.memory;
import pagesaw.cpu.test_core;
import pagesaw.cpu.tlb;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kPage = 0x5000;
constexpr std::uint64_t kOld = 0x1122'3344'5566'7788;

// Holds code in every page, or in none, and counts what it is told.
class CountingWatcher final : public CodeWatcher {
 public:
  bool HoldsCode(std::uint64_t) const override { return holds; }
  void Changed(std::uint64_t, std::size_t bytes) override {
    ++changes;
    last_bytes = bytes;
  }

  bool holds = true;
  unsigned changes = 0;
  std::size_t last_bytes = 0;
};

// A page that holds code.
class PageOfCode : public testing::Test {
 protected:
  PageOfCode() {
    test_.core().code = &watcher_;
    test_.Write(kPage, kOld);
  }

  TestCore test_;
  CountingWatcher watcher_;
};

TEST_F(PageOfCode, StoresThatChangeItAreAnnouncedEachTime) {
  EXPECT_TRUE(Store(test_.core(), kPage, kOld + 1));
  EXPECT_TRUE(Store(test_.core(), kPage, kOld + 2));
  EXPECT_TRUE(Store(test_.core(), kPage, std::uint8_t{1}));
  EXPECT_EQ(watcher_.changes, 3u);
  EXPECT_EQ(watcher_.last_bytes, 1u);
  EXPECT_EQ(test_.Read<std::uint64_t>(kPage), (kOld & ~std::uint64_t{0xff}) | 1);
}

TEST_F(PageOfCode, StoresOfWhatItHoldsAreNone) {
  EXPECT_TRUE(Store(test_.core(), kPage, kOld));
  EXPECT_TRUE(Store(test_.core(), kPage + 1, static_cast<std::uint16_t>(kOld >> 8)));
  EXPECT_TRUE(Store(test_.core(), kPage + 7, static_cast<std::uint8_t>(kOld >> 56)));
  EXPECT_EQ(watcher_.changes, 0u);
  EXPECT_EQ(test_.Read<std::uint64_t>(kPage), kOld);
}

TEST_F(PageOfCode, IsWalkedToOnce) {
  EXPECT_TRUE(Store(test_.core(), kPage, kOld + 1));
  test_.Spte(kPage) = 0;
  EXPECT_TRUE(Store(test_.core(), kPage, kOld + 2));
  test_.core().FlushTranslations();
  EXPECT_FALSE(Store(test_.core(), kPage, kOld + 3));
}

TEST_F(PageOfCode, StoresAreAnnouncedNoMoreOnceItsCodeIsForgotten) {
  EXPECT_TRUE(Store(test_.core(), kPage, kOld + 1));
  const TlbEntry& entry = test_.core().bank->At(kPage);
  EXPECT_EQ(entry.write_tag, kPage | kAnnounced);
  watcher_.holds = false;
  EXPECT_TRUE(Store(test_.core(), kPage, kOld + 2));
  EXPECT_EQ(entry.write_tag, kPage);
}

TEST_F(PageOfCode, BecomesOneThatIsAnnouncedWhenItIsHeld) {
  watcher_.holds = false;
  EXPECT_TRUE(Store(test_.core(), kPage, kOld + 1));
  const TlbEntry& entry = test_.core().bank->At(kPage);
  EXPECT_EQ(entry.write_tag, kPage);
  watcher_.holds = true;
  test_.core().tlb.AnnounceWritesTo(entry.addend + kPage + 0x123);
  watcher_.changes = 0;
  EXPECT_TRUE(Store(test_.core(), kPage, kOld + 2));
  EXPECT_EQ(watcher_.changes, 1u);
}

}  // namespace
}  // namespace pagesaw::cpu
