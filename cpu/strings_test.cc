#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

class StringsTest : public testing::Test {
 protected:
  // Runs `code` (which ends in HLT) with RSI, RDI, RCX and RAX set.
  Exit Run(const Bytes& code, std::uint64_t rsi, std::uint64_t rdi, std::uint64_t rcx,
           std::uint64_t rax = 0) {
    CpuState state = machine_.processor().GetState();
    state.gpr[kRsi] = rsi;
    state.gpr[kRdi] = rdi;
    state.gpr[kRcx] = rcx;
    state.gpr[kRax] = rax;
    machine_.processor().SetState(state);
    return machine_.RunCode(code);
  }
  std::uint64_t Gpr(Gpr number) { return machine_.processor().GetState().gpr[number]; }

  TestProcessor machine_{CpuModel()};
};

TEST_F(StringsTest, CopyOverManyPagesIsComplete) {
  for (unsigned i = 0; i < 0x5000; ++i) {
    machine_.memory()[0x20010 + i] = static_cast<std::byte>(i * 7 >> 3);
  }
  EXPECT_EQ(Run({0xf3, 0xa4, 0xf4}, 0x20010, 0x40333, 0x5000).reason, ExitReason::kHalt);
  EXPECT_EQ(std::memcmp(machine_.memory() + 0x20010, machine_.memory() + 0x40333, 0x5000), 0);
  EXPECT_EQ(Gpr(kRcx), 0u);
  EXPECT_EQ(Gpr(kRsi), 0x25010u);
  EXPECT_EQ(Gpr(kRdi), 0x45333u);
}

TEST_F(StringsTest, OverlappingForwardCopyRepeatsThePattern) {
  std::memcpy(machine_.memory() + 0x20000, "abc", 3);
  EXPECT_EQ(Run({0xf3, 0xa4, 0xf4}, 0x20000, 0x20003, 9).reason, ExitReason::kHalt);
  EXPECT_EQ(std::memcmp(machine_.memory() + 0x20000, "abcabcabcabc", 12), 0);
}

TEST_F(StringsTest, FaultInTheMiddleKeepsWhatIsDone) {
  machine_.Spte(0x22000) = 0;
  const Exit exit = Run({0xf3, 0x48, 0xab, 0xf4}, 0, 0x21fe8, 10, 0x1122334455667788);
  ASSERT_EQ(exit.reason, ExitReason::kTableFault);
  EXPECT_EQ(exit.fault.address, InputAddress(0x22000));
  EXPECT_EQ(Gpr(kRcx), 7u);
  EXPECT_EQ(Gpr(kRdi), 0x22000u);
  EXPECT_EQ(machine_.processor().GetState().rip, TestProcessor::kCode);
  machine_.Spte(0x22000) = reinterpret_cast<std::uint64_t>(machine_.memory() + 0x22000) | 0x67;
  EXPECT_EQ(machine_.processor().Run(100).reason, ExitReason::kHalt);
  EXPECT_EQ(machine_.Read<std::uint64_t>(0x22030), 0x1122334455667788u);
  EXPECT_EQ(machine_.Read<std::uint64_t>(0x22038), 0u);
}

TEST_F(StringsTest, LongRepeatPausesAtItsBudget) {
  machine_.Write(TestProcessor::kCode, Bytes{0xf3, 0xae, 0xf4});  // repe scasb
  CpuState state = machine_.processor().GetState();
  state.gpr[kRdi] = 0x20000;
  state.gpr[kRcx] = 1'000'000;
  state.gpr[kRax] = 0;
  machine_.processor().SetState(state);
  EXPECT_EQ(machine_.processor().Run(1000).reason, ExitReason::kBudget);
  EXPECT_EQ(Gpr(kRcx), 999'000u);
  EXPECT_EQ(machine_.processor().GetState().rip, TestProcessor::kCode);
  EXPECT_EQ(machine_.processor().Run(2'000'000).reason, ExitReason::kHalt);
}

TEST_F(StringsTest, EachIterationOnADeviceAsksAnew) {
  machine_.Spte(0x5000) |= std::uint64_t{1} << 51;  // malformed: a device
  Exit exit = Run({0xf3, 0xa5, 0xf4}, 0x5000, 0x20000, 2);
  for (std::uint32_t value : {0x11u, 0x22u}) {
    ASSERT_EQ(exit.reason, ExitReason::kTableFault);
    ASSERT_EQ(exit.fault.bus.kind, BusAccess::Kind::kMmioRead);
    exit.fault.bus.value = value;
    machine_.processor().CompleteBus(exit.fault.bus);
    exit = machine_.processor().Run(100);
  }
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  EXPECT_EQ(machine_.Read<std::uint64_t>(0x20000), 0x22'0000'0011u);
}

TEST_F(StringsTest, CodeThatIsOverwrittenByACopyIsDecodedAgain) {
  // rep movsb over the HLT's neighbour: kCode+2.. becomes mov al, 7; hlt
  machine_.Write(0x20000, Bytes{0xb0, 0x07, 0xf4});
  EXPECT_EQ(Run({0xf3, 0xa4, 0xb0, 0x01, 0xf4}, 0x20000, TestProcessor::kCode + 2, 3).reason,
            ExitReason::kHalt);
  EXPECT_EQ(Gpr(kRax) & 0xff, 7u);
}

}  // namespace
}  // namespace pagesaw::cpu
