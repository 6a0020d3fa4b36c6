#include <gtest/gtest.h>

#include <cstdint>
#include <string>

import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.core;
import pagesaw.cpu.test_core;

namespace pagesaw::cpu {
namespace {

struct ModeCase {
  const char* name;
  TestCore::Mode mode;
  unsigned cpl;
  std::uint64_t flags;
  std::uint64_t cr0;
  std::uint64_t cr4;
  BankName want;
};

class CoreMode : public testing::TestWithParam<ModeCase> {};

TEST_P(CoreMode, ChoosesTheBank) {
  TestCore test(GetParam().mode);
  if (GetParam().mode != TestCore::Mode::kReal) test.SetCpl(GetParam().cpl);
  Core& core = test.core();
  core.rflags |= GetParam().flags;
  core.cr0 |= GetParam().cr0;
  core.cr4 |= GetParam().cr4;
  core.UpdateMode();
  EXPECT_EQ(core.bank, &core.tlb.bank(GetParam().want));
}

using Mode = TestCore::Mode;
INSTANTIATE_TEST_SUITE_P(
    Banks, CoreMode,
    testing::Values(ModeCase{"Real", Mode::kReal, 0, 0, 0, 0, BankName::kSupervisor},
                    ModeCase{"Kernel", Mode::kLong, 0, 0, 0, kCr4Smap, BankName::kSupervisor},
                    ModeCase{"KernelWithAc", Mode::kLong, 0, kFlagAc, 0, kCr4Smap,
                             BankName::kSupervisorSmapWaived},
                    ModeCase{"KernelWithAcWithoutSmap", Mode::kLong, 0, kFlagAc, 0, 0,
                             BankName::kSupervisor},
                    ModeCase{"User", Mode::kLong, 3, 0, kCr0Am, 0, BankName::kUser},
                    ModeCase{"UserWithAc", Mode::kLong, 3, kFlagAc, 0, 0, BankName::kUser},
                    ModeCase{"UserAligned", Mode::kLong, 3, kFlagAc, kCr0Am, 0, BankName::kChecked},
                    ModeCase{"Virtual8086", Mode::kProtected, 0, kFlagVm, 0, 0, BankName::kUser}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(CoreModeContext, DiffersWhereCodeMeansSomethingElse) {
  TestCore wide(Mode::kLong);
  const std::uint64_t kernel = wide.core().context;
  wide.SetCpl(3);
  EXPECT_NE(wide.core().context, kernel);
  wide.SetCpl(0);
  EXPECT_EQ(wide.core().context, kernel);
  wide.core().FlushTranslations();
  EXPECT_NE(wide.core().context, kernel);
  EXPECT_EQ(wide.core().code_size, CodeSize::k64);
  EXPECT_EQ(TestCore(Mode::kProtected).core().code_size, CodeSize::k32);
  EXPECT_EQ(TestCore(Mode::kReal).core().code_size, CodeSize::k16);
  EXPECT_NE(TestCore(Mode::kReal).core().context, 0u);
}

TEST(CoreAskBus, AsksOnceAndFindsTheAnswerAgain) {
  TestCore test;
  Core& core = test.core();
  BusAccess access{.kind = BusAccess::Kind::kPortIn, .bytes = 1, .address = 0x60};
  EXPECT_FALSE(core.AskBus(access));
  EXPECT_EQ(core.stop, Stop::kExit);
  EXPECT_EQ(core.exit.reason, ExitReason::kBus);
  BusAccess answer = core.exit.bus;
  answer.value = 0x5a;
  ASSERT_TRUE(core.replay.Add(answer));
  core.replay.Rewind();
  EXPECT_TRUE(core.AskBus(access));
  EXPECT_EQ(access.value, 0x5au);
}

TEST(CoreAskBus, RefusalIsGeneralProtection) {
  TestCore test;
  BusAccess access{.kind = BusAccess::Kind::kMsrRead, .bytes = 8, .address = 0x999};
  BusAccess answer = access;
  answer.refused = true;
  ASSERT_TRUE(test.core().replay.Add(answer));
  EXPECT_FALSE(test.core().AskBus(access));
  EXPECT_EQ(test.core().stop, Stop::kException);
  EXPECT_EQ(test.core().exception.vector, kGp);
}

TEST(CoreReplay, AnswersToOtherQuestionsAreForgotten) {
  Replay replay;
  const BusAccess one{.kind = BusAccess::Kind::kPortOut, .bytes = 1, .address = 1, .value = 7};
  BusAccess other = one;
  other.value = 8;
  ASSERT_TRUE(replay.Add(one));
  EXPECT_EQ(replay.Take(other), nullptr);
  EXPECT_TRUE(replay.empty());
  ASSERT_TRUE(replay.Add(other));
  replay.Rewind();
  EXPECT_NE(replay.Take(other), nullptr);
}

// An instruction asks a port; when it starts again its fetch has to be walked for, which asks, too.
TEST(CoreReplay, AnswersToAWalkAreFoundBehindThoseOfTheInstruction) {
  Replay replay;
  const BusAccess port{.kind = BusAccess::Kind::kPortIn, .bytes = 1, .address = 0x60, .value = 7};
  const BusAccess upper{.kind = BusAccess::Kind::kMmioWrite, .address = 0x5000, .value = 1};
  const BusAccess lower{.kind = BusAccess::Kind::kMmioWrite, .address = 0x6000, .value = 1};
  ASSERT_TRUE(replay.Add(port));
  EXPECT_EQ(replay.Take(upper), nullptr);
  ASSERT_TRUE(replay.Add(upper));
  replay.Rewind();
  EXPECT_NE(replay.Take(upper), nullptr);
  EXPECT_EQ(replay.Take(lower), nullptr);
  ASSERT_TRUE(replay.Add(lower));
  for (unsigned times = 0; times < 2; ++times) {
    replay.Rewind();
    EXPECT_NE(replay.Take(upper), nullptr);
    EXPECT_NE(replay.Take(lower), nullptr);
    const BusAccess* answer = replay.Take(port);
    ASSERT_NE(answer, nullptr);
    EXPECT_EQ(answer->value, 7u);
  }
}

TEST(CoreReplay, IsBounded) {
  Replay replay;
  unsigned added = 0;
  while (added < 1000 && replay.Add({})) ++added;
  EXPECT_EQ(added, 160u);
}

}  // namespace
}  // namespace pagesaw::cpu
