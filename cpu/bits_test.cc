#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

// What an instruction is with its feature and without; results in RAX, sources in RCX and RDX.
struct FeatureCase {
  const char* name;
  Bytes code;
  Feature feature;
  std::uint64_t with;
  ExitReason without;  // kHalt: it is another instruction then
  std::uint64_t result_without;
};

class BitsFeature : public testing::TestWithParam<FeatureCase> {
 protected:
  static CpuState RunWith(bool on, ExitReason& reason) {
    CpuModel model;
    model.Set(GetParam().feature, on);
    TestProcessor machine{model};
    CpuState state = machine.processor().GetState();
    state.gpr[kRcx] = 0x0000'00f0;
    state.gpr[kRdx] = 0x0000'0ff1;
    machine.processor().SetState(state);
    Bytes code = GetParam().code;
    code.push_back(0xf4);
    reason = machine.RunCode(code).reason;
    return machine.processor().GetState();
  }
};

TEST_P(BitsFeature, DecidesWhatTheInstructionIs) {
  ExitReason reason = ExitReason::kBudget;
  EXPECT_EQ(RunWith(true, reason).gpr[kRax], GetParam().with);
  EXPECT_EQ(reason, ExitReason::kHalt);
  EXPECT_EQ(RunWith(false, reason).gpr[kRax], GetParam().result_without);
  EXPECT_EQ(reason, GetParam().without);
}

constexpr ExitReason kUndefined = ExitReason::kShutdown;  // #UD, no IDT

INSTANTIATE_TEST_SUITE_P(
    Features, BitsFeature,
    testing::Values(
        FeatureCase{"Lzcnt", {0xf3, 0x0f, 0xbd, 0xc1}, Feature::kLzcnt, 24, ExitReason::kHalt, 7},
        FeatureCase{"Tzcnt", {0xf3, 0x0f, 0xbc, 0xc1}, Feature::kBmi1, 4, ExitReason::kHalt, 4},
        FeatureCase{"Popcnt", {0xf3, 0x0f, 0xb8, 0xc1}, Feature::kPopcnt, 4, kUndefined, 0},
        FeatureCase{"Cmovne", {0x0f, 0x45, 0xc1}, Feature::kCmov, 0xf0, kUndefined, 0},
        FeatureCase{"Andn", {0xc4, 0xe2, 0x70, 0xf2, 0xc2}, Feature::kBmi1, 0xf01, kUndefined, 0},
        FeatureCase{"Pext", {0xc4, 0xe2, 0x6a, 0xf5, 0xc1}, Feature::kBmi2, 0xf, kUndefined, 0},
        FeatureCase{"Adcx", {0x66, 0x0f, 0x38, 0xf6, 0xc1}, Feature::kAdx, 0xf0, kUndefined, 0},
        FeatureCase{
            "Crc32", {0xf2, 0x0f, 0x38, 0xf1, 0xc1}, Feature::kSse42, 0xc747336e, kUndefined, 0}),
    [](const auto& info) { return std::string(info.param.name); });

// A bit offset in a register reaches memory on both sides of the operand.
TEST(BitStrings, ReachBitsFarAway) {
  TestProcessor machine{CpuModel()};
  CpuState state = machine.processor().GetState();
  state.gpr[kRdi] = 0x20000;
  state.gpr[kRax] = static_cast<std::uint64_t>(-1);
  state.gpr[kRcx] = 8 * 0x1000 + 3;
  machine.processor().SetState(state);
  // bts [rdi], rax; bts [rdi], ecx; hlt
  EXPECT_EQ(machine.RunCode(Bytes{0x48, 0x0f, 0xab, 0x07, 0x0f, 0xab, 0x0f, 0xf4}).reason,
            ExitReason::kHalt);
  EXPECT_EQ(machine.Read<std::uint8_t>(0x1ffff), 0x80);
  EXPECT_EQ(machine.Read<std::uint8_t>(0x21000), 0x08);
}

}  // namespace
}  // namespace pagesaw::cpu
