// Where x87 errors go: #MF, or with CR0.NE clear to the outside.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.cpu.test_traps;

namespace pagesaw::cpu {
namespace {

using Code = std::vector<std::uint8_t>;

constexpr std::uint64_t kNe = 1u << 5;
constexpr std::uint64_t kOsfxsr = 1u << 9;

CpuModel FullModel() {
  CpuModel model;
  for (unsigned i = 0; i < static_cast<unsigned>(Feature::kCount); ++i) {
    model.Set(static_cast<Feature>(i), true);
  }
  return model;
}

// Division by zero is unmasked and has happened.
CpuState Divided(bool numeric_error) {
  CpuState state = TestProcessor::LongModeState();
  state.cr0 = (state.cr0 & ~kNe) | (numeric_error ? kNe : 0);
  state.cr4 |= kOsfxsr;
  state.extended.fcw = 0x37b;
  state.extended.fsw = 0x8084;
  return state;
}

struct ErrorCase {
  const char* name;
  Code code;
  bool waits;
};
class X87Error : public testing::TestWithParam<ErrorCase> {
 protected:
  X87Error() : test_(FullModel()) { test_.processor().SetState(Divided(false)); }
  TestProcessor test_;
};

TEST_P(X87Error, StopsWhatWaitsForIt) {
  TrapTester tester(FullModel());
  EXPECT_EQ(tester.Run(GetParam().code, Divided(true)),
            GetParam().waits ? kMf : TrapTester::kNoTrap);
}

TEST_P(X87Error, GoesToTheOutsideIfItIsNoException) {
  Code code = GetParam().code;
  code.push_back(0xf4);
  Exit exit = test_.RunCode(code);
  if (!GetParam().waits) {
    EXPECT_EQ(exit.reason, ExitReason::kHalt);
    EXPECT_EQ(test_.processor().GetState().rip, TestProcessor::kCode + code.size());
    return;
  }
  ASSERT_EQ(exit.reason, ExitReason::kBus);
  EXPECT_EQ(exit.bus.kind, BusAccess::Kind::kX87Error);
  EXPECT_EQ(exit.bus.address, 1u);
  test_.processor().CompleteBus(exit.bus);  // not to be ignored
  exit = test_.processor().Run(100);
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  EXPECT_EQ(test_.processor().GetState().rip, TestProcessor::kCode);
}

TEST_P(X87Error, IsIgnoredIfTheOutsideSaysSo) {
  Code code = GetParam().code;
  code.push_back(0xf4);
  Exit exit = test_.RunCode(code);
  if (exit.reason == ExitReason::kBus) {
    exit.bus.value = 1;
    test_.processor().CompleteBus(exit.bus);
    exit = test_.processor().Run(100);
  }
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  const CpuState state = test_.processor().GetState();
  EXPECT_EQ(state.rip, TestProcessor::kCode + code.size());
  // What is ignored is there still, unless the instruction clears or masks it.
  const bool clears = code[0] == 0xdb;
  EXPECT_EQ(state.extended.fsw & 4, clears ? 0 : 4);
}

INSTANTIATE_TEST_SUITE_P(Instructions, X87Error,
                         testing::Values(ErrorCase{"Wait", {0x9b}, true},
                                         ErrorCase{"Fld1", {0xd9, 0xe8}, true},
                                         ErrorCase{"Fldcw", {0xd9, 0x2c, 0x24}, true},
                                         ErrorCase{"Paddb", {0x0f, 0xfc, 0xc1}, true},
                                         ErrorCase{"Emms", {0x0f, 0x77}, true},
                                         ErrorCase{"Fnclex", {0xdb, 0xe2}, false},
                                         ErrorCase{"Fninit", {0xdb, 0xe3}, false},
                                         ErrorCase{"Fnstsw", {0xdf, 0xe0}, false},
                                         ErrorCase{"Fnstcw", {0xd9, 0x3c, 0x24}, false},
                                         ErrorCase{"Addps", {0x0f, 0x58, 0xc1}, false}),
                         [](const auto& info) { return std::string(info.param.name); });

// WAIT, twice; FNCLEX; 1/0; WAIT.
TEST(X87ErrorLine, TellsNewErrorsFromThoseThatAreStillThere) {
  TestProcessor test(FullModel());
  test.processor().SetState(Divided(false));
  const Code code = {0x9b, 0x9b, 0xdb, 0xe2, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b, 0xf4};
  std::vector<std::uint64_t> seen;
  Exit exit = test.RunCode(code);
  while (exit.reason == ExitReason::kBus) {
    seen.push_back(exit.bus.address);
    exit.bus.value = 1;
    test.processor().CompleteBus(exit.bus);
    exit = test.processor().Run(100);
  }
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  EXPECT_EQ(seen, (std::vector<std::uint64_t>{1, 0, 1}));
}

// The interrupt that FERR# becomes finds the instruction not done.
TEST(X87ErrorLine, AnInterruptReturnsToTheInstruction) {
  TrapTester tester(FullModel());
  EXPECT_EQ(tester.Run(Code{0x9b}, Divided(false)), TrapTester::kNoTrap);
  SoftwareProcessor& processor = tester.test().processor();
  processor.CompleteBus({.kind = BusAccess::Kind::kX87Error, .bytes = 1, .address = 1});
  ASSERT_EQ(processor.Run(100).reason, ExitReason::kHalt);
  processor.Inject({.kind = Event::Kind::kExternalInterrupt, .vector = 0x1d});
  ASSERT_EQ(processor.Run(100).reason, ExitReason::kHalt);
  const std::uint64_t stack = processor.GetState().gpr[kRsp];
  EXPECT_EQ(tester.test().Read<std::uint64_t>(stack), TestProcessor::kCode);
}

}  // namespace
}  // namespace pagesaw::cpu
