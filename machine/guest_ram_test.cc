#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>
#include <cstddef>
#include <cstdint>
#include <memory>

import pagesaw.machine.guest_ram;

namespace pagesaw {
namespace {

TEST(GuestRam, CostsOnlyWhatIsTouched) {
  auto ram = GuestRam::Create(std::uint64_t{8} << 30);
  ASSERT_TRUE(ram.ok()) << ram.status();
  EXPECT_EQ((*ram)->ResidentBytes(), 0u);
  for (std::uint64_t at = 0; at < (10u << 20); at += 4096) {
    (*ram)->host()[at * 700] = std::byte{1};
  }
  EXPECT_EQ((*ram)->ResidentBytes(), 10u << 20);
}

TEST(GuestRam, IsAlignedForLargePages) {
  auto small = GuestRam::Create(4096);
  auto large = GuestRam::Create(std::uint64_t{1} << 30);
  ASSERT_TRUE(small.ok() && large.ok());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>((*small)->host()) % (2u << 20), 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>((*large)->host()) % (1u << 30), 0u);
}

TEST(GuestRam, RefusesSizesThatCannotBe) {
  EXPECT_EQ(GuestRam::Create(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GuestRam::Create(4097).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GuestRam::Create(std::uint64_t{1} << 60).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GuestRam::Create(~std::uint64_t{0xfff}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace pagesaw
