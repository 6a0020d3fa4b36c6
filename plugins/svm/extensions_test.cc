// What SVM got besides the world switch, each with a bit of CPUID leaf 8000000Ah of its own.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.page_format;
import pagesaw.plugins.svm.test_guest;

namespace pagesaw::svm {
namespace {

class SvmExtensionsTest : public testing::Test, protected TestGuest {
 protected:
  void Enter() { ASSERT_TRUE(EnterGuest()); }
  void EnterNested() {
    Set(field::kNestedControl, 1);
    Set(field::kNestedCr3, 0x9000);
    Enter();
  }
  void ExpectCode(const std::vector<unsigned>& bytes) {
    ASSERT_EQ(Get(field::kCodeCount), bytes.size());
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const auto at = static_cast<std::uint16_t>(0xd1 + i);
      EXPECT_EQ(Get(Field<std::uint8_t>{at}), bytes[i]) << i;
    }
  }
};

struct Assist {
  std::string name;
  InterceptedEvent event;
  std::uint64_t info1;
};
void PrintTo(const Assist& assist, std::ostream* out) { *out << assist.name; }

class DecodeAssist : public SvmExtensionsTest, public testing::WithParamInterface<Assist> {};

TEST_P(DecodeAssist, TellsTheOperandInExitInfo1) {
  for (const Field<std::uint32_t> word :
       {field::kInterceptControl, field::kInterceptDebug, field::kIntercept3}) {
    Set(word, ~0u);
  }
  Enter();
  ASSERT_TRUE(unit_.Leaves(host_, GetParam().event));
  unit_.Leave(host_, GetParam().event);
  EXPECT_EQ(Get(field::kExitInfo1), GetParam().info1);
}

constexpr std::uint64_t kMov = std::uint64_t{1} << 63;

// [amd/vol2] "Decode Assists"
INSTANTIATE_TEST_SUITE_P(
    Instructions, DecodeAssist,
    testing::Values(
        Assist{
            "MovToCr3", {.what = Intercept::kWriteControl, .number = 3, .gpr = kRdi}, kMov | kRdi},
        Assist{"MovFromCr0", {.what = Intercept::kReadControl, .gpr = kR15}, kMov | kR15},
        Assist{"Clts", {.what = Intercept::kClts, .gpr = 5}, 0},
        Assist{"Lmsw", {.what = Intercept::kLmsw, .value = 1, .gpr = 5}, 0},
        Assist{"Smsw", {.what = Intercept::kSmsw, .gpr = 5}, 0},
        Assist{"MovToDr7", {.what = Intercept::kWriteDebug, .number = 7, .gpr = kR9}, kR9},
        Assist{"MovFromDr0", {.what = Intercept::kReadDebug, .gpr = kRbx}, kRbx},
        Assist{"IntN", {.what = Intercept::kSoftwareInterrupt, .number = 0x80}, 0x80},
        Assist{"Invlpg", {.what = Intercept::kInvlpg, .value = 0xdead'f000}, 0xdead'f000}),
    [](const auto& info) { return info.param.name; });

TEST_F(SvmExtensionsTest, InvlpgaTellsItsAddress) {
  Set(field::kIntercept3, 1u << 26);
  Enter();
  host_.state.gpr[kRax] = 0xffff'8000'1234'5000;
  EXPECT_FALSE(Execute(VirtInstruction::kInvlpga));
  ASSERT_TRUE(host_.left_for);
  EXPECT_EQ(Meet(*host_.left_for), 0x7au);
  EXPECT_EQ(Get(field::kExitInfo1), 0xffff'8000'1234'5000u);
}

TEST_F(SvmExtensionsTest, DataFaultsTellTheCodeThatMetThem) {
  Set(field::kInterceptExceptions, 1u << 14);
  host_.code = {std::byte{0x8b}, std::byte{0x07}, std::byte{0xc3}};
  const InterceptedEvent read = {
      .what = Intercept::kException, .number = 14, .has_error_code = true, .error_code = 4};
  Enter();
  EXPECT_EQ(Meet(read), 0x4eu);
  ExpectCode({0x8b, 0x07, 0xc3});
  InterceptedEvent fetch = read;
  fetch.error_code = 0x14;
  host_.state.gpr[kRax] = kBlock;
  Enter();
  EXPECT_EQ(Meet(fetch), 0x4eu);
  ExpectCode({});
}

TEST_F(SvmExtensionsTest, NestedDataFaultsTellTheCodeThatMetThem) {
  const auto meet = [this](Access access) {
    host_.state.gpr[kRax] = kBlock;
    EnterNested();
    host_.code.assign(20, std::byte{0x90});
    unit_.MeetNestedFault(host_, {.address = Gpa(0x1234), .access = access});
  };
  meet(Access::Write(Privilege::kUser));
  ExpectCode(std::vector<unsigned>(15, 0x90));
  meet(Access::Fetch(Privilege::kUser));
  ExpectCode({});
  host_.on_its_way = DeliveredEvent{.vector = 0x30};
  meet(Access::Write(Privilege::kUser));  // no instruction made it
  ExpectCode({});
}

TEST_F(SvmExtensionsTest, OtherExitsTellNoCode) {
  Set(field::kCodeCount, 7);
  host_.code = {std::byte{0xf4}};
  Set(field::kIntercept3, 1u << 31);
  Enter();
  EXPECT_EQ(Meet({.what = Intercept::kShutdown}), 0x7fu);
  ExpectCode({});
}

class PauseFilterTest : public SvmExtensionsTest {
 protected:
  void Enter(std::uint64_t count, std::uint64_t threshold) {
    Set(field::kIntercept3, 1u << 23);
    Set(field::kPauseFilterCount, count);
    Set(field::kPauseFilterThreshold, threshold);
    SvmExtensionsTest::Enter();
  }
  std::uint64_t PauseAfter(std::uint64_t ticks) {
    host_.tsc += ticks;
    return Meet({.what = Intercept::kPause});
  }
};

TEST_F(PauseFilterTest, LetsSomePass) {
  Enter(2, 0);
  EXPECT_EQ(PauseAfter(1000), 0u);
  EXPECT_EQ(PauseAfter(1000), 0u);
  EXPECT_EQ(PauseAfter(1000), 0x77u);
}

TEST_F(PauseFilterTest, WithAThresholdAPauseThatComesLateBeginsAnew) {
  Enter(2, 100);
  for (const std::uint64_t ticks : {10, 10, 101, 100}) EXPECT_EQ(PauseAfter(ticks), 0u) << ticks;
  EXPECT_EQ(PauseAfter(100), 0x77u);
}

TEST_F(SvmExtensionsTest, TheRatioScalesTheGuestsTimeStampCounter) {
  constexpr std::uint32_t kRatio = 0xc000'0104;
  std::uint64_t value = 0;
  EXPECT_EQ(unit_.ReadMsr(host_, kRatio, value), VirtUnit::MsrAnswer::kDone);
  EXPECT_EQ(value, std::uint64_t{1} << 32);
  EXPECT_EQ(unit_.WriteMsr(host_, kRatio, std::uint64_t{1} << 40), VirtUnit::MsrAnswer::kRefused);
  EXPECT_EQ(unit_.WriteMsr(host_, kRatio, 0x2'8000'0000), VirtUnit::MsrAnswer::kDone);
  Set(field::kTscOffset, 7);
  Enter();
  EXPECT_EQ(host_.entry->tsc.Of(1000), 2507u);
  EXPECT_EQ(host_.entry->tsc.Of(std::uint64_t{1} << 62), (std::uint64_t{5} << 61) + 7);
}

TEST_F(SvmExtensionsTest, RecordsAreTheGuestsOwnIfTheyAreVirtual) {
  const BranchRecords of_hypervisor = {.debugctl = 1, .from = 2, .to = 3, .event_from = 4};
  const BranchRecords left = {.debugctl = 3, .from = 6, .to = 7, .event_from = 8, .event_to = 9};
  host_.branch_records = of_hypervisor;
  Set(field::kVirtualExtensions, 1);
  Set(field::kDebugctl, 0x81);
  Set(field::kBranchFrom, 0x10);
  Set(field::kBranchTo, 0x20);
  Set(field::kExceptionFrom, 0x30);
  Set(field::kExceptionTo, 0x40);
  Enter();
  EXPECT_EQ(host_.branch_records, (BranchRecords{1, 0x10, 0x20, 0x30, 0x40}));
  host_.branch_records = left;
  Set(field::kIntercept3, 1u << 31);
  unit_.Leave(host_, {.what = Intercept::kShutdown});
  EXPECT_EQ(host_.branch_records, of_hypervisor);
  EXPECT_EQ(Get(field::kDebugctl), 3u);
  EXPECT_EQ(Get(field::kBranchFrom), 6u);
  EXPECT_EQ(Get(field::kBranchTo), 7u);
  EXPECT_EQ(Get(field::kExceptionFrom), 8u);
  EXPECT_EQ(Get(field::kExceptionTo), 9u);
}

TEST_F(SvmExtensionsTest, RecordsAreSharedIfTheyAreNot) {
  Set(field::kBranchFrom, 0x10);
  host_.branch_records = {.debugctl = 1, .from = 2};
  Enter();
  EXPECT_EQ(host_.branch_records.from, 2u);
  host_.branch_records.from = 5;
  unit_.Leave(host_, {.what = Intercept::kShutdown});
  EXPECT_EQ(host_.branch_records.from, 5u);
  EXPECT_EQ(Get(field::kBranchFrom), 0x10u);
}

class VirtualNmiTest : public SvmExtensionsTest {
 protected:
  static constexpr std::uint32_t kNmi = 1u << 11, kMask = 1u << 12, kEnabled = 1u << 26;

  void Enter(std::uint32_t word) {
    Set(field::kIntercept3, 1u << 1 | 1u << 31);
    Set(field::kVirtualInterrupt, word);
    SvmExtensionsTest::Enter();
  }
  std::uint32_t Word() {
    unit_.Leave(host_, {.what = Intercept::kShutdown});
    return Get(field::kVirtualInterrupt);
  }
};

TEST_F(VirtualNmiTest, ArePendingForTheProcessorToTake) {
  Enter(kEnabled | kNmi);
  EXPECT_TRUE(host_.guest_interrupts.virtual_nmis);
  EXPECT_TRUE(host_.guest_interrupts.virtual_nmi_pending);
  EXPECT_FALSE(host_.state.nmi_blocked);
  host_.guest_interrupts.virtual_nmi_pending = false;
  host_.state.nmi_blocked = true;
  EXPECT_EQ(Word(), kEnabled | kMask);
  EXPECT_FALSE(host_.state.nmi_blocked);
}

TEST_F(VirtualNmiTest, AreMaskedByTheGuestAloneAndRealOnesByTheHypervisorAlone) {
  host_.state.nmi_blocked = true;
  Enter(kEnabled | kMask | kNmi);
  EXPECT_TRUE(host_.state.nmi_blocked);
  EXPECT_TRUE(host_.guest_interrupts.real_nmi_blocked);
  host_.state.nmi_blocked = false;  // IRET
  EXPECT_EQ(Word(), kEnabled | kNmi);
  EXPECT_TRUE(host_.state.nmi_blocked);
}

TEST_F(VirtualNmiTest, AreNothingUnlessEnabled) {
  Enter(kMask | kNmi);
  EXPECT_FALSE(host_.guest_interrupts.virtual_nmi_pending);
  EXPECT_FALSE(host_.state.nmi_blocked);
  EXPECT_EQ(Word(), kMask | kNmi);
}

class VirtualLoadAndSave : public SvmExtensionsTest {
 protected:
  static constexpr std::uint64_t kBase = 0x1'0000, kInner = 0x2000;

  VirtualLoadAndSave() { host_.nested_base = kBase; }
  Vmcb inner() { return Vmcb(host_.Memory(Gpa(kBase + kInner), kPageBytes)); }
};

TEST_F(VirtualLoadAndSave, AreMadeInTheGuestsOwnSpace) {
  Set(field::kVirtualExtensions, 2);
  EnterNested();
  host_.state.gpr[kRax] = kInner;
  host_.state.star = 0x1234;
  EXPECT_TRUE(Execute(VirtInstruction::kVmsave));
  EXPECT_EQ(inner().Get(field::kStar), 0x1234u);
  inner().Set(field::kLstar, 0x5678);
  EXPECT_TRUE(Execute(VirtInstruction::kVmload));
  EXPECT_EQ(host_.state.lstar, 0x5678u);
  EXPECT_TRUE(host_.guest_mode());
}

TEST_F(VirtualLoadAndSave, MeetNestedFaults) {
  Set(field::kVirtualExtensions, 2);
  EnterNested();
  host_.state.gpr[kRax] = kInner;
  host_.nested_faults = true;
  EXPECT_FALSE(Execute(VirtInstruction::kVmsave));
  EXPECT_FALSE(host_.general_protection);
  EXPECT_EQ(inner().Get(field::kStar), 0u);
}

TEST_F(VirtualLoadAndSave, AreTheHypervisorsSpaceWhereTheyAreNotVirtual) {
  for (const bool nests : {false, true}) {
    Describe();
    Set(field::kVirtualExtensions, nests ? 0 : 2);
    Set(field::kNestedControl, nests ? 1 : 0);
    host_.state.gpr[kRax] = kBlock;
    Enter();
    host_.state.gpr[kRax] = kInner;
    host_.state.star = 0x99;
    EXPECT_TRUE(Execute(VirtInstruction::kVmsave));
    EXPECT_EQ(Vmcb(host_.Memory(Gpa(kInner), kPageBytes)).Get(field::kStar), 0x99u) << nests;
    EXPECT_EQ(inner().Get(field::kStar), 0u) << nests;
    unit_.Leave(host_, {.what = Intercept::kShutdown});
  }
}

}  // namespace
}  // namespace pagesaw::svm
