#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.plugins.svm.test_guest;

namespace pagesaw::svm {
namespace {

constexpr std::uint64_t kInvalid = ~std::uint64_t{0};

class SvmUnitTest : public testing::Test, protected TestGuest {
 protected:
  // VMRUN, which must enter the guest.
  void Enter() { ASSERT_TRUE(EnterGuest()); }
};

TEST_F(SvmUnitTest, IsUndefinedWhereItIsOff) {
  host_.state.efer &= ~std::uint64_t{0x1000};
  for (const auto instruction :
       {VirtInstruction::kVmrun, VirtInstruction::kVmload, VirtInstruction::kVmsave,
        VirtInstruction::kStgi, VirtInstruction::kClgi, VirtInstruction::kInvlpga}) {
    host_.undefined = false;
    EXPECT_FALSE(Execute(instruction));
    EXPECT_TRUE(host_.undefined);
  }
}

TEST_F(SvmUnitTest, IsTheKernelsOwn) {
  host_.state.segments[kSs].attributes |= 0x60;
  EXPECT_FALSE(Execute(VirtInstruction::kVmrun));
  EXPECT_TRUE(host_.general_protection);
}

TEST_F(SvmUnitTest, RefusesAddressesThatAreNoBlock) {
  for (const std::uint64_t address :
       {kBlock + 8, std::uint64_t{1} << 36, FakeVirtHost::kMemoryBytes}) {
    host_.general_protection = false;
    host_.state.gpr[kRax] = address;
    EXPECT_FALSE(Execute(VirtInstruction::kVmrun)) << address;
    EXPECT_TRUE(host_.general_protection) << address;
  }
}

struct Refused {
  std::string name;
  std::function<void(Vmcb&)> spoil;
};
void PrintTo(const Refused& refused, std::ostream* out) { *out << refused.name; }

class VmrunRefuses : public SvmUnitTest, public testing::WithParamInterface<Refused> {};

TEST_P(VmrunRefuses, Inconsistency) {
  Vmcb block = vmcb();
  GetParam().spoil(block);
  ASSERT_TRUE(Execute(VirtInstruction::kVmrun));
  EXPECT_FALSE(host_.guest_mode());
  EXPECT_EQ(block.Get(field::kExitCode), kInvalid);
  EXPECT_EQ(host_.state.rip, 0x5003u);
  EXPECT_FALSE(host_.guest_interrupts.open);
}

// [amd/vol2] "Canonicalization and Consistency Checks"
INSTANTIATE_TEST_SUITE_P(
    Rules, VmrunRefuses,
    testing::Values(
        Refused{"VmrunNotIntercepted", [](Vmcb& b) { b.Set(field::kIntercept4, 2); }},
        Refused{"AsidZero", [](Vmcb& b) { b.Set(field::kAsid, 0); }},
        Refused{"SvmOff", [](Vmcb& b) { b.Set(field::kEfer, 0xd00); }},
        Refused{"EferReserved", [](Vmcb& b) { b.Set(field::kEfer, 0x1'1d00); }},
        Refused{"Cr0NwWithoutCd", [](Vmcb& b) { b.Set(field::kCr0, 0xa000'0011); }},
        Refused{"Cr0Upper", [](Vmcb& b) { b.Set(field::kCr0, 0x1'8000'0011); }},
        Refused{"Cr3Reserved", [](Vmcb& b) { b.Set(field::kCr3, std::uint64_t{1} << 36); }},
        Refused{"Cr4Reserved", [](Vmcb& b) { b.Set(field::kCr4, 0x100'0020); }},
        Refused{"CetWithoutWp", [](Vmcb& b) { b.Set(field::kCr4, 0x80'0020); }},
        Refused{"CetReserved", [](Vmcb& b) { b.Set(field::kSupervisorCet, 4); }},
        Refused{"LongModeWithoutPae", [](Vmcb& b) { b.Set(field::kCr4, 0); }},
        Refused{"LongModeWithoutPe", [](Vmcb& b) { b.Set(field::kCr0, 0x8000'0010); }},
        Refused{"LongAndBig",
                [](Vmcb& b) { b.SetSegment(SegmentField::kCs, {.attributes = 0xe09b}); }},
        Refused{"Dr6Upper", [](Vmcb& b) { b.Set(field::kDr6, 0x1'ffff'0ff0); }},
        Refused{"Dr7Upper", [](Vmcb& b) { b.Set(field::kDr7, 0x1'0000'0400); }},
        Refused{"MsrMapBeyondTheWidth",
                [](Vmcb& b) {
                  b.Set(field::kIntercept3, 1u << 28);
                  b.Set(field::kMsrPermissions, (std::uint64_t{1} << 36) - kPageBytes);
                }},
        Refused{"IoMapBeyondTheWidth",
                [](Vmcb& b) {
                  b.Set(field::kIntercept3, 1u << 27);
                  b.Set(field::kIoPermissions, (std::uint64_t{1} << 36) - 2 * kPageBytes);
                }},
        Refused{"VirtualNmisWithoutTheirIntercept",
                [](Vmcb& b) { b.Set(field::kVirtualInterrupt, 1u << 26); }},
        Refused{"ReservedEventType", [](Vmcb& b) { b.Set(field::kEventInjection, 0x8000'0120); }},
        Refused{"NmiAsException", [](Vmcb& b) { b.Set(field::kEventInjection, 0x8000'0302); }},
        Refused{"ExceptionBeyond31", [](Vmcb& b) { b.Set(field::kEventInjection, 0x8000'0320); }},
        Refused{"PdpteReserved",
                [](Vmcb& b) {
                  // PAE paging, with the control block as the table.
                  b.Set(field::kEfer, 0x1000);
                  b.SetSegment(SegmentField::kCs, {.attributes = 0xc09b});
                  b.Set(field::kCr3, TestGuest::kBlock + 0xfe0);
                  b.Set(Field<std::uint64_t>{0xfe8}, 0x7);
                }}),
    [](const auto& info) { return info.param.name; });

TEST_F(SvmUnitTest, EntersTheGuestAndComesBack) {
  host_.state.cr2 = 5;
  Enter();
  EXPECT_EQ(host_.state.rip, 0x6000u);
  EXPECT_EQ(host_.state.cr3, 0x3000u);
  EXPECT_TRUE(host_.guest_interrupts.open);
  host_.state.rip = 0x6100;
  host_.state.cr3 = 0x9000;
  host_.state.gpr[kRax] = 77;
  host_.state.gpr[kRbx] = 78;
  EXPECT_FALSE(Execute(VirtInstruction::kVmmcall));
  ASSERT_TRUE(host_.left_for);
  EXPECT_EQ(Meet(*host_.left_for), 0x81u);
  EXPECT_FALSE(host_.guest_mode());
  EXPECT_FALSE(host_.guest_interrupts.open);
  EXPECT_EQ(host_.state.rip, 0x5003u);
  EXPECT_EQ(host_.state.cr3, 0x2000u);
  EXPECT_EQ(host_.state.gpr[kRax], kBlock);
  EXPECT_EQ(host_.state.gpr[kRbx], 78u);  // the world switch leaves it alone
  EXPECT_EQ(vmcb().Get(field::kRip), 0x6100u);
  EXPECT_EQ(vmcb().Get(field::kNextRip), 0x6103u);
  EXPECT_EQ(vmcb().Get(field::kCr3), 0x9000u);
  EXPECT_EQ(vmcb().Get(field::kRax), 77u);
}

struct Met {
  std::string name;
  Field<std::uint32_t> word;
  unsigned bit;
  InterceptedEvent event;
  std::uint64_t code;
};
void PrintTo(const Met& met, std::ostream* out) { *out << met.name; }

class Intercepted : public SvmUnitTest, public testing::WithParamInterface<Met> {};

TEST_P(Intercepted, OnlyIfItsBitIsSet) {
  const Met& met = GetParam();
  Enter();
  EXPECT_EQ(Meet(met.event), 0u);
  vmcb().Set(met.word, vmcb().Get(met.word) | 1u << met.bit);
  host_.LeaveGuestMode();
  host_.state.gpr[kRax] = kBlock;
  host_.state.cr0 = 0x8000'0011;
  Enter();
  if (met.event.what != Intercept::kException) {
    EXPECT_TRUE(host_.entry->intercepts.Has(met.event.what));
  } else {
    EXPECT_EQ(host_.entry->exceptions, 1u << met.bit);
  }
  EXPECT_EQ(Meet(met.event), met.code);
}

// [amd/vol2] "SVM Intercept Exit Codes"
INSTANTIATE_TEST_SUITE_P(
    Codes, Intercepted,
    testing::Values(
        Met{"Interrupt", field::kIntercept3, 0, {.what = Intercept::kInterrupt}, 0x60},
        Met{"Nmi", field::kIntercept3, 1, {.what = Intercept::kNmi}, 0x61},
        Met{"Init", field::kIntercept3, 3, {.what = Intercept::kInit}, 0x63},
        Met{"Virtual", field::kIntercept3, 4, {.what = Intercept::kVirtualInterrupt}, 0x64},
        Met{"Sidt", field::kIntercept3, 6, {.what = Intercept::kReadIdtr}, 0x66},
        Met{"Ltr", field::kIntercept3, 13, {.what = Intercept::kWriteTr}, 0x6d},
        Met{"Rdtsc", field::kIntercept3, 14, {.what = Intercept::kRdtsc}, 0x6e},
        Met{"Pushf", field::kIntercept3, 16, {.what = Intercept::kPushf}, 0x70},
        Met{"Cpuid", field::kIntercept3, 18, {.what = Intercept::kCpuid}, 0x72},
        Met{"Iret", field::kIntercept3, 20, {.what = Intercept::kIret}, 0x74},
        Met{"IntN", field::kIntercept3, 21, {.what = Intercept::kSoftwareInterrupt}, 0x75},
        Met{"Pause", field::kIntercept3, 23, {.what = Intercept::kPause}, 0x77},
        Met{"Hlt", field::kIntercept3, 24, {.what = Intercept::kHlt}, 0x78},
        Met{"Invlpg", field::kIntercept3, 25, {.what = Intercept::kInvlpg}, 0x79},
        Met{"TaskSwitch", field::kIntercept3, 29, {.what = Intercept::kTaskSwitch}, 0x7d},
        Met{"Shutdown", field::kIntercept3, 31, {.what = Intercept::kShutdown}, 0x7f},
        Met{"Rdtscp", field::kIntercept4, 7, {.what = Intercept::kRdtscp}, 0x87},
        Met{"Icebp", field::kIntercept4, 8, {.what = Intercept::kIcebp}, 0x88},
        Met{"Wbinvd", field::kIntercept4, 9, {.what = Intercept::kWbinvd}, 0x89},
        Met{"Xsetbv", field::kIntercept4, 13, {.what = Intercept::kXsetbv}, 0x8d},
        Met{"Invpcid", field::kIntercept5, 2, {.what = Intercept::kInvpcid}, 0xa2},
        Met{"ReadCr3",
            field::kInterceptControl,
            3,
            {.what = Intercept::kReadControl, .number = 3},
            0x03},
        Met{"WriteCr4",
            field::kInterceptControl,
            20,
            {.what = Intercept::kWriteControl, .number = 4},
            0x14},
        Met{"Clts", field::kInterceptControl, 16, {.what = Intercept::kClts}, 0x10},
        Met{"SelectiveLmsw",
            field::kIntercept3,
            5,
            {.what = Intercept::kLmsw, .value = 0x11},
            0x65},
        Met{"SelectiveCr0",
            field::kIntercept3,
            5,
            {.what = Intercept::kWriteControl, .number = 0, .value = 0xc000'0011},
            0x65},
        Met{"ReadDr7",
            field::kInterceptDebug,
            7,
            {.what = Intercept::kReadDebug, .number = 7},
            0x27},
        Met{"WriteDr0", field::kInterceptDebug, 16, {.what = Intercept::kWriteDebug}, 0x30}),
    [](const auto& info) { return info.param.name; });

TEST_F(SvmUnitTest, NestedPagingIsEnteredAndItsFaultsLeaveIt) {
  constexpr std::uint64_t kGuestPat = 0x0606'0606'0606'0606;
  host_.state.pat = 0x0007'0406'0007'0406;
  vmcb().Set(field::kNestedControl, 1);
  vmcb().Set(field::kNestedCr3, 0x9000);
  vmcb().Set(field::kGuestPat, kGuestPat);
  Enter();
  ASSERT_TRUE(host_.entry->nested);
  EXPECT_EQ(host_.entry->nested->root, Gpa(0x9000));
  EXPECT_EQ(host_.state.pat, kGuestPat);
  host_.state.pat ^= 0x0606;
  host_.on_its_way = DeliveredEvent{.vector = 0x30};
  unit_.MeetNestedFault(host_, {.address = Gpa(0x1234), .access = Access::Write(Privilege::kUser)});
  EXPECT_FALSE(host_.guest_mode());
  EXPECT_EQ(vmcb().Get(field::kExitCode), 0x400u);
  EXPECT_EQ(vmcb().Get(field::kExitInfo1), 0x1'0000'0006u);
  EXPECT_EQ(vmcb().Get(field::kExitInfo2), 0x1234u);
  EXPECT_EQ(vmcb().Get(field::kExitInterrupt), 0x8000'0030u);
  EXPECT_EQ(vmcb().Get(field::kGuestPat), kGuestPat ^ 0x0606);
  EXPECT_EQ(host_.state.pat, 0x0007'0406'0007'0406u);
}

TEST_F(SvmUnitTest, NestedPagingOfAHypervisorThatDoesNotPageIsRefused) {
  vmcb().Set(field::kNestedControl, 1);
  host_.state.cr0 = 1;
  host_.state.efer = 0x1000;
  ASSERT_TRUE(Execute(VirtInstruction::kVmrun));
  EXPECT_FALSE(host_.guest_mode());
  EXPECT_EQ(vmcb().Get(field::kExitCode), kInvalid);
}

TEST_F(SvmUnitTest, TheTlbControlReachesNestedTables) {
  using Scope = NestedInvalidation::Scope;
  struct Row {
    std::uint64_t control;
    std::vector<NestedInvalidation> gone;
  };
  const NestedInvalidation of_guest = {.scope = Scope::kTag, .tag = 1};
  for (const Row& row : {Row{0, {}}, Row{1, {{}}}, Row{3, {of_guest}}, Row{7, {of_guest}}}) {
    host_.invalidated.clear();
    host_.entry.reset();
    Describe();
    vmcb().Set(field::kTlbControl, row.control);
    host_.state.gpr[kRax] = kBlock;
    Enter();
    EXPECT_EQ(host_.invalidated, row.gone) << row.control;
    unit_.Leave(host_, {.what = Intercept::kShutdown});
  }
}

TEST_F(SvmUnitTest, SelectiveCr0DoesNotMindMpAndTs) {
  vmcb().Set(field::kIntercept3, 1u << 5);
  Enter();
  EXPECT_EQ(Meet({.what = Intercept::kWriteControl, .number = 0, .value = 0x8000'001b}), 0u);
}

TEST_F(SvmUnitTest, PageFaultsTellErrorAndAddress) {
  vmcb().Set(field::kInterceptExceptions, 1u << 14);
  Enter();
  host_.on_its_way = {.kind = DeliveredEvent::Kind::kException,
                      .vector = 13,
                      .has_error_code = true,
                      .error_code = 0x28};
  EXPECT_EQ(Meet({.what = Intercept::kException,
                  .number = 14,
                  .value = 0xdead'0000,
                  .has_error_code = true,
                  .error_code = 6}),
            0x4eu);
  EXPECT_EQ(vmcb().Get(field::kExitInfo1), 6u);
  EXPECT_EQ(vmcb().Get(field::kExitInfo2), 0xdead'0000u);
  EXPECT_EQ(vmcb().Get(field::kExitInterrupt), 0x28'8000'0b0du);
}

TEST_F(SvmUnitTest, PortsByTheirMap) {
  vmcb().Set(field::kIntercept3, 1u << 27);
  *host_.Memory(Gpa(kIoMap + 0x60 / 8), 1) = std::byte{1 << 1};  // port 61h
  Enter();
  const auto in = [](std::uint16_t port, std::uint8_t bytes) {
    return InterceptedEvent{.what = Intercept::kIo,
                            .instruction_bytes = 2,
                            .io = {.port = port, .bytes = bytes, .in = true}};
  };
  EXPECT_EQ(Meet(in(0x60, 1)), 0u);
  EXPECT_EQ(Meet(in(0x62, 4)), 0u);
  EXPECT_EQ(Meet(in(0x60, 2)), 0x7bu);
  EXPECT_EQ(vmcb().Get(field::kExitInfo1), 0x0060'0021u);
  EXPECT_EQ(vmcb().Get(field::kExitInfo2), 0x6002u);
}

TEST_F(SvmUnitTest, MsrsByTheirMapAndAlwaysWhereItHasNone) {
  vmcb().Set(field::kIntercept3, 1u << 28);
  *host_.Memory(Gpa(kMsrMap + 0x800 + 0x80 / 4), 1) = std::byte{1 << 1};  // writes of C0000080h
  Enter();
  EXPECT_EQ(Meet({.what = Intercept::kReadMsr, .number = 0xc000'0080}), 0u);
  EXPECT_EQ(Meet({.what = Intercept::kReadMsr, .number = 0x2000}), 0x7cu);
  EXPECT_EQ(vmcb().Get(field::kExitInfo1), 0u);
  host_.state.gpr[kRax] = kBlock;
  Enter();
  EXPECT_EQ(Meet({.what = Intercept::kWriteMsr, .number = 0xc000'0080}), 0x7cu);
  EXPECT_EQ(vmcb().Get(field::kExitInfo1), 1u);
}

TEST_F(SvmUnitTest, InjectsWhatItIsAskedFor) {
  vmcb().Set(field::kEventInjection, 0x55'8000'0b0d);
  Enter();
  ASSERT_TRUE(host_.delivered);
  EXPECT_EQ(host_.delivered->kind, DeliveredEvent::Kind::kException);
  EXPECT_EQ(host_.delivered->vector, 13u);
  EXPECT_TRUE(host_.delivered->has_error_code);
  EXPECT_EQ(host_.delivered->error_code, 0x55u);
  Meet({.what = Intercept::kShutdown});
}

TEST_F(SvmUnitTest, VirtualInterruptsAreTheHostsUntilTheyAreTaken) {
  vmcb().Set(field::kIntercept3, 1u << 31);
  vmcb().Set(field::kVirtualInterrupt, 0x0108'0103);  // V_INTR_MASKING, priority 8, V_IRQ, TPR 3
  vmcb().Set(field::kVirtualVector, 0x41);
  host_.state.rflags |= kFlagIf;
  Enter();
  const GuestInterrupts& interrupts = host_.guest_interrupts;
  EXPECT_TRUE(interrupts.by_host_flag);
  EXPECT_TRUE(interrupts.host_flag);
  EXPECT_TRUE(interrupts.virtual_pending);
  EXPECT_EQ(interrupts.virtual_vector, 0x41);
  EXPECT_EQ(interrupts.virtual_priority, 8);
  EXPECT_EQ(interrupts.virtual_tpr, 3);
  host_.guest_interrupts.virtual_pending = false;
  host_.guest_interrupts.virtual_tpr = 9;
  Meet({.what = Intercept::kShutdown});
  EXPECT_EQ(vmcb().Get(field::kVirtualInterrupt), 0x0108'0009u);
}

TEST_F(SvmUnitTest, VirtualFlagTakesTheGuestsStgi) {
  vmcb().Set(field::kVirtualInterrupt, 1u << 25);
  Enter();
  EXPECT_FALSE(host_.guest_interrupts.virtual_open);
  EXPECT_TRUE(Execute(VirtInstruction::kStgi));
  EXPECT_TRUE(host_.guest_interrupts.virtual_open);
  EXPECT_TRUE(Execute(VirtInstruction::kClgi));
  EXPECT_TRUE(host_.guest_interrupts.open);
}

TEST_F(SvmUnitTest, LoadsAndSavesTheRest) {
  host_.state.segments[kGs].base = 0x1000;
  host_.state.star = 0x1234;
  EXPECT_TRUE(Execute(VirtInstruction::kVmsave));
  EXPECT_EQ(vmcb().GetSegment(SegmentField::kGs).base, 0x1000u);
  EXPECT_EQ(vmcb().Get(field::kStar), 0x1234u);
  vmcb().Set(field::kKernelGsBase, 0x0000'8000'0000'0000);
  EXPECT_TRUE(Execute(VirtInstruction::kVmload));
  EXPECT_EQ(host_.state.kernel_gs_base, 0xffff'8000'0000'0000u);  // made canonical
}

TEST_F(SvmUnitTest, MsrsKeepTheirRules) {
  std::uint64_t value = 1;
  EXPECT_EQ(unit_.ReadMsr(host_, 0xc001'0117, value), VirtUnit::MsrAnswer::kDone);
  EXPECT_EQ(value, 0u);
  EXPECT_EQ(unit_.WriteMsr(host_, 0xc001'0117, 0x1008), VirtUnit::MsrAnswer::kRefused);
  EXPECT_EQ(unit_.WriteMsr(host_, 0xc001'0117, 0x5000), VirtUnit::MsrAnswer::kDone);
  // SVMDIS: not while SVM is on; once locked, it stays.
  EXPECT_EQ(unit_.WriteMsr(host_, 0xc001'0114, 0x10), VirtUnit::MsrAnswer::kRefused);
  host_.state.efer = 0xd00;
  EXPECT_EQ(unit_.WriteMsr(host_, 0xc001'0114, 0x18), VirtUnit::MsrAnswer::kDone);
  EXPECT_FALSE(unit_.MayBeEnabled());
  EXPECT_EQ(unit_.WriteMsr(host_, 0xc001'0114, 0), VirtUnit::MsrAnswer::kDone);
  EXPECT_FALSE(unit_.MayBeEnabled());
  EXPECT_EQ(unit_.ReadMsr(host_, 0x10, value), VirtUnit::MsrAnswer::kUnknown);
}

}  // namespace
}  // namespace pagesaw::svm
