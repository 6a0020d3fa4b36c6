#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

// A kernel in 32-bit protected mode; SP, BP and the like as the case says.
CpuState ProtectedState() {
  CpuState state = TestProcessor::LongModeState();
  state.efer = 0;
  state.cr4 = 0;
  state.cr0 = kCr0Pe;
  state.segments[kCs].attributes = 0xc09b;
  return state;
}

struct LegacyCase {
  const char* name;
  Bytes code;  // HLT follows
  std::uint64_t eax;
  std::uint64_t flags;
  std::uint64_t want_eax;
  std::uint64_t want_flags;  // of `flags_mask`
  std::uint64_t flags_mask;
};

class LegacyDecimal : public testing::TestWithParam<LegacyCase> {};

TEST_P(LegacyDecimal, GivesTheManualsResult) {
  const LegacyCase& given = GetParam();
  TestProcessor machine{CpuModel()};
  CpuState state = ProtectedState();
  state.gpr[kRax] = given.eax;
  state.rflags |= given.flags;
  machine.processor().SetState(state);
  Bytes code = given.code;
  code.push_back(0xf4);
  ASSERT_EQ(machine.RunCode(code).reason, ExitReason::kHalt);
  state = machine.processor().GetState();
  EXPECT_EQ(state.gpr[kRax], given.want_eax);
  EXPECT_EQ(state.rflags & given.flags_mask, given.want_flags);
}

constexpr std::uint64_t kCfAf = kFlagCf | kFlagAf;

// [intel/vol2] "DAA", "DAS", with their examples, and their neighbours
INSTANTIATE_TEST_SUITE_P(
    Cases, LegacyDecimal,
    testing::Values(LegacyCase{"DaaOfTheManual", {0x27}, 0xae, kFlagSf, 0x14, kCfAf, kCfAf},
                    LegacyCase{"DaaAfterHalfCarry", {0x27}, 0x11, kFlagAf, 0x17, kFlagAf, kCfAf},
                    LegacyCase{"DasOfTheManual", {0x2f}, 0xee, kFlagAf, 0x88, kCfAf, kCfAf},
                    LegacyCase{"DasWithBorrow", {0x2f}, 0x03, kFlagAf, 0xfd, kCfAf, kCfAf},
                    LegacyCase{"AaaCarries", {0x37}, 0x010b, 0, 0x0201, kCfAf, kCfAf},
                    LegacyCase{"AaaLeavesADigit", {0x37}, 0x0109, 0, 0x0109, 0, kCfAf},
                    LegacyCase{"AasBorrows", {0x3f}, 0x02ff, 0, 0x0109, kCfAf, kCfAf},
                    LegacyCase{"AamSplits", {0xd4, 0x0a}, 0x1257, 0, 0x0807, 0, kFlagZf},
                    LegacyCase{"AadJoins", {0xd5, 0x0a}, 0x0807, 0, 0x57, 0, kFlagZf},
                    LegacyCase{"SalcOfCarry", {0xd6}, 0x1234, kFlagCf, 0x12ff, kFlagCf, kFlagCf}),
    [](const auto& info) { return std::string(info.param.name); });

class Legacy : public testing::Test {
 protected:
  Legacy() { machine_.processor().SetState(ProtectedState()); }
  Exit Run(const Bytes& code) { return machine_.RunCode(code); }
  CpuState State() { return machine_.processor().GetState(); }
  TestProcessor machine_{CpuModel()};
};

TEST_F(Legacy, PushaAndPopaRestoreAllButTheStackPointer) {
  CpuState state = State();
  for (unsigned i = 0; i < 8; ++i) state.gpr[i] = i == kRsp ? 0x8000 : 0x1111 * (i + 1);
  machine_.processor().SetState(state);
  // pusha; xor eax,eax; xor edi,edi; popa; hlt
  EXPECT_EQ(Run({0x60, 0x31, 0xc0, 0x31, 0xff, 0x61, 0xf4}).reason, ExitReason::kHalt);
  EXPECT_EQ(State().gpr, state.gpr);
  EXPECT_EQ(machine_.Read<std::uint32_t>(0x8000 - 4), 0x1111u);
  EXPECT_EQ(machine_.Read<std::uint32_t>(0x8000 - 20), 0x8000u);
  EXPECT_EQ(machine_.Read<std::uint32_t>(0x8000 - 32), 0x8888u);
}

TEST_F(Legacy, PushaThatFaultsHasDoneNothing) {
  machine_.Spte(0x7000) = 0;
  CpuState state = State();
  state.gpr[kRsp] = 0x8010;
  machine_.processor().SetState(state);
  EXPECT_EQ(Run({0x60, 0xf4}).reason, ExitReason::kTableFault);
  EXPECT_EQ(State().gpr[kRsp], 0x8010u);
  EXPECT_EQ(machine_.Read<std::uint32_t>(0x8000), 0u);
}

TEST_F(Legacy, NestedEnterCopiesFramePointers) {
  CpuState state = State();
  state.gpr[kRbp] = 0x6000;
  machine_.processor().SetState(state);
  machine_.Write(0x5ff8, Bytes{0x22, 0, 0, 0, 0x11, 0, 0, 0});
  EXPECT_EQ(Run({0xc8, 0x20, 0x00, 0x03, 0xf4}).reason, ExitReason::kHalt);
  EXPECT_EQ(machine_.Read<std::uint32_t>(0x7ffc), 0x6000u);
  EXPECT_EQ(machine_.Read<std::uint32_t>(0x7ff8), 0x11u);
  EXPECT_EQ(machine_.Read<std::uint32_t>(0x7ff4), 0x22u);
  EXPECT_EQ(machine_.Read<std::uint32_t>(0x7ff0), 0x7ffcu);
  EXPECT_EQ(State().gpr[kRbp], 0x7ffcu);
  EXPECT_EQ(State().gpr[kRsp], 0x7ff0u - 0x20);
}

TEST_F(Legacy, LoopCountsByAddressSize) {
  CpuState state = State();
  state.gpr[kRcx] = 0x10003;
  state.gpr[kRax] = 0;
  machine_.processor().SetState(state);
  // again: inc eax; loop (16-bit counter) again; hlt
  EXPECT_EQ(Run({0x40, 0x67, 0xe2, 0xfc, 0xf4}).reason, ExitReason::kHalt);
  EXPECT_EQ(State().gpr[kRax], 3u);
  EXPECT_EQ(State().gpr[kRcx], 0x10000u);
}

TEST_F(Legacy, BoundAcceptsAnIndexWithin) {
  machine_.Write(0x20000, Bytes{0xfe, 0xff, 0xff, 0xff, 5, 0, 0, 0});
  CpuState state = State();
  state.gpr[kRax] = 0xffff'ffff;  // -1
  state.gpr[kRbx] = 0x20000;
  machine_.processor().SetState(state);
  EXPECT_EQ(Run({0x62, 0x03, 0xf4}).reason, ExitReason::kHalt);
}

TEST_F(Legacy, BoundFaultsOutside) {
  CpuState state = State();
  state.gpr[kRax] = 1;
  state.gpr[kRbx] = 0x20000;  // bounds 0 and 0
  state.idtr.limit = 0;
  machine_.processor().SetState(state);
  EXPECT_EQ(Run({0x62, 0x03, 0xf4}).reason, ExitReason::kShutdown);  // #BR, no IDT
}

}  // namespace
}  // namespace pagesaw::cpu
