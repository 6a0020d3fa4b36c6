#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>

import pagesaw.core.cpu_state;
import pagesaw.plugins.svm.vmcb;

namespace pagesaw::svm {
namespace {

class VmcbTest : public testing::Test {
 protected:
  template <class T>
  T At(unsigned offset) const {
    T value;
    __builtin_memcpy(&value, page_.data() + offset, sizeof(T));
    return value;
  }

  alignas(4096) std::array<std::byte, 4096> page_ = {};
  Vmcb vmcb_{page_.data()};
};

TEST_F(VmcbTest, FieldsAreOfTheirWidth) {
  page_.fill(std::byte{0xff});
  vmcb_.Set(field::kAsid, 0);
  EXPECT_EQ(At<std::uint64_t>(0x58), 0xffff'ffff'0000'0000);
  vmcb_.Set(field::kCpl, 0x103);
  EXPECT_EQ(At<std::uint32_t>(0x4c8), 0x03ff'ffffu);
  EXPECT_EQ(vmcb_.Get(field::kCpl), 3u);
}

// [amd/vol2] "Segment State in the VMCB": the limit's bits are taken out of the attributes
TEST_F(VmcbTest, SegmentsComeBackAsTheyWere) {
  const Segment code = {
      .selector = 0x1b, .attributes = 0xa0fb, .limit = 0xffff'ffff, .base = 0x1234'5678};
  vmcb_.SetSegment(SegmentField::kCs, code);
  EXPECT_EQ(At<std::uint16_t>(0x410), 0x1b);
  EXPECT_EQ(At<std::uint16_t>(0x412), 0xafb);
  EXPECT_EQ(At<std::uint32_t>(0x414), 0xffff'ffffu);
  EXPECT_EQ(At<std::uint64_t>(0x418), 0x1234'5678u);
  EXPECT_EQ(vmcb_.GetSegment(SegmentField::kCs), code);
}

TEST_F(VmcbTest, TablesHaveBaseAndLimit) {
  vmcb_.SetTable(SegmentField::kIdtr, {.base = 0x7000, .limit = 0xfff});
  EXPECT_EQ(At<std::uint32_t>(0x484), 0xfffu);
  EXPECT_EQ(At<std::uint64_t>(0x488), 0x7000u);
  EXPECT_EQ(vmcb_.GetTable(SegmentField::kIdtr), (DescriptorTable{.base = 0x7000, .limit = 0xfff}));
}

}  // namespace
}  // namespace pagesaw::svm
