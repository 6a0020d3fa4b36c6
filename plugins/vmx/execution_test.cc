// What a guest meets by the controls of its VMCS.
// [intel/vol3] "VM-Execution Control Fields", "VMX Non-Root Operation"
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

import pagesaw.plugins.vmx.test_guest;

namespace pagesaw::vmx {
namespace {

TEST(PreemptionTimer, RunsDownWithTheTimeStampCounter) {
  TestGuest guest;
  guest.SetControls(field::kPinControls, pin::kPreemptionTimer);
  guest.SetControls(field::kExitControls, exits::kSavePreemptionTimer);
  guest.Set(field::kPreemptionTimer, 100);
  guest.host.tsc = 32'000;
  ASSERT_TRUE(guest.Enter());
  EXPECT_EQ(guest.host.entry->deadline, 32'000u + 800);
  guest.host.tsc = 32'000 + 10 * 8;
  ASSERT_TRUE(guest.Meet(Call()));
  EXPECT_EQ(guest.Get(field::kPreemptionTimer), 90u);
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  guest.host.tsc += 100'000;
  ASSERT_TRUE(guest.Meet({.what = Intercept::kDeadline}));
  EXPECT_EQ(guest.Get(field::kExitReason), 52u);
  EXPECT_EQ(guest.Get(field::kPreemptionTimer), 0u);
}

TEST(TprShadow, IsThePagesAndGoesBackThere) {
  TestGuest guest;
  guest.SetControls(field::kPrimaryControls, primary::kTprShadow);
  guest.Set(field::kVirtualApic, TestGuest::kBitmap);
  guest.Set(field::kTprThreshold, 3);
  std::byte* const tpr = guest.host.Memory(Gpa(TestGuest::kBitmap + 0x80), 1);
  *tpr = std::byte{0x50};
  ASSERT_TRUE(guest.Enter());
  EXPECT_TRUE(guest.host.guest_interrupts.has_virtual_tpr);
  EXPECT_EQ(guest.host.guest_interrupts.virtual_tpr, 5);
  EXPECT_EQ(guest.host.guest_interrupts.tpr_threshold, 3);
  guest.host.guest_interrupts.virtual_tpr = 2;
  ASSERT_TRUE(guest.Meet({.what = Intercept::kTprBelowThreshold}));
  EXPECT_EQ(guest.Get(field::kExitReason), 43u);
  EXPECT_EQ(*tpr, std::byte{0x20});
}

// -- what leaves

TEST(PageFaults, LeaveByTheBitmapMaskAndMatch) {
  struct Row {
    std::uint32_t bitmap, mask, match, error;
    bool leaves;
  };
  for (const Row& row :
       {Row{0, 0, 0, 2, false}, Row{1u << 14, 0, 0, 2, true}, Row{1u << 14, 1, 1, 2, false},
        Row{1u << 14, 1, 1, 3, true}, Row{0, 1, 1, 2, true}, Row{0, 1, 1, 3, false},
        Row{1u << 14, 0, 1, 7, false}}) {
    TestGuest guest;
    guest.Set(field::kExceptionBitmap, row.bitmap);
    guest.Set(field::kPageFaultMask, row.mask);
    guest.Set(field::kPageFaultMatch, row.match);
    ASSERT_TRUE(guest.Enter());
    const bool asked = (guest.host.entry->exceptions >> 14 & 1) != 0;
    EXPECT_TRUE(asked || !row.leaves);
    if (!asked) continue;
    EXPECT_EQ(guest.Meet({.what = Intercept::kException,
                          .number = 14,
                          .value = 0x1000,
                          .has_error_code = true,
                          .error_code = row.error}),
              row.leaves)
        << row.bitmap << " " << row.mask << " " << row.match << " " << row.error;
    if (!row.leaves) continue;
    EXPECT_EQ(guest.Get(field::kExitReason), 0u);
    EXPECT_EQ(guest.Get(field::kQualification), 0x1000u);
    EXPECT_EQ(guest.Get(field::kExitInterruption), 0x8000'0b0eu);
    EXPECT_EQ(guest.Get(field::kExitErrorCode), row.error);
    EXPECT_NE(guest.Get(field::kGuestRflags) & kFlagRf, 0u);
  }
}

TEST(ControlRegisters, LeaveWhereABitOfTheMaskDiffersFromTheShadow) {
  TestGuest guest;
  guest.Set(field::kCr0Mask, 8);
  guest.Set(field::kCr0Shadow, 8);
  guest.Set(field::kCr3TargetCount, 1);
  guest.Set(field::kCr3Targets[0], 0x9000);
  guest.SetControls(field::kPrimaryControls, primary::kCr3Load);
  ASSERT_TRUE(guest.Enter());
  EXPECT_EQ(guest.host.entry->cr0.mask, 8u);
  const auto write = [](std::uint32_t number, std::uint64_t value) {
    return InterceptedEvent{
        .what = Intercept::kWriteControl, .number = number, .value = value, .gpr = kRbx};
  };
  EXPECT_FALSE(guest.Meet(write(0, 0x8000'0039)));
  EXPECT_FALSE(guest.Meet(write(3, 0x9000)));
  EXPECT_FALSE(guest.Meet(write(4, 0x20)));
  ASSERT_TRUE(guest.Meet(write(0, 0x8000'0031)));
  EXPECT_EQ(guest.Get(field::kExitReason), 28u);
  EXPECT_EQ(guest.Get(field::kQualification), 0x300u);
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  ASSERT_TRUE(guest.Meet(write(3, 0xa000)));
  EXPECT_EQ(guest.Get(field::kQualification), 0x303u);
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  ASSERT_TRUE(guest.Meet({.what = Intercept::kClts}));
  EXPECT_EQ(guest.Get(field::kQualification), 0x20u);
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  EXPECT_FALSE(guest.Meet({.what = Intercept::kLmsw, .value = 9}));
  ASSERT_TRUE(guest.Meet({.what = Intercept::kLmsw, .value = 1}));
  EXPECT_EQ(guest.Get(field::kQualification), 0x1'0030u);
}

TEST(Bitmaps, SayWhichPortsAndMsrsLeave) {
  TestGuest guest;
  guest.SetControls(field::kPrimaryControls, primary::kIoBitmaps | primary::kMsrBitmaps);
  guest.Set(field::kIoBitmapA, 0x3000);
  guest.Set(field::kIoBitmapB, 0x4000);
  guest.Set(field::kMsrBitmap, 0x5000);
  *guest.host.Memory(Gpa(0x3000 + 0x60 / 8), 1) = std::byte{1};
  *guest.host.Memory(Gpa(0x5000 + 0xc00 + 0x80 / 8), 1) = std::byte{1};  // writes of EFER
  ASSERT_TRUE(guest.Enter());
  const auto port = [](std::uint16_t number, std::uint8_t bytes) {
    return InterceptedEvent{.what = Intercept::kIo,
                            .io = {.port = number, .bytes = bytes, .in = true}};
  };
  EXPECT_FALSE(guest.Meet(port(0x5f, 1)));
  EXPECT_FALSE(guest.Meet(port(0x8060, 1)));
  EXPECT_FALSE(guest.Meet({.what = Intercept::kReadMsr, .number = 0xc000'0080}));
  EXPECT_FALSE(guest.Meet({.what = Intercept::kWriteMsr, .number = 0x80}));
  ASSERT_TRUE(guest.Meet(port(0x5f, 2)));
  EXPECT_EQ(guest.Get(field::kExitReason), 30u);
  EXPECT_EQ(guest.Get(field::kQualification), 0x5f'0009u);
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  ASSERT_TRUE(guest.Meet(port(0xffff, 2))) << "around the end";
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  ASSERT_TRUE(guest.Meet({.what = Intercept::kWriteMsr, .number = 0xc000'0080}));
  EXPECT_EQ(guest.Get(field::kExitReason), 32u);
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  ASSERT_TRUE(guest.Meet({.what = Intercept::kReadMsr, .number = 0x4000'0000})) << "in no bitmap";
}

TEST(InstructionInformation, DescribesTheOperand) {
  TestGuest guest;
  guest.SetControls(field::kPrimaryControls, primary::kSecondary);
  guest.Set(field::kSecondaryControls, secondary::kDescriptorTables);
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.Meet({.what = Intercept::kWriteIdtr,
                          .memory = true,
                          .operand = {.displacement = 0x10,
                                      .segment = kFs,
                                      .address_bytes = 4,
                                      .scale = 3,
                                      .base = {},
                                      .index = kR9},
                          .operand_bytes = 8}));
  EXPECT_EQ(guest.Get(field::kExitReason), 46u);
  EXPECT_EQ(guest.Get(field::kQualification), 0x10u);
  EXPECT_EQ(guest.Get(field::kInstructionInformation),
            3u | 1u << 7 | 1u << 11 | 4u << 15 | 9u << 18 | 1u << 27 | 3u << 28);
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  ASSERT_TRUE(guest.Meet({.what = Intercept::kReadTr, .gpr = kRdi}));
  EXPECT_EQ(guest.Get(field::kExitReason), 47u);
  EXPECT_EQ(guest.Get(field::kInstructionInformation), 7u << 3 | 1u << 10 | 1u << 28);
}

TEST(TimeStampCounter, IsScaledAndThenAhead) {
  struct Row {
    std::uint32_t primary, secondary;
    std::uint64_t at_1000;
  };
  for (const Row& row : {Row{0, secondary::kTscScaling, 1000}, Row{primary::kTscOffset, 0, 1007},
                         Row{primary::kTscOffset, secondary::kTscScaling, 2507}}) {
    TestGuest guest;
    guest.SetControls(field::kPrimaryControls, primary::kSecondary | row.primary);
    guest.Set(field::kSecondaryControls, row.secondary);
    guest.Set(field::kTscOffset, 7);
    guest.Set(field::kTscMultiplier, std::uint64_t{5} << 47);
    ASSERT_TRUE(guest.Enter());
    EXPECT_EQ(guest.host.entry->tsc.Of(1000), row.at_1000);
  }
}

class PauseLoops : public testing::Test {
 protected:
  void Enter(std::uint32_t more = 0) {
    guest_.SetControls(field::kPrimaryControls, primary::kSecondary | more);
    guest_.Set(field::kSecondaryControls, secondary::kPauseLoop);
    guest_.Set(field::kPauseGap, 100);
    guest_.Set(field::kPauseWindow, 250);
    ASSERT_TRUE(guest_.Enter());
    EXPECT_TRUE(guest_.host.entry->intercepts.Has(Intercept::kPause));
  }
  bool PauseAfter(std::uint64_t ticks) {
    guest_.host.tsc += ticks;
    return guest_.Meet({.what = Intercept::kPause});
  }

  TestGuest guest_;
};

TEST_F(PauseLoops, LeaveBehindTheirWindow) {
  Enter();
  for (const std::uint64_t ticks : {5000, 100, 100, 50}) EXPECT_FALSE(PauseAfter(ticks)) << ticks;
  EXPECT_TRUE(PauseAfter(1));
  EXPECT_EQ(guest_.Get(field::kExitReason), 40u);
}

TEST_F(PauseLoops, BeginAnewBehindAGap) {
  Enter();
  for (const std::uint64_t ticks : {1, 100, 100, 101, 100, 100, 50}) {
    EXPECT_FALSE(PauseAfter(ticks)) << ticks;
  }
  EXPECT_TRUE(PauseAfter(1));
}

TEST_F(PauseLoops, OfProgramsDoNotCount) {
  Enter();
  guest_.host.state.segments[kSs].attributes |= 0x60;
  for (unsigned i = 0; i < 10; ++i) EXPECT_FALSE(PauseAfter(100));
}

TEST_F(PauseLoops, AreNothingWhereEveryPauseLeaves) {
  Enter(primary::kPause);
  EXPECT_TRUE(PauseAfter(1));
}

TEST(ControlFlowEnforcement, IsLoadedIfControlsSaySoAndSavedInAnyCase) {
  for (const bool loads : {false, true}) {
    TestGuest guest;
    if (loads) {
      guest.SetControls(field::kEntryControls, entry::kLoadCet);
      guest.SetControls(field::kExitControls, exits::kLoadCet);
    }
    guest.host.state.cet = {.ssp = 0x10, .supervisor = 1, .interrupt_ssp_table = 0x20};
    guest.Set(field::kGuestSupervisorCet, 2);
    guest.Set(field::kGuestSsp, 0x30);
    guest.Set(field::kGuestInterruptSspTable, 0x40);
    guest.Set(field::kHostSupervisorCet, 3);
    guest.Set(field::kHostSsp, 0x50);
    guest.Set(field::kHostInterruptSspTable, 0x60);
    ASSERT_TRUE(guest.Enter());
    CetState& cet = guest.host.state.cet;
    EXPECT_EQ(cet.supervisor, loads ? 2u : 1u);
    EXPECT_EQ(cet.ssp, loads ? 0x30u : 0x10u);
    EXPECT_EQ(cet.interrupt_ssp_table, loads ? 0x40u : 0x20u);
    cet = {.ssp = 0x70, .supervisor = 0, .interrupt_ssp_table = 0x80};
    ASSERT_TRUE(guest.Meet({.what = Intercept::kCpuid}));
    EXPECT_EQ(guest.Get(field::kGuestSupervisorCet), 0u);
    EXPECT_EQ(guest.Get(field::kGuestSsp), 0x70u);
    EXPECT_EQ(guest.Get(field::kGuestInterruptSspTable), 0x80u);
    EXPECT_EQ(cet.supervisor, loads ? 3u : 0u);
    EXPECT_EQ(cet.ssp, loads ? 0x50u : 0x70u);
    EXPECT_EQ(cet.interrupt_ssp_table, loads ? 0x60u : 0x80u);
  }
}

struct CetCase {
  const char* name;
  Field field;
  std::uint64_t value;
};
void PrintTo(const CetCase& row, std::ostream* out) { *out << row.name; }

class ControlFlowState : public testing::TestWithParam<CetCase> {};

TEST_P(ControlFlowState, IsRefused) {
  TestGuest guest;
  guest.SetControls(field::kEntryControls, entry::kLoadCet);
  guest.SetControls(field::kExitControls, exits::kLoadCet);
  guest.Set(GetParam().field, GetParam().value);
  const bool of_host = GetParam().field.encoding() >= 0x6c00;
  guest.Execute(VirtInstruction::kVmlaunch);
  EXPECT_FALSE(guest.host.guest_mode());
  if (of_host) {
    EXPECT_EQ(guest.error(), 8u);
  } else {
    EXPECT_EQ(guest.Get(field::kExitReason), 0x8000'0021u);
  }
}

constexpr std::uint64_t kNotCanonical = 0x1000'0000'0000'0000;

INSTANTIATE_TEST_SUITE_P(
    Rules, ControlFlowState,
    testing::Values(CetCase{"GuestReserved", field::kGuestSupervisorCet, 0x40},
                    CetCase{"GuestSuppressesAndTracks", field::kGuestSupervisorCet, 0xc00},
                    CetCase{"GuestBitmap", field::kGuestSupervisorCet, kNotCanonical},
                    CetCase{"GuestSspBesideAWord", field::kGuestSsp, 2},
                    CetCase{"GuestTable", field::kGuestInterruptSspTable, kNotCanonical},
                    CetCase{"HostReserved", field::kHostSupervisorCet, 0x40},
                    CetCase{"HostSspBesideAWord", field::kHostSsp, 1},
                    CetCase{"HostTable", field::kHostInterruptSspTable, kNotCanonical}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw::vmx
