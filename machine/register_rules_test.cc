#include <absl/status/status.h>
#include <gtest/gtest.h>
#include <string>

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.machine.boot_memory;
import pagesaw.machine.register_rules;

namespace pagesaw {
namespace {

TEST(CpuStateCheck, TakesTheStatesThatLoadersMake) {
  EXPECT_TRUE(CheckCpuState(ResetState(), {}).ok());
  EXPECT_TRUE(CheckCpuState(Flat32State(0x10'0000), {}).ok());
  EXPECT_TRUE(CheckCpuState(Flat64State(0x10'0000, Gpa(0x1000)), {}).ok());
}

struct StateCase {
  const char* name;
  void (*change)(CpuState&);
  const char* says;
};
class CpuStateRefused : public testing::TestWithParam<StateCase> {};

TEST_P(CpuStateRefused, NamesTheRegister) {
  CpuState state = Flat64State(0x10'0000, Gpa(0x1000));
  GetParam().change(state);
  const absl::Status status = CheckCpuState(state, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find(GetParam().says), std::string::npos) << status;
}

INSTANTIATE_TEST_SUITE_P(
    Registers, CpuStateRefused,
    testing::Values(
        StateCase{"PgWithoutPe", [](CpuState& s) { s.cr0 &= ~kCr0Pe; }, "register cr0"},
        StateCase{"Cr0High", [](CpuState& s) { s.cr0 |= 1ull << 32; }, "register cr0"},
        StateCase{"LmaWithoutPg", [](CpuState& s) { s.cr0 &= ~kCr0Pg; }, "register efer"},
        StateCase{"LmaWithoutLme", [](CpuState& s) { s.efer &= ~kEferLme; }, "register efer"},
        StateCase{"EferReserved", [](CpuState& s) { s.efer |= 2; }, "register efer"},
        StateCase{"LmaWithoutPae", [](CpuState& s) { s.cr4 = 0; }, "register cr4"},
        StateCase{"La57", [](CpuState& s) { s.cr4 |= kCr4La57; }, "register cr4"},
        StateCase{"Cr3Wide", [](CpuState& s) { s.cr3 |= 1ull << 46; }, "register cr3"},
        StateCase{"Rip", [](CpuState& s) { s.rip = 1ull << 47; }, "register rip"},
        StateCase{"Rflags", [](CpuState& s) { s.rflags = 0; }, "register rflags"},
        StateCase{"Virtual8086", [](CpuState& s) { s.rflags |= kFlagVm; }, "register rflags"},
        StateCase{"CodeIsData", [](CpuState& s) { s.segments[kCs].attributes = 0xa093; },
                  "cs.attributes"},
        StateCase{"LongAndBig", [](CpuState& s) { s.segments[kCs].attributes |= 0x4000; },
                  "cs.attributes"},
        StateCase{"GsBase", [](CpuState& s) { s.segments[kGs].base = 1ull << 63; }, "gs.base"},
        StateCase{"Dr7", [](CpuState& s) { s.dr7 = 1ull << 40; }, "dr7"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw
