#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

import pagesaw.core.address;
import pagesaw.core.guest_mode;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.core.virt_extension;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

// STGI enters guest mode with everything intercepted; whatever then comes leads to a HLT.
class ProbeUnit final : public VirtUnit {
 public:
  static constexpr std::uint64_t kBehind = 0x3000;

  bool Execute(VirtHost& host, const InterceptedEvent& event) override {
    if (host.guest_mode()) return host.LeaveFor(event);
    GuestEntry entry = wanted;
    if (now_plus != 0) entry.deadline = deadline = host.Tsc() + now_plus;
    if (switches_to) host.SwitchState(*switches_to);
    entry.exceptions = ~0u;
    for (unsigned i = 0; i < static_cast<unsigned>(Intercept::kStep); ++i) {
      entry.intercepts.Add(static_cast<Intercept>(i));
    }
    entry.nested = nested;
    if (loads_tsc && !host.WriteMsr(0x10, *loads_tsc)) return host.RaiseUndefined();
    host.interrupts() = interrupts;
    if (invalidated) host.InvalidateNested(*invalidated);
    host.EnterGuestMode(entry);
    if (injected) host.Deliver(*injected);
    return true;
  }
  bool Leaves(VirtHost&, const InterceptedEvent&) override { return leaves; }
  void MeetNestedFault(VirtHost& host, const NestedFault& fault) override {
    nested_fault = fault;
    GoBehind(host);
  }
  void Leave(VirtHost& host, const InterceptedEvent& event) override {
    met = event;
    boundary = host.boundary();
    GoBehind(host);
  }
  void GoBehind(VirtHost& host) {
    delivered = host.TakeDelivered();
    CpuState state = host.State();
    guest_rip = state.rip;
    state.rip = kBehind;
    state.rflags &= ~kFlagTf;
    if (cr3_behind != 0) state.cr3 = cr3_behind;
    host.LeaveGuestMode();
    host.SwitchState(state);
  }
  MsrAnswer ReadMsr(VirtHost&, std::uint32_t, std::uint64_t&) const override {
    return MsrAnswer::kUnknown;
  }
  MsrAnswer WriteMsr(VirtHost&, std::uint32_t, std::uint64_t) override {
    return MsrAnswer::kUnknown;
  }
  bool MayBeEnabled() const override { return true; }

  GuestInterrupts interrupts;
  std::uint64_t now_plus = 0;  // until the deadline
  std::uint64_t deadline = 0;
  std::optional<CpuState> switches_to;
  GuestEntry wanted;  // besides everything that instructions and events are
  std::optional<DeliveredEvent> injected;
  std::optional<NestedPaging> nested;
  std::optional<NestedInvalidation> invalidated;
  std::optional<std::uint64_t> loads_tsc;
  bool leaves = true;
  std::uint64_t cr3_behind = 0;

  std::optional<InterceptedEvent> met;
  BoundaryState boundary;
  std::optional<NestedFault> nested_fault;
  std::optional<DeliveredEvent> delivered;
  std::uint64_t guest_rip = 0;
};

class ProbeExtension final : public VirtExtension {
 public:
  std::string_view name() const override { return "probe"; }
  std::string_view vendor() const override { return "probe"; }
  std::string_view cpuid_vendor() const override { return "AuthenticAMD"; }
  ExitDescription Describe(const TableFault&, const PageFormat&) const override { return {}; }
  void AdjustCpuid(std::uint32_t, std::uint32_t, CpuidResult&) const override {}
  std::string_view feature() const override { return "svm"; }
  std::unique_ptr<VirtUnit> MakeUnit() const override {
    auto unit = std::make_unique<ProbeUnit>();
    last = unit.get();
    return unit;
  }
  void AdjustPagingFeatures(bool&, std::uint8_t&, unsigned) const override {}

  mutable ProbeUnit* last = nullptr;
};

class GuestModeTest : public testing::Test {
 protected:
  // Runs `code` in guest mode, until the HLT behind it.
  void RunGuest(Bytes code) {
    const Bytes stgi = {0x0f, 0x01, 0xdc};
    code.insert(code.begin(), stgi.begin(), stgi.end());
    const Bytes hlt = {0xf4};
    machine_.Write(ProbeUnit::kBehind, hlt);
    Exit exit = machine_.RunCode(code);
    // One stage: a switch of the state is told outside.
    while (exit.reason == ExitReason::kPagingChanged) exit = machine_.processor().Run(1000);
    EXPECT_EQ(exit.reason, ExitReason::kHalt);
  }

  ProbeUnit& unit() { return *extension_.last; }
  CpuState State() { return machine_.processor().GetState(); }

  ProbeExtension extension_;
  TestProcessor machine_{std::get<CpuModel>(MakeModel({.extension = &extension_}))};
};

constexpr std::uint64_t kGuest = TestProcessor::kCode + 3;

struct Row {
  std::string name;
  Bytes code;
  Intercept what;
  std::uint32_t number = 0;
};
void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

class Intercepts : public GuestModeTest, public testing::WithParamInterface<Row> {};

TEST_P(Intercepts, TheInstructionDoesNotHappen) {
  const Row& row = GetParam();
  CpuState state = State();
  state.cr4 |= 1u << 18;  // OSXSAVE, for XSETBV
  machine_.processor().SetState(state);
  RunGuest(row.code);
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, row.what);
  EXPECT_EQ(unit().met->number, row.number);
  EXPECT_EQ(unit().guest_rip, kGuest);
  if (row.what != Intercept::kException) {
    EXPECT_EQ(unit().met->instruction_bytes, row.code.size());
  }
  EXPECT_FALSE(unit().delivered);
}

INSTANTIATE_TEST_SUITE_P(
    Instructions, Intercepts,
    testing::Values(
        Row{"Cpuid", {0x0f, 0xa2}, Intercept::kCpuid}, Row{"Hlt", {0xf4}, Intercept::kHlt},
        Row{"Invd", {0x0f, 0x08}, Intercept::kInvd},
        Row{"Wbinvd", {0x0f, 0x09}, Intercept::kWbinvd},
        Row{"Invlpg", {0x0f, 0x01, 0x38}, Intercept::kInvlpg},
        Row{"Rdtsc", {0x0f, 0x31}, Intercept::kRdtsc},
        Row{"Rdtscp", {0x0f, 0x01, 0xf9}, Intercept::kRdtscp},
        Row{"Rdpmc", {0x0f, 0x33}, Intercept::kRdpmc},
        Row{"Rdrand", {0x0f, 0xc7, 0xf0}, Intercept::kRdrand},
        Row{"Rdseed", {0x0f, 0xc7, 0xf8}, Intercept::kRdseed},
        Row{"Rsm", {0x0f, 0xaa}, Intercept::kRsm}, Row{"Pause", {0xf3, 0x90}, Intercept::kPause},
        Row{"Xsetbv", {0x0f, 0x01, 0xd1}, Intercept::kXsetbv},
        Row{"Pushf", {0x9c}, Intercept::kPushf}, Row{"Popf", {0x9d}, Intercept::kPopf},
        Row{"Iret", {0x48, 0xcf}, Intercept::kIret},
        Row{"IntN", {0xcd, 0x30}, Intercept::kSoftwareInterrupt, 0x30},
        Row{"Icebp", {0xf1}, Intercept::kIcebp}, Row{"In", {0xe4, 0x60}, Intercept::kIo},
        Row{"Out", {0xe7, 0x60}, Intercept::kIo}, Row{"Ins", {0x6c}, Intercept::kIo},
        Row{"Outs", {0x6f}, Intercept::kIo}, Row{"Rdmsr", {0x0f, 0x32}, Intercept::kReadMsr},
        Row{"Wrmsr", {0x0f, 0x30}, Intercept::kWriteMsr},
        Row{"ReadCr3", {0x0f, 0x20, 0xd8}, Intercept::kReadControl, 3},
        Row{"WriteCr4", {0x0f, 0x22, 0xe0}, Intercept::kWriteControl, 4},
        Row{"Clts", {0x0f, 0x06}, Intercept::kClts},
        Row{"Lmsw", {0x0f, 0x01, 0xf0}, Intercept::kLmsw},
        Row{"Smsw", {0x0f, 0x01, 0xe0}, Intercept::kSmsw},
        Row{"ReadDr7", {0x0f, 0x21, 0xf8}, Intercept::kReadDebug, 7},
        Row{"WriteDr0", {0x0f, 0x23, 0xc0}, Intercept::kWriteDebug, 0},
        Row{"Sgdt", {0x0f, 0x01, 0x00}, Intercept::kReadGdtr},
        Row{"Sidt", {0x0f, 0x01, 0x08}, Intercept::kReadIdtr},
        Row{"Lgdt", {0x0f, 0x01, 0x10}, Intercept::kWriteGdtr},
        Row{"Lidt", {0x0f, 0x01, 0x18}, Intercept::kWriteIdtr},
        Row{"Sldt", {0x0f, 0x00, 0xc0}, Intercept::kReadLdtr},
        Row{"Str", {0x0f, 0x00, 0xc8}, Intercept::kReadTr},
        Row{"Lldt", {0x0f, 0x00, 0xd0}, Intercept::kWriteLdtr},
        Row{"Ltr", {0x0f, 0x00, 0xd8}, Intercept::kWriteTr},
        Row{"Vmrun", {0x0f, 0x01, 0xd8}, Intercept::kInstruction},
        Row{"Vmmcall", {0x0f, 0x01, 0xd9}, Intercept::kInstruction},
        Row{"Undefined", {0x0f, 0x0b}, Intercept::kException, 6},
        Row{"Int3", {0xcc}, Intercept::kException, 3}),
    [](const auto& info) { return info.param.name; });

