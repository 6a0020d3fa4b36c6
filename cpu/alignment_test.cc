// What alignment checking minds at CPL 3. [intel/vol3] "Alignment Check Exception (#AC)"
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

import pagesaw.cpu.control_bits;
import pagesaw.cpu.test_processor;
import pagesaw.cpu.test_vendor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint64_t kIdt = 0x20000, kGdt = 0x21000, kChecked = 0x22000, kOther = 0x23000;
constexpr std::uint64_t kData = 0x30000, kInnerStack = 0x40000;

// Runs `code` at CPL 3 with RBX `offset` bytes into a page. True if it ended in #AC.
bool IsRefused(Bytes code, std::uint64_t offset, bool checking) {
  TestProcessor machine(ModelOf(Vendor::kIntel));
  for (unsigned vector = 0; vector < 32; ++vector) {
    const std::uint64_t entry = vector == 17 ? kChecked : kOther;
    const std::uint64_t gate = (entry & 0xffff) | 0x8e00'0008'0000 | (entry >> 16) << 48;
    __builtin_memcpy(machine.memory() + kIdt + vector * 16, &gate, 8);
  }
  machine.Write(kGdt + 8, Bytes{0xff, 0xff, 0, 0, 0, 0x9b, 0xaf, 0});
  machine.Write(kChecked, Bytes{0xf4});
  machine.Write(kOther, Bytes{0xf4});
  __builtin_memcpy(machine.memory() + 4, &kInnerStack, 8);  // RSP0 of the TSS at 0
  CpuState state = TestProcessor::LongModeState();
  state.cr0 |= kCr0Am;
  state.cr4 |= kCr4Osfxsr;
  state.idtr = {.base = kIdt, .limit = 0x1ff};
  state.gdtr = {.base = kGdt, .limit = 0xf};
  for (const SegmentName name : {kEs, kCs, kSs, kDs}) state.segments[name].attributes |= 0x60;
  if (checking) state.rflags |= kFlagAc;
  state.gpr[kRbx] = kData + offset;
  machine.processor().SetState(state);
  code.push_back(0xf4);  // #GP at CPL 3
  machine.RunCode(code);
  const std::uint64_t end = machine.processor().GetState().rip;
  EXPECT_TRUE(end == kChecked + 1 || end == kOther + 1) << end;
  return end == kChecked + 1;
}

struct AlignmentCase {
  const char* name;
  Bytes code;               // accesses [rbx]
  std::uint64_t aligned;    // the least offset but 0 that is not minded
  std::uint64_t first = 0;  // and the first
};
class Alignment : public testing::TestWithParam<AlignmentCase> {};
TEST_P(Alignment, IsCheckedByTheSizeOfTheData) {
  for (std::uint64_t offset = 0; offset < 16; ++offset) {
    const bool misaligned = offset % GetParam().aligned != GetParam().first;
    EXPECT_EQ(IsRefused(GetParam().code, offset, true), misaligned) << offset;
    EXPECT_FALSE(IsRefused(GetParam().code, offset, false)) << offset;
  }
}
INSTANTIATE_TEST_SUITE_P(Instructions, Alignment,
                         testing::Values(AlignmentCase{"Byte", {0x8a, 0x03}, 1},
                                         AlignmentCase{"Word", {0x66, 0x8b, 0x03}, 2},
                                         AlignmentCase{"Doubleword", {0x8b, 0x03}, 4},
                                         AlignmentCase{"Quadword", {0x48, 0x89, 0x03}, 8},
                                         AlignmentCase{"ReadModifyWrite", {0x01, 0x03}, 4},
                                         AlignmentCase{"Exchange", {0x87, 0x03}, 4},
                                         AlignmentCase{"SinglePrecision", {0xd9, 0x03}, 4},
                                         AlignmentCase{"DoublePrecision", {0xdd, 0x03}, 8},
                                         AlignmentCase{"ExtendedPrecision", {0xdb, 0x2b}, 8},
                                         AlignmentCase{
                                             "ExtendedPrecisionStore", {0xd9, 0xe8, 0xdb, 0x3b}, 8},
                                         AlignmentCase{"Environment", {0xd9, 0x33}, 4},
                                         AlignmentCase{"State", {0xdd, 0x33}, 4},
                                         AlignmentCase{"StateOf16Bits", {0x66, 0xdd, 0x33}, 2},
                                         AlignmentCase{"DescriptorTable", {0x0f, 0x01, 0x03}, 4, 2},
                                         AlignmentCase{"ScalarSse", {0xf3, 0x0f, 0x10, 0x03}, 4},
                                         AlignmentCase{"ControlStatus", {0x0f, 0xae, 0x1b}, 4},
                                         AlignmentCase{"BitTest", {0x0f, 0xba, 0x23, 1}, 4},
                                         AlignmentCase{"Selector", {0x8c, 0x1b}, 2},
                                         AlignmentCase{"Push", {0x48, 0x89, 0xdc, 0x50}, 8}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(AlignmentChecks, AreOfPrograms) {
  // MOV to [RBX] misaligned at CPL 0: LongModeState is a kernel's.
  TestProcessor machine(ModelOf(Vendor::kIntel));
  CpuState state = TestProcessor::LongModeState();
  state.cr0 |= kCr0Am;
  state.rflags |= kFlagAc;
  state.gpr[kRbx] = kData + 1;
  machine.processor().SetState(state);
  EXPECT_EQ(machine.RunCode(Bytes{0x48, 0x89, 0x03, 0xf4}).reason, ExitReason::kHalt);
}

}  // namespace
}  // namespace pagesaw::cpu
