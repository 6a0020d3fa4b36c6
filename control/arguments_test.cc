#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

import pagesaw.control.arguments;
import pagesaw.core.paging_state;

namespace pagesaw {
namespace {

TEST(ResourceName, TakesWellFormedNames) {
  EXPECT_EQ(ParseVmName("vms/a-1").value_or("?"), "a-1");
  EXPECT_EQ(ParseFormatName("formats/ept").value_or("?"), "ept");
  const auto vcpu = ParseVcpuName("vms/a/vcpus/12");
  ASSERT_TRUE(vcpu.ok()) << vcpu.status();
  EXPECT_EQ(vcpu->vm, "a");
  EXPECT_EQ(vcpu->vcpu, 12u);
  const auto slot = ParseSlotName("vms/a/slots/7");
  ASSERT_TRUE(slot.ok()) << slot.status();
  EXPECT_EQ(slot->vm, "a");
  EXPECT_EQ(slot->slot, 7u);
  EXPECT_EQ(SlotResourceName("a", 7), "vms/a/slots/7");
}

class ResourceNameRefuses : public testing::TestWithParam<std::string> {};

TEST_P(ResourceNameRefuses, MalformedVmName) {
  const auto vm = ParseVmName(GetParam());
  EXPECT_EQ(vm.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_LT(vm.status().message().size(), 1000u);
}

TEST_P(ResourceNameRefuses, MalformedVcpuName) {
  EXPECT_EQ(ParseVcpuName(GetParam() + "/vcpus/0").status().code(),
            absl::StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Names, ResourceNameRefuses,
                         testing::Values("", "vms", "vms/", "vms/A", "vms/1a", "vm/a", "a",
                                         "vms/a/b", "vms/a b", std::string("vms/a\0", 6),
                                         "vms/" + std::string(64, 'a'),
                                         std::string(100000, '\x01')));

TEST(ResourceName, RefusesMalformedVcpuNumbers) {
  for (const char* number : {"", "x", "-1", "01", "1/", "99999999999", "+1"}) {
    EXPECT_FALSE(ParseVcpuName(std::string("vms/a/vcpus/") + number).ok()) << number;
    EXPECT_FALSE(ParseSlotName(std::string("vms/a/slots/") + number).ok()) << number;
  }
}

struct LinearCase {
  const char* name;
  std::uint64_t efer, cr4, address;
  bool ok;
};
class LinearAddress : public testing::TestWithParam<LinearCase> {};

TEST_P(LinearAddress, IsCheckedByMode) {
  PagingState state;
  state.efer = GetParam().efer;
  state.cr4 = GetParam().cr4;
  EXPECT_EQ(CheckLinearAddress(state, GetParam().address).ok(), GetParam().ok);
}

INSTANTIATE_TEST_SUITE_P(
    Modes, LinearAddress,
    testing::Values(LinearCase{"Low32", 0, 0, 0xffff'ffff, true},
                    LinearCase{"High32", 0, 0, 0x1'0000'0000, false},
                    LinearCase{"Low48", kEferLma, 0, 0x7fff'ffff'ffff, true},
                    LinearCase{"Hole48", kEferLma, 0, 0x8000'0000'0000, false},
                    LinearCase{"High48", kEferLma, 0, 0xffff'8000'0000'0000, true},
                    LinearCase{"Low57", kEferLma, kCr4La57, 0x8000'0000'0000, true},
                    LinearCase{"Hole57", kEferLma, kCr4La57, 0x100'0000'0000'0000, false}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(LinearAddress, ErrorNamesTheAddress) {
  PagingState state;
  state.efer = kEferLma;
  EXPECT_EQ(CheckLinearAddress(state, 0x8000'0000'0000).message(),
            "address '0x800000000000': must be canonical: bits 63 to 47 all the same");
}

TEST(PhysicalAddress, MustFit) {
  PagingState state;
  state.features.physical_bits = 40;
  EXPECT_TRUE(CheckPhysicalAddress(state, 0xff'ffff'ffff).ok());
  EXPECT_EQ(CheckPhysicalAddress(state, 0x100'0000'0000).message(),
            "address '0x10000000000': must be a guest-physical address of 40 bits");
}

TEST(PageSize, HasADefaultAndACeiling) {
  EXPECT_EQ(PageSize(0).value_or(0), 50u);
  EXPECT_EQ(PageSize(7).value_or(0), 7u);
  EXPECT_EQ(PageSize(100000).value_or(0), 1000u);
  EXPECT_FALSE(PageSize(-1).ok());
}

}  // namespace
}  // namespace pagesaw