TEST_F(GuestModeTest, ChecksOfPrivilegeComeFirst) {
  RunGuest({0x0f, 0x20, 0xc8});  // mov rax, cr1: #UD, no read of a control register
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kException);
  EXPECT_EQ(unit().met->number, 6u);
}

TEST_F(GuestModeTest, WhatTheUnitDoesNotMindHappens) {
  unit().leaves = false;
  RunGuest({0x0f, 0x06, 0xb8, 7, 0, 0, 0, 0xf4});  // clts; mov eax, 7; hlt
  EXPECT_FALSE(unit().met);
  EXPECT_EQ(State().gpr[kRax], 7u);
}

TEST_F(GuestModeTest, AFaultOnTheWayOfAnEventTellsTheEvent) {
  unit().injected =
      DeliveredEvent{.kind = DeliveredEvent::Kind::kExternalInterrupt, .vector = 0x40};
  CpuState state = State();
  state.idtr.limit = 0;
  machine_.processor().SetState(state);
  RunGuest({0x90});
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kException);
  EXPECT_EQ(unit().met->number, 13u);
  ASSERT_TRUE(unit().delivered);
  EXPECT_EQ(unit().delivered->kind, DeliveredEvent::Kind::kExternalInterrupt);
  EXPECT_EQ(unit().delivered->vector, 0x40);
}

TEST_F(GuestModeTest, AVirtualInterruptWaitsForTheGuestsFlag) {
  unit().interrupts = {.virtual_pending = true, .virtual_vector = 0x41, .virtual_priority = 1};
  RunGuest({0x90, 0xfb, 0x90, 0x90});  // nop; sti; nop; nop
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kVirtualInterrupt);
  EXPECT_EQ(unit().guest_rip, kGuest + 3);
}

