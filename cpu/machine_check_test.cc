#include <gtest/gtest.h>

#include <cstdint>
#include <string>

import pagesaw.cpu.machine_check;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kAll = ~std::uint64_t{0};

TEST(MachineCheckBanks, OwnsAsManyBanksAsItsCapabilitiesTell) {
  const std::uint64_t banks = MachineCheckBanks().Read(0x179) & 0xff;
  for (std::uint32_t i = 0; i < 4 * banks; ++i) EXPECT_TRUE(MachineCheckBanks::Owns(0x400 + i));
  for (const std::uint32_t index : {0x178u, 0x17cu, 0x3ffu}) {
    EXPECT_FALSE(MachineCheckBanks::Owns(index)) << index;
  }
  EXPECT_FALSE(MachineCheckBanks::Owns(static_cast<std::uint32_t>(0x400 + 4 * banks)));
}

struct WriteCase {
  const char* name;
  std::uint32_t index;
  std::uint64_t value;
  bool want;
  bool status_writable = false;
};
class MachineCheckWrite : public testing::TestWithParam<WriteCase> {};
TEST_P(MachineCheckWrite, IsKeptOrRefused) {
  MachineCheckBanks banks;
  const std::uint64_t before = banks.Read(GetParam().index);
  EXPECT_EQ(banks.Write(GetParam().index, GetParam().value, GetParam().status_writable),
            GetParam().want);
  EXPECT_EQ(banks.Read(GetParam().index), GetParam().want ? GetParam().value : before);
}
INSTANTIATE_TEST_SUITE_P(
    Values, MachineCheckWrite,
    testing::Values(
        WriteCase{"Capabilities", 0x179, 10, false}, WriteCase{"Status", 0x17a, 7, true},
        WriteCase{"StatusReservedBit", 0x17a, 8, false}, WriteCase{"ControlAll", 0x17b, kAll, true},
        WriteCase{"ControlNone", 0x17b, 0, true}, WriteCase{"ControlSome", 0x17b, 1, false},
        WriteCase{"BankControlAll", 0x424, kAll, true},
        WriteCase{"BankControlSome", 0x400, 0x8000'0000'0000, false},
        WriteCase{"BankStatusClear", 0x401, 0, true}, WriteCase{"BankStatusSet", 0x401, 1, false},
        WriteCase{"BankStatusSetByPermission", 0x401, 1, true, true},
        WriteCase{"BankAddress", 0x426, kAll, true},
        WriteCase{"BankMiscellaneous", 0x427, kAll, true}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw::cpu
