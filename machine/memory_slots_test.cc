#include <absl/status/status.h>
#include <gtest/gtest.h>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.machine.memory_slots;

namespace pagesaw {
namespace {

struct alignas(4096) Pages {
  std::array<std::byte, 4 * 4096> bytes = {};
};

TEST(RamLayout, LeavesRoomForDevicesBelowFourGib) {
  const auto small = RamLayout(std::uint64_t{128} << 20);
  ASSERT_EQ(small.size(), 1u);
  EXPECT_EQ(small[0].bytes, std::uint64_t{128} << 20);
  const auto large = RamLayout(std::uint64_t{8} << 30);
  ASSERT_EQ(large.size(), 2u);
  EXPECT_EQ(large[0].bytes, std::uint64_t{3} << 30);
  EXPECT_EQ(large[1].base, Gpa(std::uint64_t{4} << 30));
  EXPECT_EQ(large[1].bytes, std::uint64_t{5} << 30);
  EXPECT_EQ(large[1].offset, std::uint64_t{3} << 30);
}

TEST(SlotTable, FindsTheSlotOfAFrame) {
  Pages low, high;
  SlotTable slots;
  ASSERT_TRUE(
      slots.Add({.id = 1, .first = Gfn{8}, .page_count = 2, .host = high.bytes.data()}).ok());
  ASSERT_TRUE(
      slots.Add({.id = 0, .first = Gfn{0}, .page_count = 4, .host = low.bytes.data()}).ok());
  EXPECT_EQ(slots.Find(Gfn{3})->id, 0u);
  EXPECT_EQ(slots.Find(Gfn{4}), nullptr);
  EXPECT_EQ(slots.Find(Gfn{9})->id, 1u);
  EXPECT_EQ(slots.Find(Gfn{10}), nullptr);
  EXPECT_EQ(slots.Slots().front().id, 0u);
}

TEST(SlotTable, KeepsAFoundSlotReadableAfterRemoval) {
  Pages pages;
  SlotTable slots;
  ASSERT_TRUE(
      slots.Add({.id = 7, .first = Gfn{0}, .page_count = 4, .host = pages.bytes.data()}).ok());
  const MemorySlot* slot = slots.Find(Gfn{0});
  ASSERT_TRUE(slots.Remove(7).ok());
  EXPECT_EQ(slots.Find(Gfn{0}), nullptr);
  EXPECT_EQ(slot->id, 7u);
  EXPECT_EQ(slots.Remove(7).code(), absl::StatusCode::kNotFound);
}

TEST(SlotTable, RefusesSlotsThatCannotBe) {
  Pages pages;
  SlotTable slots;
  std::byte* host = pages.bytes.data();
  ASSERT_TRUE(slots.Add({.id = 0, .first = Gfn{4}, .page_count = 4, .host = host}).ok());
  EXPECT_FALSE(slots.Add({.id = 0, .first = Gfn{64}, .page_count = 1, .host = host}).ok());
  EXPECT_FALSE(slots.Add({.id = 1, .first = Gfn{3}, .page_count = 2, .host = host}).ok());
  EXPECT_FALSE(slots.Add({.id = 1, .first = Gfn{7}, .page_count = 2, .host = host}).ok());
  EXPECT_FALSE(slots.Add({.id = 1, .first = Gfn{64}, .page_count = 0, .host = host}).ok());
  EXPECT_FALSE(slots.Add({.id = 1, .first = Gfn{64}, .page_count = 1, .host = host + 1}).ok());
  EXPECT_FALSE(
      slots.Add({.id = 1, .first = Gfn{(1ull << 40) - 1}, .page_count = 2, .host = host}).ok());
  EXPECT_EQ(slots.Slots().size(), 1u);
}

TEST(SlotTable, CopiesAcrossSlotsOrNotAtAll) {
  Pages first, second;
  SlotTable slots;
  ASSERT_TRUE(
      slots.Add({.id = 0, .first = Gfn{0}, .page_count = 4, .host = first.bytes.data()}).ok());
  ASSERT_TRUE(
      slots.Add({.id = 1, .first = Gfn{4}, .page_count = 4, .host = second.bytes.data()}).ok());
  std::vector<std::byte> data(101, std::byte{0x5a});
  ASSERT_TRUE(slots.Write(Gpa(4 * 4096 - 51), data).ok());
  EXPECT_EQ(first.bytes[4 * 4096 - 1], std::byte{0x5a});
  EXPECT_EQ(second.bytes[49], std::byte{0x5a});
  EXPECT_EQ(second.bytes[50], std::byte{0});
  std::vector<std::byte> back(101);
  ASSERT_TRUE(slots.Read(Gpa(4 * 4096 - 51), back).ok());
  EXPECT_EQ(back, data);
  ASSERT_TRUE(slots.Clear(Gpa(4 * 4096 - 51), 101).ok());
  EXPECT_EQ(second.bytes[49], std::byte{0});

  EXPECT_EQ(slots.Write(Gpa(8 * 4096 - 100), data).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(second.bytes[4 * 4096 - 100], std::byte{0});
  EXPECT_EQ(slots.Read(Gpa(~0ull - 7), back).code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(slots.Read(Gpa(~0ull), std::span<std::byte>()).ok());
}

}  // namespace
}  // namespace pagesaw