TEST_F(GuestModeTest, AnInterruptThatLeavesMindsNoShadowAndIsNotTaken) {
  unit().interrupts = {.by_host_flag = true, .host_flag = true, .interrupt_leaves = true};
  machine_.Write(TestProcessor::kCode, Bytes{0x0f, 0x01, 0xdc, 0xeb, 0xfe});  // stgi; jmp here
  machine_.processor().Run(100);
  ASSERT_TRUE(machine_.processor().CanTakeInterrupt());
  bool acknowledged = false;
  machine_.processor().TakeInterrupt([&acknowledged] {
    acknowledged = true;
    return std::uint8_t{0};
  });
  EXPECT_FALSE(acknowledged);
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kInterrupt);
  EXPECT_EQ(unit().guest_rip, kGuest);
}

TEST_F(GuestModeTest, AStepEndsBehindOneInstruction) {
  unit().wanted.intercepts.Add(Intercept::kStep);
  RunGuest({0x90, 0x90, 0x90});
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kStep);
  EXPECT_EQ(unit().guest_rip, kGuest + 1);
}

TEST_F(GuestModeTest, APendingStepEndsBeforeTheFirstInstruction) {
  unit().wanted.step_pending = true;
  RunGuest({0x90, 0x90});
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kStep);
  EXPECT_EQ(unit().guest_rip, kGuest);
}

TEST_F(GuestModeTest, AStepBehindAnInjectedEventIsItsHandlersFirstInstruction) {
  unit().wanted.intercepts.Add(Intercept::kStep);
  unit().injected = DeliveredEvent{.kind = DeliveredEvent::Kind::kNmi, .vector = 2};
  CpuState state = State();
  state.idtr.limit = 0;  // its delivery faults, which is told instead of the step
  machine_.processor().SetState(state);
  RunGuest({0x90});
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kException);
}

TEST_F(GuestModeTest, ADeadlineThatIsOverEndsAtOnceAndOneThatIsNotLater) {
  unit().wanted.deadline = 0;
  RunGuest({0x90});
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kDeadline);
  EXPECT_EQ(unit().guest_rip, kGuest);
}

TEST_F(GuestModeTest, ADeadlineIsMetWhileTheGuestLoopsOrHalts) {
  for (const Bytes& code : {Bytes{0xeb, 0xfe}, Bytes{0xf4}}) {
    machine_.processor().SetState(State());
    unit().met.reset();
    unit().leaves = false;  // HLT happens
    unit().now_plus = 100'000;
    Bytes all = {0x0f, 0x01, 0xdc};
    all.insert(all.end(), code.begin(), code.end());
    machine_.Write(ProbeUnit::kBehind, Bytes{0xf4});
    Exit exit = machine_.RunCode(all);
    while (!unit().met) exit = machine_.processor().Run(100'000);
    EXPECT_EQ(unit().met->what, Intercept::kDeadline);
  }
}

TEST_F(GuestModeTest, NobodyReadsATimeBehindTheDeadline) {
  unit().leaves = false;
  unit().now_plus = 2'000'000;
  // here: rdtsc; shl rdx, 32; or rax, rdx; mov rbx, rax; jmp here
  RunGuest({0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0xc3, 0xeb, 0xf2});
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kDeadline);
  EXPECT_LT(State().gpr[kRbx], unit().deadline);
}

TEST_F(GuestModeTest, ATrapThatIsInterceptedIsToldOnce) {
  unit().switches_to = State();
  unit().switches_to->rip = kGuest;
  unit().switches_to->rflags |= kFlagTf;
  RunGuest({0x90, 0x90});
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kException);
  EXPECT_EQ(unit().met->number, 1u);
  EXPECT_EQ(unit().guest_rip, kGuest + 1);
  EXPECT_EQ(unit().boundary.debug_causes, 0u);
}

TEST_F(GuestModeTest, InitWaitsOrIsTakenAndAStartUpMessageWakesWhoWaitsForIt) {
  machine_.Write(TestProcessor::kCode, Bytes{0x0f, 0x01, 0xdc, 0xeb, 0xfe});
  const CpuState state = State();
  for (const bool taken : {false, true}) {
    machine_.processor().SetState(state);
    unit().interrupts = {.init_taken_on_leaving = taken};
    while (machine_.processor().Run(100).reason == ExitReason::kPagingChanged) {
    }
    EXPECT_FALSE(machine_.processor().TakeStartUp(5)) << "it does not wait for one";
    EXPECT_EQ(machine_.processor().TakeInit(), taken ? InitAnswer::kTaken : InitAnswer::kWaits);
    EXPECT_EQ(unit().met->what, Intercept::kInit);
  }
  unit().switches_to = state;
  unit().switches_to->activity = Activity::kWaitForSipi;
  machine_.processor().SetState(state);
  Exit exit = machine_.processor().Run(100);
  while (exit.reason == ExitReason::kPagingChanged) exit = machine_.processor().Run(100);
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  EXPECT_FALSE(machine_.processor().CanTakeInit());
  EXPECT_FALSE(machine_.processor().CanTakeNmi());
  EXPECT_TRUE(machine_.processor().TakeStartUp(5));
  EXPECT_EQ(unit().met->what, Intercept::kStartUp);
  EXPECT_EQ(unit().met->number, 5u);
}

TEST_F(GuestModeTest, AnInterruptWindowOpensBehindTheShadowOfSti) {
  unit().wanted.intercepts.Add(Intercept::kInterruptWindow);
  RunGuest({0x90, 0xfb, 0x90, 0x90});  // nop; sti; nop; nop
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kInterruptWindow);
  EXPECT_EQ(unit().guest_rip, kGuest + 3);
}

TEST_F(GuestModeTest, AnNmiWindowIsOpenUnlessNmisAreBlocked) {
  unit().wanted.intercepts.Add(Intercept::kNmiWindow);
  RunGuest({0x90, 0xf4});
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kNmiWindow);
  EXPECT_EQ(unit().guest_rip, kGuest);
  CpuState state = State();
  state.nmi_blocked = true;
  machine_.processor().SetState(state);
  RunGuest({0x90, 0xf4});
  EXPECT_EQ(unit().met->what, Intercept::kHlt);
}

TEST_F(GuestModeTest, ShadowedControlBitsAreReadFromTheShadowAndNotWritten) {
  constexpr std::uint64_t kTs = 8, kMp = 2;
  unit().leaves = false;
  unit().wanted.cr0 = {.mask = kTs | kMp, .shadow = kTs};
  CpuState state = State();
  state.cr0 |= 1u << 4;  // ET, which every load sets
  machine_.processor().SetState(state);
  const std::uint64_t before = state.cr0;
  // mov rax, cr0; mov rbx, rax; and eax, ~8; mov cr0, rax; smsw ecx
  RunGuest({0x0f, 0x20, 0xc0, 0x48, 0x89, 0xc3, 0x83, 0xe0, 0xf7, 0x0f, 0x22, 0xc0, 0x0f, 0x01,
            0xe1, 0xf4});
  EXPECT_EQ(State().gpr[kRbx], (before & ~(kTs | kMp)) | kTs);
  EXPECT_EQ(State().gpr[kRcx], State().gpr[kRbx]);
  EXPECT_EQ(State().cr0, before);
}

TEST_F(GuestModeTest, InstructionsThatTheGuestHasNotAreUndefined) {
  unit().wanted.undefined.Add(Intercept::kRdtscp);
  RunGuest({0x0f, 0x01, 0xf9});
  ASSERT_TRUE(unit().met);
  EXPECT_EQ(unit().met->what, Intercept::kException);
  EXPECT_EQ(unit().met->number, 6u);
}

