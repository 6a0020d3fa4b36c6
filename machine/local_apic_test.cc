#include <gtest/gtest.h>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

import pagesaw.core.address;
import pagesaw.machine.apic_bus;
import pagesaw.machine.apic_registers;
import pagesaw.machine.clock;
import pagesaw.machine.local_apic;
import pagesaw.machine.test_support;

namespace pagesaw {
namespace {

using namespace apic;

// Three APICs on one bus; `apic_` is the bootstrap processor's.
class LocalApicTest : public testing::Test {
 protected:
  LocalApicTest() {
    bus_.Attach(apic_);
    bus_.Attach(second_);
    bus_.Attach(third_);
    for (LocalApic* apic : {&apic_, &second_, &third_}) apic->WriteMmio(kSpurious, 0x1ff);
  }
  void SendIpi(std::uint32_t low, std::uint32_t destination = 0) {
    apic_.WriteMmio(kIcrHigh, destination << 24);
    apic_.WriteMmio(kIcrLow, low);
  }
  static LocalApicOptions Options(std::uint32_t id) { return {.id = id, .bootstrap = id == 0}; }

  FakeClock clock_;
  ApicBus bus_;
  int wakes_ = 0;
  LocalApic apic_{Options(0), clock_, bus_, [this] { ++wakes_; }};
  LocalApic second_{Options(1), clock_, bus_, [] {}};
  LocalApic third_{Options(2), clock_, bus_, [] {}};
};

TEST_F(LocalApicTest, HasResetValues) {
  apic_.Reset();
  EXPECT_EQ(apic_.base(), 0xfee0'0900u);
  EXPECT_EQ(second_.base(), 0xfee0'0800u);
  EXPECT_EQ(second_.ReadMmio(kId), 1u << 24);
  EXPECT_EQ(apic_.ReadMmio(kVersion), 0x0105'0014u);
  EXPECT_EQ(apic_.ReadMmio(kSpurious), 0xffu);
  EXPECT_EQ(apic_.ReadMmio(kDfr), 0xffff'ffffu);
  EXPECT_EQ(apic_.ReadMmio(kLvtTimer), kLvtMasked);
  EXPECT_TRUE(apic_.AcceptsExternal());
  EXPECT_FALSE(second_.AcceptsExternal());
}

TEST_F(LocalApicTest, DisablingAndEnablingLeavesRegistersAtReset) {
  apic_.WriteMmio(kTpr, 0x50);
  EXPECT_TRUE(apic_.WriteBase(0xfee0'0000));
  EXPECT_FALSE(apic_.ClaimsMmio(Gpa(0xfee0'0000)));
  EXPECT_TRUE(apic_.WriteBase(0xfee0'0800));
  EXPECT_EQ(apic_.base(), 0xfee0'0900u);
  EXPECT_TRUE(apic_.ClaimsMmio(Gpa(0xfee0'0ff0)));
  EXPECT_EQ(apic_.ReadMmio(kTpr), 0u);
  EXPECT_EQ(apic_.ReadMmio(kSpurious), 0xffu);
}

struct BaseCase {
  const char* name;
  std::uint64_t from, to;
  bool want;
};
class LocalApicBase : public testing::TestWithParam<BaseCase> {};

TEST_P(LocalApicBase, ChangesModeByTheRules) {
  FakeClock clock;
  ApicBus bus;
  LocalApic apic({}, clock, bus, [] {});
  if (GetParam().from == 0xfee0'0c00) ASSERT_TRUE(apic.WriteBase(0xfee0'0c00));
  if (GetParam().from == 0xfee0'0000) ASSERT_TRUE(apic.WriteBase(0xfee0'0000));
  EXPECT_EQ(apic.WriteBase(GetParam().to), GetParam().want);
}

INSTANTIATE_TEST_SUITE_P(
    Transitions, LocalApicBase,
    testing::Values(BaseCase{"XapicToX2apic", 0xfee0'0800, 0xfee0'0c00, true},
                    BaseCase{"XapicToOff", 0xfee0'0800, 0xfee0'0000, true},
                    BaseCase{"XapicMoved", 0xfee0'0800, 0xfed0'0800, true},
                    BaseCase{"XapicToInvalid", 0xfee0'0800, 0xfee0'0400, false},
                    BaseCase{"X2apicToXapic", 0xfee0'0c00, 0xfee0'0800, false},
                    BaseCase{"X2apicToOff", 0xfee0'0c00, 0xfee0'0000, true},
                    BaseCase{"X2apicToInvalid", 0xfee0'0c00, 0xfee0'0400, false},
                    BaseCase{"OffToX2apic", 0xfee0'0000, 0xfee0'0c00, false},
                    BaseCase{"OffToXapic", 0xfee0'0000, 0xfee0'0800, true},
                    BaseCase{"ReservedLowBit", 0xfee0'0800, 0xfee0'0801, false},
                    BaseCase{"ReservedBit9", 0xfee0'0800, 0xfee0'0a00, false},
                    BaseCase{"AddressTooWide", 0xfee0'0800, 1ull << 46 | 0x800, false}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(LocalApicTest, DeliversByPriorityAndEoi) {
  SendIpi(0x4'0031);  // self
  SendIpi(0x4'0052);
  EXPECT_EQ(wakes_, 2);
  EXPECT_EQ(apic_.ReadMmio(kIrr + 0x10), 1u << 0x11);
  EXPECT_EQ(apic_.AcknowledgeInterrupt(), 0x52);
  EXPECT_EQ(apic_.ReadMmio(kPpr), 0x50u);
  EXPECT_FALSE(apic_.HasInterrupt());
  SendIpi(0x4'005f);  // same class: waits
  EXPECT_FALSE(apic_.HasInterrupt());
  SendIpi(0x4'0060);
  EXPECT_EQ(apic_.AcknowledgeInterrupt(), 0x60);
  apic_.WriteMmio(kEoi, 0);
  apic_.WriteMmio(kEoi, 0);
  EXPECT_EQ(apic_.AcknowledgeInterrupt(), 0x5f);
  apic_.WriteMmio(kEoi, 0);
  EXPECT_EQ(apic_.AcknowledgeInterrupt(), 0x31);
  apic_.WriteMmio(kEoi, 0);
  apic_.WriteMmio(kEoi, 0);  // nothing in service: nothing happens
  EXPECT_EQ(apic_.AcknowledgeInterrupt(), std::nullopt);
}

TEST_F(LocalApicTest, TaskPriorityHoldsBack) {
  apic_.WriteCr8(4);
  EXPECT_EQ(apic_.ReadMmio(kTpr), 0x40u);
  SendIpi(0x4'0041);
  EXPECT_FALSE(apic_.HasInterrupt());
  apic_.WriteMmio(kTpr, 0x3f);
  EXPECT_EQ(apic_.cr8(), 3);
  EXPECT_TRUE(apic_.HasInterrupt());
}

TEST_F(LocalApicTest, FindsDestinations) {
  SendIpi(0x40, 1);  // physical
  EXPECT_TRUE(second_.HasInterrupt());
  EXPECT_FALSE(third_.HasInterrupt());
  second_.WriteMmio(kLdr, 0x02u << 24);
  third_.WriteMmio(kLdr, 0x04u << 24);
  SendIpi(0x841, 0x04);  // logical, flat
  EXPECT_EQ(third_.AcknowledgeInterrupt(), 0x41);
  third_.WriteMmio(kDfr, 0);
  third_.WriteMmio(kLdr, 0x12u << 24);
  SendIpi(0x862, 0x13);  // logical, cluster 1
  EXPECT_EQ(third_.AcknowledgeInterrupt(), 0x62);
  SendIpi(0xc'0070);  // all but self
  EXPECT_EQ(second_.AcknowledgeInterrupt(), 0x70);
  EXPECT_EQ(third_.AcknowledgeInterrupt(), 0x70);
  EXPECT_FALSE(apic_.HasInterrupt());
  SendIpi(0x71, 0xff);  // broadcast
  EXPECT_TRUE(apic_.HasInterrupt());
}

TEST_F(LocalApicTest, LowestPriorityGoesToOne) {
  apic_.WriteMmio(kTpr, 0x20);
  second_.WriteMmio(kTpr, 0x10);
  third_.WriteMmio(kTpr, 0x30);
  SendIpi(0x141, 0xff);
  EXPECT_FALSE(apic_.HasInterrupt());
  EXPECT_TRUE(second_.HasInterrupt());
  EXPECT_FALSE(third_.HasInterrupt());
}

TEST_F(LocalApicTest, StartsOtherProcessors) {
  SendIpi(0xc'4500);  // INIT, assert, all but self
  SendIpi(0xc'4607);  // SIPI
  EXPECT_FALSE(apic_.TakeInit());
  EXPECT_TRUE(second_.TakeInit());
  EXPECT_EQ(second_.TakeStartUp(), 7);
  EXPECT_FALSE(second_.TakeInit());
  EXPECT_EQ(second_.TakeStartUp(), std::nullopt);
  SendIpi(0xc'8500);  // INIT de-assert
  EXPECT_FALSE(second_.TakeInit());
  SendIpi(0x400, 2);
  EXPECT_EQ(third_.TakeNmis(), 1u);
  EXPECT_EQ(apic_.ReadMmio(kIcrLow) & 1u << 12, 0u);
}

TEST_F(LocalApicTest, KeepsTwoNmis) {
  for (int i = 0; i < 2; ++i) SendIpi(0x400, 2);
  EXPECT_EQ(third_.TakeNmis(), 2u);
  for (int i = 0; i < 5; ++i) SendIpi(0x400, 2);
  EXPECT_EQ(third_.TakeNmis(), 2u);
  EXPECT_EQ(third_.TakeNmis(), 0u);
}

struct LintCase {
  const char* name;
  unsigned pin;
  std::uint32_t entry;
  std::optional<std::uint8_t> interrupt;
  unsigned nmis;
};
class LocalApicLint : public LocalApicTest, public testing::WithParamInterface<LintCase> {};

TEST_P(LocalApicLint, RaisesWhatItsEntrySays) {
  const LintCase& c = GetParam();
  apic_.WriteMmio(c.pin == 0 ? kLvtLint0 : kLvtLint1, c.entry);
  const bool wakes = (c.entry & kLvtMasked) == 0;
  for (int i = 0; i < 2; ++i) {
    wakes_ = 0;
    apic_.SetLint(c.pin, true);
    EXPECT_EQ(wakes_, wakes ? 1 : 0);
    apic_.SetLint(c.pin, true);  // no edge
    EXPECT_EQ(wakes_, wakes ? 1 : 0);
    EXPECT_EQ(apic_.AcknowledgeInterrupt(), c.interrupt);
    EXPECT_EQ(apic_.TakeNmis(), c.nmis);
    apic_.SetLint(c.pin, false);
    EXPECT_EQ(apic_.AcknowledgeInterrupt(), std::nullopt);
    apic_.WriteMmio(kEoi, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Entries, LocalApicLint,
                         testing::Values(LintCase{"Fixed", 0, 0x45, 0x45, 0},
                                         LintCase{"FixedAtPin1", 1, 0x46, 0x46, 0},
                                         LintCase{"Masked", 0, 0x1'0045, std::nullopt, 0},
                                         LintCase{"External", 0, 0x700, std::nullopt, 0},
                                         LintCase{"Nmi", 1, 0x400, std::nullopt, 1},
                                         LintCase{"NmiAtPin0", 0, 0x400, std::nullopt, 1}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_F(LocalApicTest, DisabledItLetsThePinsThrough) {
  ASSERT_TRUE(apic_.WriteBase(0xfee0'0000));
  apic_.SetLint(0, true);
  EXPECT_EQ(wakes_, 1);
  EXPECT_TRUE(apic_.AcceptsExternal());
  apic_.SetLint(1, true);
  EXPECT_EQ(apic_.TakeNmis(), 1u);
}

class Listener final : public EoiListener {
 public:
  void EndOfInterrupt(std::uint8_t vector) override { vectors.push_back(vector); }
  std::vector<std::uint8_t> vectors;
};

TEST_F(LocalApicTest, BroadcastsEoisOfLevelTriggeredInterrupts) {
  Listener listener;
  bus_.Listen(listener);
  const auto serve = [this](std::uint8_t vector, bool level) {
    bus_.Send({.vector = vector, .level = level, .destination = 0}, nullptr);
    EXPECT_EQ(apic_.AcknowledgeInterrupt(), vector);
    EXPECT_EQ((apic_.ReadMmio(kTmr + 0x20) >> (vector & 31) & 1) != 0, level);
    apic_.WriteMmio(kEoi, 0);
  };
  serve(0x41, true);
  serve(0x42, false);
  EXPECT_EQ(listener.vectors, std::vector<std::uint8_t>{0x41});
  serve(0x43, true);
  EXPECT_EQ(listener.vectors, (std::vector<std::uint8_t>{0x41, 0x43}));
}

TEST_F(LocalApicTest, KeepsEoisToItselfWhenToldTo) {
  Listener listener;
  bus_.Listen(listener);
  apic_.WriteMmio(kSpurious, 0x11ff);
  EXPECT_EQ(apic_.ReadMmio(kSpurious), 0x11ffu);
  bus_.Send({.vector = 0x41, .level = true, .destination = 0}, nullptr);
  EXPECT_EQ(apic_.AcknowledgeInterrupt(), 0x41);
  apic_.WriteMmio(kEoi, 0);
  EXPECT_TRUE(listener.vectors.empty());
}

TEST_F(LocalApicTest, ReportsIllegalVectors) {
  apic_.WriteMmio(kLvtError, 0x33);
  SendIpi(0x4'000f);
  EXPECT_EQ(apic_.ReadMmio(kEsr), 0u);
  apic_.WriteMmio(kEsr, 0);
  EXPECT_EQ(apic_.ReadMmio(kEsr), kEsrSendIllegalVector);
  EXPECT_EQ(apic_.AcknowledgeInterrupt(), 0x33);
}

TEST_F(LocalApicTest, SoftwareDisabledMasksAndRefuses) {
  apic_.WriteMmio(kLvtTimer, 0x40);
  apic_.WriteMmio(kSpurious, 0xff);
  EXPECT_EQ(apic_.ReadMmio(kLvtTimer), 0x40u | kLvtMasked);
  apic_.WriteMmio(kLvtTimer, 0x41);
  EXPECT_EQ(apic_.ReadMmio(kLvtTimer), 0x41u | kLvtMasked);
  SendIpi(0x4'0050);
  EXPECT_FALSE(apic_.HasInterrupt());
}

TEST_F(LocalApicTest, TimerInterrupts) {
  apic_.WriteMmio(kDivide, 0xb);
  apic_.WriteMmio(kLvtTimer, 0x40 | kLvtTimerPeriodic);
  apic_.WriteMmio(kInitialCount, 1'000'000);
  EXPECT_EQ(apic_.next_deadline_ns(), clock_.NowNs() + 1'000'000);
  clock_.Advance(1'000'000);
  apic_.Poll();
  EXPECT_EQ(apic_.AcknowledgeInterrupt(), 0x40);
  apic_.WriteMmio(kLvtTimer, 0x40 | kLvtTimerPeriodic | kLvtMasked);
  EXPECT_EQ(apic_.next_deadline_ns(), kNever);
}

TEST_F(LocalApicTest, DeadlinesFollowTheCounter) {
  apic_.WriteMmio(kLvtTimer, 0x40 | kLvtTimerTscDeadline);
  apic_.WriteTsc(1'000);
  EXPECT_EQ(apic_.tsc(), 1'000u);
  EXPECT_EQ(apic_.tsc_adjust(), 1'000u - clock_.Tsc());
  apic_.WriteTscDeadline(1'500);
  EXPECT_EQ(apic_.next_deadline_ns(), clock_.NowNs() + 500);
  apic_.WriteTsc(1'400);
  EXPECT_EQ(apic_.next_deadline_ns(), clock_.NowNs() + 100);
  apic_.WriteTscAdjust(apic_.tsc_adjust() - 400);
  EXPECT_EQ(apic_.next_deadline_ns(), clock_.NowNs() + 500);
  EXPECT_EQ(apic_.tsc_deadline(), 1'500u);
}

TEST_F(LocalApicTest, TscDeadlineInterrupts) {
  apic_.WriteMmio(kLvtTimer, 0x40 | kLvtTimerTscDeadline);
  apic_.WriteTscDeadline(clock_.Tsc() + 100);
  EXPECT_EQ(apic_.tsc_deadline(), clock_.Tsc() + 100);
  clock_.Advance(100);
  apic_.Poll();
  EXPECT_EQ(apic_.tsc_deadline(), 0u);
  EXPECT_TRUE(apic_.HasInterrupt());
}

TEST_F(LocalApicTest, X2apicMsrsAnswerInThatModeOnly) {
  EXPECT_EQ(second_.ReadMsr(0x802), std::nullopt);
  EXPECT_FALSE(second_.WriteMsr(0x80b, 0));
  ASSERT_TRUE(second_.WriteBase(0xfee0'0c00));
  EXPECT_FALSE(second_.ClaimsMmio(Gpa(0xfee0'0000)));
  EXPECT_EQ(second_.ReadMsr(0x802), 1u);
  EXPECT_EQ(second_.ReadMsr(0x803), 0x0105'0014u);
  EXPECT_EQ(second_.ReadMsr(0x80d), 2u);
  EXPECT_EQ(second_.ReadMsr(0x80b), std::nullopt);  // EOI is write-only
  EXPECT_EQ(second_.ReadMsr(0x80e), std::nullopt);  // no DFR
  EXPECT_EQ(second_.ReadMsr(0x831), std::nullopt);  // ICR is one register
  EXPECT_FALSE(second_.WriteMsr(0x802, 5));
  EXPECT_FALSE(second_.WriteMsr(0x80b, 1));
  EXPECT_FALSE(second_.WriteMsr(0x808, 0x100));
  EXPECT_TRUE(second_.WriteMsr(0x808, 0x20));
  EXPECT_TRUE(second_.WriteMsr(0x83f, 0x55));  // self IPI
  EXPECT_EQ(second_.AcknowledgeInterrupt(), 0x55);
  EXPECT_TRUE(second_.WriteMsr(0x830, 0xffff'ffff'0000'0066));
  EXPECT_TRUE(apic_.HasInterrupt());
  EXPECT_EQ(second_.ReadMsr(0x830), 0xffff'ffff'0000'0066);
}

// Every register at every offset, with every kind of value: nothing to expect but survival.
TEST_F(LocalApicTest, SurvivesAnyRegisterAccess) {
  for (std::uint32_t offset = 0; offset < 0x1000; offset += 4) {
    for (const std::uint32_t value : {0u, 1u, 0x80u, 0x500u, 0x4'0020u, 0x6'00ffu, ~0u}) {
      apic_.WriteMmio(offset, value);
      (void)apic_.ReadMmio(offset);
      apic_.Poll();
      clock_.Advance(1000);
    }
  }
  ASSERT_TRUE(apic_.WriteBase(0xfee0'0c00));
  for (std::uint32_t index = 0x800; index < 0x900; ++index) {
    for (const std::uint64_t value : {0ull, 1ull, 0x80ull, 0x500ull, ~0ull}) {
      (void)apic_.WriteMsr(index, value);
      (void)apic_.ReadMsr(index);
    }
  }
}

}  // namespace
}  // namespace pagesaw
