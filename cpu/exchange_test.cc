#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

struct LockedCase {
  const char* name;
  Bytes code;  // on [rdi], once
};

class LockedForms : public testing::TestWithParam<LockedCase> {};

// The host adds, too, so that an update that is not atomic is lost.
TEST_P(LockedForms, LoseNoUpdateOfAnotherThread) {
  constexpr std::uint64_t kCounter = 0x20000, kTimes = 200'000;
  TestProcessor machine{CpuModel()};
  CpuState state = machine.processor().GetState();
  state.gpr[kRdi] = kCounter;
  state.gpr[kRcx] = kTimes;
  state.gpr[kRdx] = 1;
  machine.processor().SetState(state);
  // again: the instruction; mov edx, 1; dec ecx; jnz again; hlt
  Bytes code = GetParam().code;
  const auto back = static_cast<std::uint8_t>(0x100 - (code.size() + 9));
  code.insert(code.end(), {0xba, 1, 0, 0, 0, 0xff, 0xc9, 0x75, back, 0xf4});
  auto* const counter = reinterpret_cast<std::uint64_t*>(machine.memory() + kCounter);
  std::thread other([counter] {
    for (std::uint64_t i = 0; i < kTimes; ++i) {
      __atomic_fetch_add(counter, std::uint64_t{1} << 32, __ATOMIC_RELAXED);
    }
  });
  while (machine.RunCode(code).reason != ExitReason::kHalt) {
  }
  other.join();
  EXPECT_EQ(*counter, kTimes << 32 | kTimes);
}

INSTANTIATE_TEST_SUITE_P(Instructions, LockedForms,
                         testing::Values(LockedCase{"Add", {0xf0, 0x48, 0x01, 0x17}},
                                         LockedCase{"Inc", {0xf0, 0x48, 0xff, 0x07}},
                                         LockedCase{"Xadd", {0xf0, 0x48, 0x0f, 0xc1, 0x17}},
                                         LockedCase{"Adc",
                                                    {0xf8, 0xf0, 0x48, 0x11, 0x17}}),  // clc first
                         [](const auto& info) { return std::string(info.param.name); });

class ExchangeTest : public testing::Test {
 protected:
  static CpuModel Model() {
    CpuModel model;
    model.Set(Feature::kCx16, true);
    return model;
  }
  Exit Run(const Bytes& code, std::array<std::uint64_t, 16> gpr) {
    CpuState state = machine_.processor().GetState();
    gpr[kRsp] = TestProcessor::kStackTop;
    state.gpr = gpr;
    machine_.processor().SetState(state);
    return machine_.RunCode(code);
  }
  CpuState State() { return machine_.processor().GetState(); }
  TestProcessor machine_{Model()};
};

TEST_F(ExchangeTest, Cmpxchg16bReplacesWhatItExpects) {
  machine_.Write(0x20000, Bytes{1, 0, 0, 0, 0, 0, 0, 0, 2});
  const Bytes code = {0xf0, 0x48, 0x0f, 0xc7, 0x0f, 0xf4};
  EXPECT_EQ(Run(code, {1, 0x44, 2, 0x33, 0, 0, 0, 0x20000}).reason, ExitReason::kHalt);
  EXPECT_EQ(machine_.Read<std::uint64_t>(0x20000), 0x33u);
  EXPECT_EQ(machine_.Read<std::uint64_t>(0x20008), 0x44u);
  EXPECT_NE(State().rflags & kFlagZf, 0u);
  EXPECT_EQ(Run(code, {1, 0x55, 2, 0x66, 0, 0, 0, 0x20000}).reason, ExitReason::kHalt);
  EXPECT_EQ(State().gpr[kRax], 0x33u);
  EXPECT_EQ(State().gpr[kRdx], 0x44u);
  EXPECT_EQ(State().rflags & kFlagZf, 0u);
}

TEST_F(ExchangeTest, Cmpxchg16bMustBeAligned) {
  EXPECT_EQ(Run({0x48, 0x0f, 0xc7, 0x0f, 0xf4}, {0, 0, 0, 0, 0, 0, 0, 0x20008}).reason,
            ExitReason::kShutdown);  // #GP, no IDT
}

TEST_F(ExchangeTest, LockOfARegisterIsUndefined) {
  EXPECT_EQ(Run({0xf0, 0x01, 0xc0, 0xf4}, {}).reason, ExitReason::kShutdown);  // #UD, no IDT
}

TEST_F(ExchangeTest, LockedAddOverTheEndOfAPageAddsToBoth) {
  machine_.Write(0x20ffc, Bytes{0xff, 0xff, 0xff, 0xff});
  EXPECT_EQ(Run({0xf0, 0x48, 0x83, 0x07, 0x01, 0xf4}, {0, 0, 0, 0, 0, 0, 0, 0x20ffc}).reason,
            ExitReason::kHalt);
  EXPECT_EQ(machine_.Read<std::uint64_t>(0x20ffc), 0x1'0000'0000u);
}

TEST_F(ExchangeTest, ExchangeWithADeviceReadsThenWrites) {
  machine_.Spte(0x5000) |= std::uint64_t{1} << 51;  // malformed: a device
  Exit exit = Run({0x87, 0x07, 0xf4}, {0x77, 0, 0, 0, 0, 0, 0, 0x5000});
  ASSERT_EQ(exit.fault.bus.kind, BusAccess::Kind::kMmioRead);
  exit.fault.bus.value = 0x88;
  machine_.processor().CompleteBus(exit.fault.bus);
  exit = machine_.processor().Run(100);
  ASSERT_EQ(exit.fault.bus.kind, BusAccess::Kind::kMmioWrite);
  EXPECT_EQ(exit.fault.bus.value, 0x77u);
  EXPECT_EQ(exit.fault.bus.bytes, 4);
  machine_.processor().CompleteBus(exit.fault.bus);
  EXPECT_EQ(machine_.processor().Run(100).reason, ExitReason::kHalt);
  EXPECT_EQ(State().gpr[kRax], 0x88u);
}

}  // namespace
}  // namespace pagesaw::cpu
