#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <ostream>
#include <string>

import pagesaw.plugins.vmx.test_guest;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t kAll = ~std::uint64_t{0};

// -- instructions

TEST(Vmxon, NeedsCr4Vmxe) {
  FakeVirtHost host;
  VmxUnit unit;
  EXPECT_FALSE(unit.Execute(
      host, {.what = Intercept::kInstruction, .instruction = VirtInstruction::kVmxon}));
  EXPECT_TRUE(host.undefined);
}

TEST(Vmxon, MakesTheControlRegistersKeepWhatVmxNeedsAndHoldsInitUp) {
  TestGuest guest;
  EXPECT_EQ(guest.host.fixed_cr0, 0x8000'0021u);
  EXPECT_EQ(guest.host.fixed_cr4, 0x2000u);
  EXPECT_FALSE(guest.host.guest_interrupts.init_open);
  EXPECT_TRUE(guest.Execute(VirtInstruction::kVmxoff));
  EXPECT_EQ(guest.host.fixed_cr0, 0u);
  EXPECT_TRUE(guest.host.guest_interrupts.init_open);
  guest.host.undefined = false;
  EXPECT_FALSE(guest.Execute(VirtInstruction::kVmclear));
  EXPECT_TRUE(guest.host.undefined);
}

struct RegionCase {
  const char* name;
  VirtInstruction instruction;
  std::uint64_t operand;
  std::uint64_t error;
};
void PrintTo(const RegionCase& row, std::ostream* out) { *out << row.name; }

class Regions : public testing::TestWithParam<RegionCase> {};

TEST_P(Regions, AreRefusedWithAnErrorNumber) {
  TestGuest guest;
  EXPECT_TRUE(guest.Execute(GetParam().instruction, GetParam().operand));
  EXPECT_TRUE(guest.zero());
  EXPECT_EQ(guest.error(), GetParam().error);
}

INSTANTIATE_TEST_SUITE_P(
    Addresses, Regions,
    testing::Values(RegionCase{"VmclearMisaligned", VirtInstruction::kVmclear, 0x2001, 2},
                    RegionCase{"VmclearTooWide", VirtInstruction::kVmclear, 1ull << 36, 2},
                    RegionCase{"VmclearOfVmxon", VirtInstruction::kVmclear, TestGuest::kVmxon, 3},
                    RegionCase{"VmptrldMisaligned", VirtInstruction::kVmptrld, 0x2008, 9},
                    RegionCase{"VmptrldTooWide", VirtInstruction::kVmptrld, 1ull << 40, 9},
                    RegionCase{"VmptrldOfVmxon", VirtInstruction::kVmptrld, TestGuest::kVmxon, 10},
                    RegionCase{"VmptrldWithoutRevision", VirtInstruction::kVmptrld, 0x4000, 11},
                    RegionCase{"VmptrldWhereNothingIs", VirtInstruction::kVmptrld, 0x10'0000, 11},
                    RegionCase{"VmxonAgain", VirtInstruction::kVmxon, TestGuest::kVmxon, 15},
                    RegionCase{"Vmresume", VirtInstruction::kVmresume, 0, 5}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Vmclear, OfTheCurrentVmcsLeavesNone) {
  TestGuest guest;
  EXPECT_TRUE(guest.Execute(VirtInstruction::kVmclear, TestGuest::kVmcs));
  EXPECT_TRUE(guest.Execute(VirtInstruction::kVmptrst));
  EXPECT_EQ(guest.host.operand[0], kAll);
  EXPECT_TRUE(guest.Execute(VirtInstruction::kVmlaunch));
  EXPECT_TRUE(guest.carry());
}

TEST(VmreadVmwrite, MoveFieldsAndHalvesOfThem) {
  TestGuest guest;
  const auto access = [&guest](VirtInstruction instruction, std::uint64_t encoding,
                               std::uint64_t value) {
    const bool reads = instruction == VirtInstruction::kVmread;
    guest.host.state.gpr[kRcx] = encoding;
    guest.host.state.gpr[kRbx] = value;
    const std::uint8_t gpr = reads ? kRbx : kRcx, second = reads ? kRcx : kRbx;
    EXPECT_TRUE(guest.unit.Execute(guest.host, {.what = Intercept::kInstruction,
                                                .gpr = gpr,
                                                .second_gpr = second,
                                                .instruction = instruction}));
    return guest.host.state.gpr[kRbx];
  };
  access(VirtInstruction::kVmwrite, 0x2010, 0x1122'3344'5566'7788);
  EXPECT_EQ(guest.Get(field::kTscOffset), 0x1122'3344'5566'7788u);
  EXPECT_EQ(access(VirtInstruction::kVmread, 0x2011, 0), 0x1122'3344u);
  access(VirtInstruction::kVmwrite, 0x2011, 0xaaaa'bbbb);
  EXPECT_EQ(access(VirtInstruction::kVmread, 0x2010, 0), 0xaaaa'bbbb'5566'7788u);
  access(VirtInstruction::kVmwrite, 0x4000, kAll);
  EXPECT_EQ(access(VirtInstruction::kVmread, 0x4000, 0), 0xffff'ffffu) << "32 bits";
  access(VirtInstruction::kVmwrite, 0x4402, 0x77);
  EXPECT_EQ(guest.Get(field::kExitReason), 0x77u) << "as IA32_VMX_MISC says";
  EXPECT_FALSE(guest.zero());
  for (const std::uint64_t unknown : {0x4001ull, 0x2030ull, 0x1'4000ull, 0x1'0000'4000ull}) {
    access(VirtInstruction::kVmread, unknown, 0);
    EXPECT_TRUE(guest.zero());
    EXPECT_EQ(guest.error(), 12u);
  }
}

TEST(VmreadVmwrite, InTheGuestReachTheShadowVmcsWhereTheBitmapsLetThem) {
  TestGuest guest;
  constexpr std::uint64_t kShadow = 0x7000;
  const std::uint32_t revision = kRevision | kShadowIndicator;
  std::memcpy(guest.host.Memory(Gpa(kShadow), 4), &revision, 4);
  guest.SetControls(field::kPrimaryControls, primary::kSecondary);
  guest.Set(field::kSecondaryControls, secondary::kVmcsShadowing);
  guest.Set(field::kVmreadBitmap, 0x3000);
  guest.Set(field::kVmwriteBitmap, 0x4000);
  guest.Set(field::kLinkPointer, TestGuest::kVmxon);
  *guest.host.Memory(Gpa(0x4000 + 0x681e / 8), 1) = std::byte{1 << (0x681e % 8)};
  EXPECT_FALSE(guest.Enter()) << "that is no shadow";
  EXPECT_EQ(guest.Get(field::kQualification), 4u);
  guest.Set(field::kLinkPointer, kShadow);
  ASSERT_TRUE(guest.Enter());
  const auto access = [&guest](VirtInstruction instruction, std::uint64_t encoding) {
    guest.host.left_for.reset();
    guest.host.state.gpr[kRcx] = encoding;
    const bool reads = instruction == VirtInstruction::kVmread;
    const std::uint8_t gpr = reads ? kRbx : kRcx, second = reads ? kRcx : kRbx;
    return guest.unit.Execute(guest.host, {.what = Intercept::kInstruction,
                                           .gpr = gpr,
                                           .second_gpr = second,
                                           .instruction = instruction});
  };
  guest.host.state.gpr[kRbx] = 0x1357;
  EXPECT_TRUE(access(VirtInstruction::kVmwrite, 0x2010));
  EXPECT_EQ(Vmcs(guest.host.Memory(Gpa(kShadow), kPageBytes)).Get(field::kTscOffset), 0x1357u);
  guest.host.state.gpr[kRbx] = 0;
  EXPECT_TRUE(access(VirtInstruction::kVmread, 0x2010));
  EXPECT_EQ(guest.host.state.gpr[kRbx], 0x1357u);
  EXPECT_FALSE(access(VirtInstruction::kVmwrite, 0x681e));
  EXPECT_TRUE(guest.host.left_for);
  EXPECT_FALSE(access(VirtInstruction::kVmread, 0x8000));
  EXPECT_TRUE(guest.host.left_for) << "beyond the bitmaps";
  EXPECT_TRUE(access(VirtInstruction::kVmread, 0x4001));
  EXPECT_TRUE(guest.zero());
  EXPECT_EQ(guest.error(), 12u) << "in the current VMCS";
  guest.host.state.segments[kSs].attributes |= 0x60;
  EXPECT_FALSE(access(VirtInstruction::kVmread, 0x2010));
  EXPECT_TRUE(guest.host.general_protection);
}

TEST(ShadowVmcs, CanBeCurrentAndIsNotEntered) {
  TestGuest guest;
  const std::uint32_t revision = kRevision | kShadowIndicator;
  std::memcpy(guest.host.Memory(Gpa(0x7000), 4), &revision, 4);
  EXPECT_TRUE(guest.Execute(VirtInstruction::kVmptrld, 0x7000));
  EXPECT_FALSE(guest.zero());
  EXPECT_FALSE(guest.Enter());
  EXPECT_TRUE(guest.carry());
}

TEST(Invvpid, ChecksItsOperand) {
  TestGuest guest;
  struct Row {
    std::uint64_t type, vpid, linear;
    bool good;
  };
  for (const Row& row :
       {Row{0, 1, 0x1000, true}, Row{0, 0, 0x1000, false}, Row{0, 1, 0x8000'0000'0000, false},
        Row{1, 0, 0, false}, Row{2, 0, 0, true}, Row{3, 5, 0x8000'0000'0000, true},
        Row{3, 0x1'0000, 0, false}, Row{4, 1, 0, false}}) {
    guest.host.flushes = 0;
    guest.host.state.gpr[kRcx] = row.type;
    guest.host.operand[0] = row.vpid;
    guest.host.operand[1] = row.linear;
    EXPECT_TRUE(guest.unit.Execute(guest.host, {.what = Intercept::kInstruction,
                                                .gpr = kRcx,
                                                .memory = true,
                                                .instruction = VirtInstruction::kInvvpid}));
    EXPECT_EQ(!guest.zero(), row.good) << row.type << " " << row.vpid;
    EXPECT_EQ(guest.host.flushes, row.good ? 1u : 0u);
    if (!row.good) EXPECT_EQ(guest.error(), 28u);
  }
}

TEST(Instructions, LeaveGuestModeBeforeTheyCheckPrivilegeAndFaultOutsideIt) {
  TestGuest guest;
  ASSERT_TRUE(guest.Enter());
  guest.host.state.segments[kSs].attributes |= 0x60;  // CPL 3
  EXPECT_TRUE(guest.Meet({.what = Intercept::kInstruction,
                          .memory = true,
                          .operand = {.displacement = 0x40, .base = kRbx},
                          .instruction_bytes = 4,
                          .instruction = VirtInstruction::kVmptrld}));
  EXPECT_EQ(guest.Get(field::kExitReason), 21u);
  EXPECT_EQ(guest.Get(field::kQualification), 0x40u);
  EXPECT_EQ(guest.Get(field::kInstructionLength), 4u);
  EXPECT_EQ(guest.Get(field::kInstructionInformation) >> 23 & 15, std::uint64_t{kRbx});
  guest.host.state.segments[kSs].attributes |= 0x60;
  EXPECT_FALSE(guest.Execute(VirtInstruction::kVmptrld, TestGuest::kVmcs));
  EXPECT_TRUE(guest.host.general_protection);
}

// -- entries and exits

TEST(Entry, MakesTheGuestAndTheExitTheHypervisor) {
  TestGuest guest;
  guest.Set(field::kGuestRsp, 0x6543);
  guest.Set(field::kGuestRflags, 0x202);
  ASSERT_TRUE(guest.Enter());
  EXPECT_EQ(guest.host.state.rip, TestGuest::kGuestRip);
  EXPECT_EQ(guest.host.state.gpr[kRsp], 0x6543u);
  EXPECT_EQ(guest.host.state.rflags, 0x202u);
  EXPECT_EQ(guest.host.state.cr3, 0x9000u);
  EXPECT_TRUE(guest.host.guest_interrupts.init_open);
  guest.host.state.rip = 0x4321;
  ASSERT_TRUE(guest.Meet(Call()));
  EXPECT_FALSE(guest.host.guest_mode());
  EXPECT_EQ(guest.Get(field::kExitReason), 18u);
  EXPECT_EQ(guest.Get(field::kInstructionLength), 3u);
  EXPECT_EQ(guest.Get(field::kGuestRip), 0x4321u);
  EXPECT_EQ(guest.host.state.rip, TestGuest::kHostRip);
  EXPECT_EQ(guest.host.state.gpr[kRsp], 0x8888u);
  EXPECT_EQ(guest.host.state.cr3, 0x5000u);
  EXPECT_EQ(guest.host.state.rflags, 2u);
  EXPECT_EQ(guest.host.state.segments[kCs].attributes, 0xa09b);
  EXPECT_FALSE(guest.host.state.segments[kSs].present());
  EXPECT_EQ(guest.host.state.dr7, 0x400u);
  EXPECT_FALSE(guest.host.guest_interrupts.init_open);
  EXPECT_TRUE(guest.Execute(VirtInstruction::kVmlaunch));
  EXPECT_EQ(guest.error(), 4u) << "it has been launched";
  EXPECT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  EXPECT_TRUE(guest.host.guest_mode());
}

TEST(Entry, IsRefusedBehindALoadOfSs) {
  TestGuest guest;
  guest.host.boundary_state.stack_shadow = true;
  EXPECT_FALSE(guest.Enter());
  EXPECT_EQ(guest.error(), 26u);
}

TEST(Entry, ThatFailsOnGuestStateGoesOnInTheHypervisor) {
  TestGuest guest;
  guest.Set(field::kGuestRflags, 0);
  EXPECT_FALSE(guest.Enter());
  EXPECT_EQ(guest.Get(field::kExitReason), 0x8000'0021u);
  EXPECT_EQ(guest.Get(field::kQualification), 0u);
  EXPECT_EQ(guest.host.state.rip, TestGuest::kHostRip);
  EXPECT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  EXPECT_EQ(guest.error(), 5u) << "it has not been launched";
}

TEST(Entry, LoadsMsrsAndTellsTheFirstThatItCannot) {
  TestGuest guest;
  guest.host.msrs[0x277] = 0;
  const std::uint64_t list[] = {0x277, 0x1122, 0x999, 0};
  std::memcpy(guest.host.Memory(Gpa(TestGuest::kMsrs), 32), list, sizeof(list));
  guest.Set(field::kEntryMsrLoad, TestGuest::kMsrs);
  guest.Set(field::kEntryMsrLoadCount, 2);
  EXPECT_FALSE(guest.Enter());
  EXPECT_EQ(guest.host.msrs[0x277], 0x1122u);
  EXPECT_EQ(guest.Get(field::kExitReason), 0x8000'0022u);
  EXPECT_EQ(guest.Get(field::kQualification), 2u);
  guest.Set(field::kEntryMsrLoadCount, 1);
  EXPECT_TRUE(guest.Enter());
}

TEST(Exit, StoresAndLoadsMsrs) {
  TestGuest guest;
  guest.host.msrs[0x277] = 0x55;
  const std::uint64_t store[] = {0x277, 0}, load[] = {0x277, 0x66};
  std::memcpy(guest.host.Memory(Gpa(TestGuest::kMsrs), 16), store, sizeof(store));
  std::memcpy(guest.host.Memory(Gpa(TestGuest::kMsrs + 16), 16), load, sizeof(load));
  guest.Set(field::kExitMsrStore, TestGuest::kMsrs);
  guest.Set(field::kExitMsrStoreCount, 1);
  guest.Set(field::kExitMsrLoad, TestGuest::kMsrs + 16);
  guest.Set(field::kExitMsrLoadCount, 1);
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.Meet(Call()));
  std::uint64_t stored[2];
  std::memcpy(stored, guest.host.Memory(Gpa(TestGuest::kMsrs), 16), sizeof(stored));
  EXPECT_EQ(stored[1], 0x55u);
  EXPECT_EQ(guest.host.msrs[0x277], 0x66u);
}

TEST(Exit, WhoseMsrsCannotBeLoadedShutsDown) {
  TestGuest guest;
  const std::uint64_t load[] = {0x999, 0};
  std::memcpy(guest.host.Memory(Gpa(TestGuest::kMsrs), 16), load, sizeof(load));
  guest.Set(field::kExitMsrLoad, TestGuest::kMsrs);
  guest.Set(field::kExitMsrLoadCount, 1);
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.Meet(Call()));
  EXPECT_EQ(guest.host.state.activity, Activity::kShutdown);
}

TEST(Exit, WhoseVmcsIsGoneMakesAPossibleState) {
  TestGuest guest;
  ASSERT_TRUE(guest.Enter());
  std::memset(guest.host.Memory(Gpa(TestGuest::kVmcs), kPageBytes), 0xff, kPageBytes);
  guest.unit.Leave(guest.host, Call());
  const CpuState& state = guest.host.state;
  EXPECT_FALSE(guest.host.guest_mode());
  EXPECT_EQ(state.cr4 & ~guest.host.register_limits.cr4, 0u);
  EXPECT_EQ(state.efer & ~guest.host.register_limits.efer, 0u);
  EXPECT_EQ(state.cr3 & ~guest.host.register_limits.cr3, 0u);
}

// Another processor writes to the VMCS while the guest runs: no access straddles pages, so none
// goes past what `Wrote` tells.
TEST(Exit, FindsThePagesAndListsOfAVmcsAligned) {
  TestGuest guest;
  guest.SetControls(field::kPrimaryControls, primary::kTprShadow);
  guest.Set(field::kVirtualApic, TestGuest::kBitmap);
  guest.host.msrs[0x277] = 0x55;
  const std::uint64_t store[] = {0x277, 0};
  std::memcpy(guest.host.Memory(Gpa(TestGuest::kMsrs), 16), store, sizeof(store));
  guest.Set(field::kExitMsrStore, TestGuest::kMsrs);
  guest.Set(field::kExitMsrStoreCount, 1);
  ASSERT_TRUE(guest.Enter());
  guest.host.guest_interrupts.virtual_tpr = 5;
  guest.Set(field::kVirtualApic, TestGuest::kBitmap + 0xf80);
  guest.Set(field::kExitMsrStore, TestGuest::kMsrs + 15);
  ASSERT_TRUE(guest.Meet(Call()));
  EXPECT_EQ(std::to_integer<unsigned>(*guest.host.Memory(Gpa(TestGuest::kBitmap + 0x80), 1)),
            0x50u);
  std::uint64_t stored = 0;
  std::memcpy(&stored, guest.host.Memory(Gpa(TestGuest::kMsrs + 8), 8), 8);
  EXPECT_EQ(stored, 0x55u);
}

TEST(Injection, DeliversWhatTheFieldSays) {
  TestGuest guest;
  guest.Set(field::kEntryInterruption, 0x8000'0b0d);
  guest.Set(field::kEntryErrorCode, 0x55);
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.host.delivered);
  EXPECT_EQ(guest.host.delivered->vector, 13);
  EXPECT_EQ(guest.host.delivered->kind, DeliveredEvent::Kind::kException);
  EXPECT_EQ(guest.host.delivered->error_code, 0x55u);
  guest.host.on_its_way = guest.host.delivered;
  ASSERT_TRUE(guest.Meet({.what = Intercept::kShutdown}));
  EXPECT_EQ(guest.Get(field::kExitReason), 2u);
  EXPECT_EQ(guest.Get(field::kIdtVectoring), 0x8000'0b0du);
  EXPECT_EQ(guest.Get(field::kIdtVectoringErrorCode), 0x55u);
  EXPECT_EQ(guest.Get(field::kEntryInterruption), 0xb0du) << "not to be delivered again";
}

TEST(Injection, OfSoftwareEventsReturnsBehindTheInstruction) {
  TestGuest guest;
  guest.Set(field::kEntryInterruption, 0x8000'0480);
  guest.Set(field::kEntryInstructionLength, 2);
  ASSERT_TRUE(guest.Enter());
  EXPECT_EQ(guest.host.delivered->return_rip, TestGuest::kGuestRip + 2);
  EXPECT_TRUE(guest.host.delivered->checks_gate);
  guest.host.on_its_way = guest.host.delivered;
  ASSERT_TRUE(guest.Meet({.what = Intercept::kShutdown}));
  EXPECT_EQ(guest.Get(field::kInstructionLength), 2u);
}

TEST(Injection, OfAPendingMonitorTrapIsAStep) {
  TestGuest guest;
  guest.Set(field::kEntryInterruption, 0x8000'0700);
  ASSERT_TRUE(guest.Enter());
  EXPECT_TRUE(guest.host.entry->step_pending);
  EXPECT_FALSE(guest.host.delivered);
}

TEST(Boundary, TellsShadowsAndPendingDebugExceptionsBothWays) {
  TestGuest guest;
  guest.Set(field::kInterruptibility, kBlockedByMovSs | kBlockedByNmi);
  guest.Set(field::kGuestPendingDebug, 0x1001);
  ASSERT_TRUE(guest.Enter());
  EXPECT_TRUE(guest.host.state.interrupt_shadow);
  EXPECT_TRUE(guest.host.state.nmi_blocked);
  EXPECT_TRUE(guest.host.boundary_state.stack_shadow);
  EXPECT_EQ(guest.host.boundary_state.debug_causes, 1u);
  ASSERT_TRUE(guest.Meet(Call()));
  EXPECT_EQ(guest.Get(field::kInterruptibility), kBlockedByMovSs | kBlockedByNmi);
  EXPECT_EQ(guest.Get(field::kGuestPendingDebug), 0x1001u);
}

TEST(Interrupts, AreAcknowledgedIfTheExitIsTo) {
  TestGuest guest;
  guest.SetControls(field::kPinControls, pin::kInterruptExiting);
  ASSERT_TRUE(guest.Enter());
  EXPECT_TRUE(guest.host.guest_interrupts.interrupt_leaves);
  EXPECT_FALSE(guest.host.guest_interrupts.taken_on_leaving);
  ASSERT_TRUE(guest.Meet({.what = Intercept::kInterrupt}));
  EXPECT_EQ(guest.Get(field::kExitReason), 1u);
  EXPECT_EQ(guest.Get(field::kExitInterruption), 0u);
  guest.SetControls(field::kExitControls, exits::kAcknowledge);
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  EXPECT_TRUE(guest.host.guest_interrupts.taken_on_leaving);
  ASSERT_TRUE(guest.Meet({.what = Intercept::kInterrupt, .number = 0x41}));
  EXPECT_EQ(guest.Get(field::kExitInterruption), 0x8000'0041u);
}

TEST(Nmis, ThatLeaveBlockOthersInTheHypervisor) {
  TestGuest guest;
  guest.SetControls(field::kPinControls, pin::kNmiExiting | pin::kVirtualNmis);
  guest.Set(field::kInterruptibility, kBlockedByNmi);
  ASSERT_TRUE(guest.Enter());
  EXPECT_TRUE(guest.host.guest_interrupts.virtual_nmis);
  ASSERT_TRUE(guest.Meet(Call()));
  EXPECT_FALSE(guest.host.state.nmi_blocked) << "virtual ones were";
  ASSERT_TRUE(guest.Execute(VirtInstruction::kVmresume));
  ASSERT_TRUE(guest.Meet({.what = Intercept::kNmi}));
  EXPECT_EQ(guest.Get(field::kExitReason), 0u);
  EXPECT_EQ(guest.Get(field::kExitInterruption), 0x8000'0202u);
  EXPECT_TRUE(guest.host.state.nmi_blocked);
}

// -- MSRs

TEST(CapabilityMsrs, AgreeWithOneAnotherAndCannotBeWritten) {
  TestGuest guest;
  const auto read = [&guest](std::uint32_t index) {
    std::uint64_t value = 0;
    EXPECT_EQ(guest.unit.ReadMsr(guest.host, index, value), VirtUnit::MsrAnswer::kDone);
    return value;
  };
  for (unsigned i = 0; i < 4; ++i) {
    const std::uint64_t plain = read(kMsrPinControls + i), exact = read(kMsrTruePinControls + i);
    EXPECT_EQ(plain >> 32, exact >> 32) << "what may be 1";
    EXPECT_EQ(exact & ~plain & 0xffff'ffff, 0u) << "the true MSR requires less";
    EXPECT_EQ((plain & 0xffff'ffff) & ~(plain >> 32), 0u) << "what must be may be";
  }
  EXPECT_EQ(read(kMsrFeatureControl), 5u);
  EXPECT_EQ(read(kMsrVmcsEnum), 0x32u);
  EXPECT_EQ(guest.unit.WriteMsr(guest.host, kMsrFeatureControl, 0), VirtUnit::MsrAnswer::kRefused);
  EXPECT_EQ(guest.unit.WriteMsr(guest.host, kMsrBasic, 0), VirtUnit::MsrAnswer::kRefused);
  std::uint64_t value = 0;
  EXPECT_EQ(guest.unit.ReadMsr(guest.host, kMsrVmfunc + 1, value), VirtUnit::MsrAnswer::kUnknown);
  EXPECT_EQ(guest.unit.ReadMsr(guest.host, 0x10, value), VirtUnit::MsrAnswer::kUnknown);
}

TEST(CapabilityMsrs, LeaveOutWhatTheProcessorHasNot) {
  FakeVirtHost host;
  host.missing_features = {"rdtscp"};
  std::uint64_t value = 0;
  VmxUnit().ReadMsr(host, kMsrSecondaryControls, value);
  EXPECT_EQ(value >> 32 & secondary::kRdtscp, 0u);
  EXPECT_NE(value >> 32 & secondary::kInvpcid, 0u);
  VmxUnit().ReadMsr(host, kMsrEntryControls, value);
  EXPECT_NE(value >> 32 & entry::kLoadCet, 0u);
  host.missing_features = {"shstk", "ibt"};
  VmxUnit().ReadMsr(host, kMsrEntryControls, value);
  EXPECT_EQ(value >> 32 & entry::kLoadCet, 0u);
}

}  // namespace
}  // namespace pagesaw::vmx
