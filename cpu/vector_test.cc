#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kEm = 1 << 2, kTs = 1 << 3, kMp = 1 << 1, kNe = 1 << 5;
constexpr std::uint64_t kOsfxsr = 1 << 9, kOsxmmexcpt = 1 << 10, kOsxsave = 1 << 18;
constexpr std::uint64_t kData = 0x4000, kIdt = 0x5000, kGdt = 0x6000, kHandlers = 0x7000;

CpuModel FullModel() {
  CpuModel model;
  for (unsigned i = 0; i < static_cast<unsigned>(Feature::kCount); ++i) {
    model.Set(static_cast<Feature>(i), true);
  }
  return model;
}

// Every exception leads to HLT at kHandlers + 16 * vector.
class Machine {
 public:
  explicit Machine(const CpuModel& model = FullModel()) : machine_(model) {
    state = TestProcessor::LongModeState();
    state.cr4 |= kOsfxsr | kOsxmmexcpt | kOsxsave;
    state.xcr0 = 7;
    state.idtr = {.base = kIdt, .limit = 0x1ff};
    state.gdtr = {.base = kGdt, .limit = 0x1f};
    state.gpr[kRbx] = kData;
    for (std::uint64_t vector = 0; vector < 32; ++vector) {
      const std::uint64_t handler = kHandlers + 16 * vector;
      Put(handler, 0xf4);
      Put(kIdt + 16 * vector, handler | std::uint64_t{8} << 16 | std::uint64_t{0x8e00} << 32);
    }
    Put(kGdt + 8, 0x00af'9b00'0000'ffff);
    Put(kGdt + 16, 0x00cf'9300'0000'ffff);
  }

  void Put(std::uint64_t linear, std::uint64_t value) {
    std::memcpy(machine_.memory() + linear, &value, 8);
  }
  std::uint64_t Get(std::uint64_t linear) const { return machine_.Read<std::uint64_t>(linear); }

  // Runs `code` from `state`, and HLT behind it; the vector that it raised, or -1.
  int Run(std::vector<std::uint8_t> code) {
    code.push_back(0xf4);
    machine_.processor().SetState(state);
    machine_.RunCode(code);
    state = machine_.processor().GetState();
    if (state.rip < kHandlers || state.rip >= kHandlers + 512) return -1;
    return static_cast<int>((state.rip - kHandlers) / 16);
  }

  CpuState state;

 private:
  TestProcessor machine_;
};

struct FaultCase {
  const char* name;
  std::vector<std::uint8_t> code;
  std::uint64_t cr0_set;
  std::uint64_t cr4_clear;
  int vector;
};
class Faults : public testing::TestWithParam<FaultCase> {};
TEST_P(Faults, AreThoseOfTheManual) {
  Machine machine;
  machine.state.cr0 |= GetParam().cr0_set;
  machine.state.cr4 &= ~GetParam().cr4_clear;
  EXPECT_EQ(machine.Run(GetParam().code), GetParam().vector);
}

const std::vector<std::uint8_t> kAddps = {0x0f, 0x58, 0xc1}, kVaddps = {0xc5, 0xf0, 0x58, 0xc2},
                                kPaddb = {0x0f, 0xfc, 0xc1}, kFld1 = {0xd9, 0xe8};
INSTANTIATE_TEST_SUITE_P(
    Instructions, Faults,
    testing::Values(
        FaultCase{"Sse", kAddps, 0, 0, -1}, FaultCase{"SseEmulated", kAddps, kEm, 0, 6},
        FaultCase{"SseSwitchedOff", kAddps, 0, kOsfxsr, 6},
        FaultCase{"SseOfAnotherTask", kAddps, kTs, 0, 7},
        FaultCase{"SseOffBeforeTask", kAddps, kTs, kOsfxsr, 6}, FaultCase{"Avx", kVaddps, 0, 0, -1},
        FaultCase{"AvxIgnoresEmulation", kVaddps, kEm, 0, -1},
        FaultCase{"AvxSwitchedOff", kVaddps, 0, kOsxsave, 6},
        FaultCase{"AvxOfAnotherTask", kVaddps, kTs, 0, 7}, FaultCase{"Mmx", kPaddb, 0, kOsfxsr, -1},
        FaultCase{"MmxEmulated", kPaddb, kEm, 0, 6},
        FaultCase{"MmxOfAnotherTask", kPaddb, kTs, 0, 7}, FaultCase{"X87", kFld1, 0, 0, -1},
        FaultCase{"X87Emulated", kFld1, kEm, 0, 7}, FaultCase{"X87OfAnotherTask", kFld1, kTs, 0, 7},
        FaultCase{"WaitOfAnotherTask", {0x9b}, kTs | kMp, 0, 7},
        FaultCase{"WaitUnmonitored", {0x9b}, kTs, 0, -1},
        FaultCase{"Aligned", {0x0f, 0x28, 0x03}, 0, 0, -1},
        FaultCase{"Misaligned", {0x0f, 0x28, 0x43, 0x08}, 0, 0, 13},
        FaultCase{"MisalignedArithmetic", {0x0f, 0x58, 0x43, 0x08}, 0, 0, 13},
        FaultCase{"Unaligned", {0x0f, 0x10, 0x43, 0x08}, 0, 0, -1},
        FaultCase{"UnalignedAvx", {0xc5, 0xf0, 0x58, 0x43, 0x08}, 0, 0, -1},
        FaultCase{"MisalignedFxsave", {0x0f, 0xae, 0x43, 0x08}, 0, 0, 13},
        FaultCase{"MisalignedXsave", {0x0f, 0xae, 0x63, 0x10}, 0, 0, 13},
        FaultCase{"XsaveSwitchedOff", {0x0f, 0xae, 0x23}, 0, kOsxsave, 6}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Vectors, WithoutTheFeatureAreUndefined) {
  CpuModel model = FullModel();
  model.Set(Feature::kAvx, false);
  Machine machine(model);
  EXPECT_EQ(machine.Run(kVaddps), 6);
}

TEST(Vectors, UnmaskedExceptionChangesFlagsOnly) {
  Machine machine;
  machine.state.extended.mxcsr = 0x1f80 & ~0x200u;  // division by zero unmasked
  machine.state.extended.xmm[0] = {0x3f80'0000, 7};
  machine.state.extended.xmm[1] = {0, 0};
  const std::vector<std::uint8_t> divss = {0xf3, 0x0f, 0x5e, 0xc1};
  EXPECT_EQ(machine.Run(divss), 19);
  EXPECT_EQ(machine.state.extended.mxcsr & 0x3f, 4u);
  EXPECT_EQ(machine.state.extended.xmm[0], (ExtendedState::Vector{0x3f80'0000, 7}));
  machine.state.cr4 &= ~kOsxmmexcpt;
  EXPECT_EQ(machine.Run(divss), 6);
}

TEST(Vectors, OldEncodingsKeepTheUpperHalf) {
  Machine machine;
  machine.state.extended.ymm_high[0] = {5, 6};
  ASSERT_EQ(machine.Run(kAddps), -1);
  EXPECT_EQ(machine.state.extended.ymm_high[0], (ExtendedState::Vector{5, 6}));
  ASSERT_EQ(machine.Run(kVaddps), -1);
  EXPECT_EQ(machine.state.extended.ymm_high[0], (ExtendedState::Vector{0, 0}));
}

TEST(X87, UnmaskedExceptionWaitsForTheNextInstruction) {
  Machine machine;
  machine.state.extended.fcw = 0x37b;  // division by zero unmasked
  // FLD1; FLDZ; FDIVP leaves it pending; FNSTSW does not wait, FLD1 does.
  const std::vector<std::uint8_t> divide = {0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xdf, 0xe0};
  ASSERT_EQ(machine.Run(divide), -1);
  EXPECT_EQ(machine.state.gpr[kRax] & 0x8084, 0x8084u);
  machine.state.cr0 |= kNe;
  EXPECT_EQ(machine.Run(kFld1), 16);
}

TEST(X87, MmxEntersAndEmmsLeaves) {
  Machine machine;
  machine.state.extended.fsw = 3 << 11;
  ASSERT_EQ(machine.Run(kPaddb), -1);
  EXPECT_EQ(machine.state.extended.top(), 0u);
  EXPECT_EQ(machine.state.extended.ftw, 0xff);
  EXPECT_EQ(machine.state.extended.st[0].sign_exponent, 0xffff);
  ASSERT_EQ(machine.Run({0x0f, 0x77}), -1);
  EXPECT_EQ(machine.state.extended.ftw, 0);
}

TEST(Xsave, CompactedAreaRestoresWhatItSaved) {
  Machine machine;
  machine.state.extended.xmm[3] = {1, 2};
  machine.state.extended.ymm_high[3] = {3, 4};
  machine.state.gpr[kRax] = 7;
  machine.state.gpr[kRdx] = 0;
  ASSERT_EQ(machine.Run({0x0f, 0xc7, 0x23}), -1);  // XSAVEC
  EXPECT_EQ(machine.Get(kData + 512), 6u);         // the x87 unit is as FNINIT leaves it
  EXPECT_EQ(machine.Get(kData + 520), 0x8000'0000'0000'0007u);
  machine.state.extended.xmm[3] = machine.state.extended.ymm_high[3] = {};
  ASSERT_EQ(machine.Run({0x0f, 0xae, 0x2b}), -1);  // XRSTOR
  EXPECT_EQ(machine.state.extended.xmm[3], (ExtendedState::Vector{1, 2}));
  EXPECT_EQ(machine.state.extended.ymm_high[3], (ExtendedState::Vector{3, 4}));
}

TEST(Xsave, RestoreRefusesReservedBits) {
  Machine machine;
  machine.state.gpr[kRax] = 7;
  machine.Put(kData + 512, 8);  // XSTATE_BV: a component that is not enabled
  EXPECT_EQ(machine.Run({0x0f, 0xae, 0x2b}), 13);
  machine.Put(kData + 512, 3);
  machine.Put(kData + 24, 0x1'0000);  // MXCSR
  EXPECT_EQ(machine.Run({0x0f, 0xae, 0x2b}), 13);
}

}  // namespace
}  // namespace pagesaw::cpu