TEST_F(GuestModeTest, TheMemoryOperandIsTold) {
  RunGuest({0x0f, 0x01, 0x54, 0x8b, 0x10});  // lgdt [rbx + 4 * rcx + 16]
  ASSERT_TRUE(unit().met);
  const MemoryOperand& operand = unit().met->operand;
  EXPECT_TRUE(unit().met->memory);
  EXPECT_EQ(operand.base, kRbx);
  EXPECT_EQ(operand.index, kRcx);
  EXPECT_EQ(operand.scale, 2);
  EXPECT_EQ(operand.displacement, 16u);
  EXPECT_EQ(operand.segment, kDs);
  RunGuest({0x0f, 0x01, 0x15, 0x10, 0, 0, 0});  // lgdt [rip + 16]
  EXPECT_EQ(unit().met->operand.base, std::nullopt);
  EXPECT_EQ(unit().met->operand.displacement, kGuest + 7 + 16);
}

TEST_F(GuestModeTest, VirtualNmisAloneAreBlocked) {
  CpuState state = State();
  state.nmi_blocked = true;
  machine_.processor().SetState(state);
  unit().interrupts = {.nmi_leaves = true, .nmi_taken_on_leaving = true, .virtual_nmis = true};
  machine_.Write(TestProcessor::kCode, Bytes{0x0f, 0x01, 0xdc, 0xeb, 0xfe});
  machine_.processor().Run(100);
  ASSERT_TRUE(machine_.processor().CanTakeNmi());
  EXPECT_TRUE(machine_.processor().TakeNmi());
  EXPECT_EQ(unit().met->what, Intercept::kNmi);
}

TEST_F(GuestModeTest, ClosedInterruptsWait) {
  CpuState state = State();
  state.rflags |= kFlagIf;
  machine_.processor().SetState(state);
  EXPECT_TRUE(machine_.processor().CanTakeInterrupt());
  unit().interrupts = {.open = false};
  machine_.Write(TestProcessor::kCode, Bytes{0x0f, 0x01, 0xdc, 0xeb, 0xfe});
  machine_.processor().Run(100);
  EXPECT_FALSE(machine_.processor().CanTakeInterrupt());
  EXPECT_FALSE(machine_.processor().CanTakeNmi());
  EXPECT_FALSE(machine_.processor().CanTakeInit());
}

TEST_F(GuestModeTest, NestedPagingIsToldBeforeTheGuestRuns) {
  unit().nested = NestedPaging{.root = Gpa(0x5000)};
  unit().invalidated = NestedInvalidation{.root = Gpa(0x6000)};
  SoftwareProcessor& processor = machine_.processor();
  const Exit exit = machine_.RunCode(Bytes{0x0f, 0x01, 0xdc, 0x90, 0xf4});
  EXPECT_EQ(exit.reason, ExitReason::kNestedPaging);
  EXPECT_EQ(State().rip, kGuest);
  ASSERT_NE(processor.nested_paging(), nullptr);
  EXPECT_EQ(processor.nested_paging()->root, Gpa(0x5000));
  EXPECT_EQ(processor.TakeNestedInvalidation(), unit().invalidated);
  EXPECT_FALSE(processor.TakeNestedInvalidation());
}

TEST_F(GuestModeTest, AResetIsOutOfItWithAnotherUnit) {
  SoftwareProcessor& processor = machine_.processor();
  unit().nested = NestedPaging{.root = Gpa(0x5000)};
  unit().interrupts.virtual_pending = true;
  const ProbeUnit* const before = &unit();
  const Exit exit = machine_.RunCode(Bytes{0x0f, 0x01, 0xdc, 0x90, 0xf4});
  EXPECT_EQ(exit.reason, ExitReason::kNestedPaging);
  EXPECT_TRUE(processor.guest_snapshot().guest_mode);
  processor.Reset();
  EXPECT_FALSE(processor.guest_snapshot().guest_mode);
  EXPECT_EQ(processor.nested_paging(), nullptr);
  EXPECT_EQ(State().rip, ResetState().rip);
  EXPECT_NE(&unit(), before);
}

