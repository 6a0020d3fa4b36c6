#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.machine.memory_slots;
import pagesaw.machine.structure_memory;
import pagesaw.mmu.memory_attributes;

namespace pagesaw {
namespace {

struct Case {
  std::string name;
  bool read_only;
  MemoryAttribute attribute;
  bool there;
};
void PrintTo(const Case& row, std::ostream* out) { *out << row.name; }

class StructureMemoryTest : public testing::TestWithParam<Case> {};

TEST_P(StructureMemoryTest, HasWhatTheGuestMayReadAndWrite) {
  alignas(4096) static std::array<std::byte, 2 * 4096> bytes = {};
  SlotTable slots;
  ASSERT_TRUE(slots
                  .Add({.first = Gfn{4},
                        .page_count = 2,
                        .host = bytes.data(),
                        .read_only = GetParam().read_only})
                  .ok());
  MemoryAttributes attributes;
  attributes.Set(Gfn{4}, 1, GetParam().attribute);
  StructureMemory memory(slots);
  memory.Attach(attributes);
  EXPECT_EQ(memory.Find(Gfn{4}) != nullptr, GetParam().there);
  EXPECT_EQ(memory.Find(Gfn{5}) != nullptr, !GetParam().read_only);
  EXPECT_EQ(memory.Find(Gfn{6}), nullptr);
}

constexpr Rights kRead(Rights::kRead), kReadWrite(Rights::kRead | Rights::kWrite);
INSTANTIATE_TEST_SUITE_P(
    Frames, StructureMemoryTest,
    testing::Values(
        Case{"Ordinary", false, {}, true}, Case{"ReadOnlySlot", true, {}, false},
        Case{"WithoutExecution", false, {.rights = kReadWrite}, true},
        Case{"WithoutWrite", false, {.rights = kRead}, false},
        Case{"WithoutAnything", false, {.rights = Rights()}, false},
        Case{"LoggedOnly", false, {.rights = kRead, .policy = ViolationPolicy::kLog}, true}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace pagesaw
