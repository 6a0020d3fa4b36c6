#include <gtest/gtest.h>

#include <cstdint>
#include <memory>

import pagesaw.core.address;
import pagesaw.core.page_walker;
import pagesaw.cpu.paging_structure_cache;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kLinear = 0xffff'8012'3456'7000;
constexpr std::uint64_t k2MiB = std::uint64_t{1} << 21;
constexpr std::uint64_t k1GiB = std::uint64_t{1} << 30;

class PagingStructureCacheTest : public testing::Test {
 protected:
  void Enter(std::uint64_t linear, Level level, std::uint64_t table) {
    cache_->Enter(linear, {OutputAddress(table), level, 7});
  }
  std::uint64_t TableFor(std::uint64_t linear) const {
    const CachedTable* found = cache_->Find(linear);
    return found == nullptr ? 0 : found->table.bits();
  }

  std::unique_ptr<PagingStructureCache> cache_ = std::make_unique<PagingStructureCache>();
};

TEST_F(PagingStructureCacheTest, KnowsNothingAtFirst) {
  EXPECT_EQ(TableFor(0), 0u);
  EXPECT_EQ(TableFor(kLinear), 0u);
}

TEST_F(PagingStructureCacheTest, TableOfPagesIsKnownForItsTwoMegabytesAlone) {
  Enter(kLinear, Level::kPt, 0x5000);
  EXPECT_EQ(TableFor(kLinear & ~(k2MiB - 1)), 0x5000u);
  EXPECT_EQ(TableFor(kLinear | (k2MiB - 1)), 0x5000u);
  EXPECT_EQ(TableFor(kLinear + k2MiB), 0u);
  EXPECT_EQ(TableFor(kLinear - k2MiB), 0u);
  EXPECT_EQ(TableFor(kLinear + 64 * k2MiB), 0u);  // the same place
}

TEST_F(PagingStructureCacheTest, LowestTableIsFoundFirst) {
  Enter(kLinear, Level::kPd, 0x6000);
  EXPECT_EQ(TableFor(kLinear + k2MiB), 0x6000u);
  EXPECT_EQ(TableFor(kLinear + k1GiB), 0u);
  Enter(kLinear, Level::kPt, 0x5000);
  EXPECT_EQ(TableFor(kLinear), 0x5000u);
  EXPECT_EQ(TableFor(kLinear + k2MiB), 0x6000u);
}

TEST_F(PagingStructureCacheTest, HigherTablesAreNotKept) {
  Enter(kLinear, Level::kPdpt, 0x7000);
  EXPECT_EQ(TableFor(kLinear), 0u);
}

TEST_F(PagingStructureCacheTest, FlushForgetsEverythingHoweverOften) {
  Enter(kLinear, Level::kPt, 0x5000);
  for (std::uint64_t i = 0; i < std::uint64_t{1} << 28; ++i) cache_->Flush();
  EXPECT_EQ(TableFor(kLinear), 0u);
  Enter(kLinear, Level::kPt, 0x5000);
  EXPECT_EQ(TableFor(kLinear), 0x5000u);
  cache_->Flush();
  EXPECT_EQ(TableFor(kLinear), 0u);
}

}  // namespace
}  // namespace pagesaw::cpu