TEST_F(GuestModeTest, ATimeStampCounterThatTheUnitLoadsIsToldOutsideOnce) {
  constexpr std::uint64_t kTsc = std::uint64_t{1} << 60;
  unit().loads_tsc = kTsc;
  unit().wanted.tsc = {};
  SoftwareProcessor& processor = machine_.processor();
  machine_.Write(ProbeUnit::kBehind, Bytes{0x0f, 0x31, 0xf4});  // rdtsc; hlt
  Exit exit = machine_.RunCode(Bytes{0x0f, 0x01, 0xdc, 0xf4});
  ASSERT_EQ(exit.reason, ExitReason::kBus);
  EXPECT_EQ(exit.bus.kind, BusAccess::Kind::kMsrWrite);
  EXPECT_EQ(exit.bus.address, 0x3bu);  // IA32_TSC_ADJUST
  processor.CompleteBus(exit.bus);
  exit = processor.Run(1000);
  while (exit.reason == ExitReason::kPagingChanged) exit = processor.Run(1000);
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  const CpuState state = State();
  const std::uint64_t tsc = state.gpr[kRdx] << 32 | state.gpr[kRax];
  EXPECT_GE(tsc, kTsc);
  EXPECT_LT(tsc, 2 * kTsc);
}

// Whoever looks at the registers behind the exit sees those of the hypervisor.
TEST_F(GuestModeTest, WhatWasSwitchedOutsideOfRunIsPublished) {
  unit().interrupts = {.by_host_flag = true, .host_flag = true, .interrupt_leaves = true};
  unit().cr3_behind = 0x7000;
  machine_.Write(TestProcessor::kCode, Bytes{0x0f, 0x01, 0xdc, 0xeb, 0xfe});  // stgi; jmp here
  SoftwareProcessor& processor = machine_.processor();
  processor.Run(100);
  ASSERT_TRUE(processor.CanTakeInterrupt());
  processor.TakeInterrupt([] { return std::uint8_t{0}; });
  EXPECT_EQ(processor.Run(100).reason, ExitReason::kPagingChanged);
  EXPECT_EQ(processor.paging_snapshot().cr3, 0x7000u);
}

TEST_F(GuestModeTest, ANestedFaultGoesToTheUnitWithTheEventThatMetIt) {
  unit().nested = NestedPaging{};
  unit().injected = DeliveredEvent{.vector = 0x40};
  SoftwareProcessor& processor = machine_.processor();
  machine_.Write(ProbeUnit::kBehind, Bytes{0xf4});
  machine_.Spte(0) = 0;  // the IDT
  ASSERT_EQ(machine_.RunCode(Bytes{0x0f, 0x01, 0xdc, 0x90, 0xf4}).reason,
            ExitReason::kNestedPaging);
  ASSERT_EQ(processor.Run(1000).reason, ExitReason::kTableFault);
  processor.MeetNestedFault({.address = Gpa(0x400), .linear = Gva(0x400)});
  ASSERT_TRUE(unit().nested_fault);
  EXPECT_EQ(unit().nested_fault->address, Gpa(0x400));
  ASSERT_TRUE(unit().delivered);
  EXPECT_EQ(unit().delivered->vector, 0x40);
  EXPECT_EQ(unit().guest_rip, kGuest);
  EXPECT_EQ(processor.nested_paging(), nullptr);
  // Both that paging has changed and that nesting has ended may be told first.
  Exit exit = processor.Run(1000);
  EXPECT_NE(exit.reason, ExitReason::kHalt);
  while (exit.reason == ExitReason::kPagingChanged || exit.reason == ExitReason::kNestedPaging) {
    exit = processor.Run(1000);
  }
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
}

TEST_F(GuestModeTest, ExtensionsAreUndefinedWhereThereIsNone) {
  TestProcessor plain(std::get<CpuModel>(MakeModel({})));
  CpuState state = plain.processor().GetState();
  state.idtr.limit = 0;
  plain.processor().SetState(state);
  EXPECT_EQ(plain.RunCode(Bytes{0x0f, 0x01, 0xdc}).reason, ExitReason::kShutdown);
}

}  // namespace
}  // namespace pagesaw::cpu
