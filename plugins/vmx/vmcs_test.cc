#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <set>
#include <vector>

import pagesaw.plugins.vmx.vmcs;

namespace pagesaw::vmx {
namespace {

TEST(Field, IsFoundByItsEncodingAlone) {
  unsigned found = 0;
  std::set<unsigned> slots;
  for (std::uint64_t encoding = 0; encoding < 0x2'0000; ++encoding) {
    const std::optional<Field> field = Field::Find(encoding);
    if (!field) continue;
    ++found;
    EXPECT_EQ(field->encoding(), encoding);
    EXPECT_TRUE(slots.insert(field->slot()).second);
  }
  EXPECT_EQ(found, std::size(detail::kEncodings));
  EXPECT_FALSE(Field::Find(std::uint64_t{1} << 32));
}

TEST(Vmcs, KeepsEachFieldForItselfAtItsWidth) {
  std::vector<std::uint64_t> page(kRegionBytes / 8);
  Vmcs vmcs(reinterpret_cast<std::byte*>(page.data()));
  page[0] = kRevision;
  for (const std::uint16_t encoding : detail::kEncodings) {
    vmcs.Set(*Field::Find(encoding), 0x1111'1111'0000'0000 + encoding);
  }
  for (const std::uint16_t encoding : detail::kEncodings) {
    const Field field = *Field::Find(encoding);
    EXPECT_EQ(vmcs.Get(field), (0x1111'1111'0000'0000 + encoding) & field.mask());
  }
  EXPECT_EQ(vmcs.revision(), kRevision);
  EXPECT_FALSE(vmcs.launched());
  vmcs.set_launched(true);
  EXPECT_TRUE(vmcs.launched());
}

TEST(Vmcs, WhereNothingIsReadsAsOnes) {
  Vmcs vmcs;
  vmcs.Set(field::kGuestRip, 5);
  EXPECT_EQ(vmcs.Get(field::kGuestRip), ~std::uint64_t{0});
  EXPECT_EQ(vmcs.Get(field::kPinControls), 0xffff'ffffu);
  EXPECT_FALSE(vmcs);
}

}  // namespace
}  // namespace pagesaw::vmx
