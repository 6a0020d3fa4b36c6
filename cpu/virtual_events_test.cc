// What the unit of an extension has a processor do in guest mode besides intercepting: events for
// the guest alone, what it wants to be asked about, and the services that it has of the processor.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

import pagesaw.core.guest_mode;
import pagesaw.core.page_format;
import pagesaw.core.virt_extension;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint64_t kGuest = TestProcessor::kCode + 3;  // behind STGI
constexpr std::uint64_t kBehind = 0x3000;
constexpr std::uint64_t kHandler = 0x4000, kGate = 2 * 16;  // of NMIs; the IDT is at 0

// STGI enters guest mode; HLT leaves it.
class HelpfulUnit final : public VirtUnit {
 public:
  bool Execute(VirtHost& host, const InterceptedEvent&) override {
    GuestEntry entry = wanted;
    entry.intercepts.Add(Intercept::kHlt);
    host.interrupts() = interrupts;
    host.EnterGuestMode(entry);
    return true;
  }
  bool Leaves(VirtHost&, const InterceptedEvent& event) override {
    asked.push_back(event);
    return event.what == Intercept::kHlt || leaves;
  }
  void Leave(VirtHost& host, const InterceptedEvent& event) override {
    left_for = event;
    code_bytes = host.CopyCode(code);
    CpuState state = host.State();
    guest = state;
    virtual_nmi_pending = host.interrupts().virtual_nmi_pending;
    host.interrupts() = {};
    state.rip = kBehind;
    state.nmi_blocked = false;
    host.LeaveGuestMode();
    host.SwitchState(state);
  }
  std::uint8_t TakeVirtualInterrupt(VirtHost& host) override {
    host.interrupts().virtual_pending = false;
    return 0x99;
  }
  MsrAnswer ReadMsr(VirtHost&, std::uint32_t, std::uint64_t&) const override {
    return MsrAnswer::kUnknown;
  }
  MsrAnswer WriteMsr(VirtHost& host, std::uint32_t index, std::uint64_t) override {
    if (index != kAsks) return MsrAnswer::kUnknown;
    host.interrupts().asks_at_boundary = true;
    return MsrAnswer::kDone;
  }
  bool MayBeEnabled() const override { return true; }

  static constexpr std::uint32_t kAsks = 0xc001'0117;  // writes of it set `asks_at_boundary`

  GuestEntry wanted;
  GuestInterrupts interrupts;
  bool leaves = false;

  std::vector<InterceptedEvent> asked;
  std::array<std::byte, 15> code = {};
  std::size_t code_bytes = 0;
  std::optional<InterceptedEvent> left_for;
  CpuState guest;
  bool virtual_nmi_pending = false;
};

class HelpfulExtension final : public VirtExtension {
 public:
  std::string_view name() const override { return "helpful"; }
  std::string_view vendor() const override { return "helpful"; }
  std::string_view cpuid_vendor() const override { return "AuthenticAMD"; }
  ExitDescription Describe(const TableFault&, const PageFormat&) const override { return {}; }
  void AdjustCpuid(std::uint32_t, std::uint32_t, CpuidResult&) const override {}
  std::string_view feature() const override { return "svm"; }
  std::unique_ptr<VirtUnit> MakeUnit() const override {
    auto unit = std::make_unique<HelpfulUnit>();
    last = unit.get();
    return unit;
  }
  void AdjustPagingFeatures(bool&, std::uint8_t&, unsigned) const override {}

  mutable HelpfulUnit* last = nullptr;
};

class VirtualEventsTest : public testing::Test {
 protected:
  VirtualEventsTest() {
    CpuState state = processor().GetState();
    state.idtr = {.base = 0, .limit = 0xfff};
    state.gdtr = {.base = 0x5000, .limit = 0x17};
    processor().SetState(state);
    machine_.Write(kGate, Bytes{0x00, 0x40, 8, 0, 0, 0x8e, 0, 0});
    machine_.Write(0x5008, Bytes{0xff, 0xff, 0, 0, 0, 0x9b, 0xaf, 0});
    machine_.Write(0x5010, Bytes{0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0});
    machine_.Write(kBehind, Bytes{0xf4});
  }

  SoftwareProcessor& processor() { return machine_.processor(); }
  HelpfulUnit& unit() { return *extension_.last; }
  // Runs `code` in guest mode, until the HLT behind it.
  void RunGuest(Bytes code) {
    const Bytes stgi = {0x0f, 0x01, 0xdc};
    code.insert(code.begin(), stgi.begin(), stgi.end());
    Exit exit = machine_.RunCode(code);
    while (exit.reason == ExitReason::kPagingChanged) exit = processor().Run(1000);
    EXPECT_EQ(exit.reason, ExitReason::kHalt);
    EXPECT_TRUE(unit().left_for);
  }

  HelpfulExtension extension_;
  TestProcessor machine_{std::get<CpuModel>(MakeModel({.extension = &extension_}))};
};

TEST_F(VirtualEventsTest, AVirtualNmiIsTakenAndBlocksOthersUntilIret) {
  unit().interrupts = {.virtual_nmis = true, .virtual_nmi_pending = true};
  machine_.Write(kHandler, Bytes{0xff, 0xc0, 0x48, 0xcf});  // inc eax; iretq
  RunGuest({0xff, 0xc3, 0xf4});                             // inc ebx; hlt
  EXPECT_EQ(unit().guest.gpr[kRax], 1u);
  EXPECT_EQ(unit().guest.gpr[kRbx], 1u);
  EXPECT_FALSE(unit().guest.nmi_blocked);
  EXPECT_FALSE(unit().virtual_nmi_pending);
}

TEST_F(VirtualEventsTest, AVirtualNmiIsInServiceInItsHandler) {
  unit().interrupts = {.virtual_nmis = true, .virtual_nmi_pending = true};
  machine_.Write(kHandler, Bytes{0xf4});
  RunGuest({0x90, 0xf4});
  EXPECT_EQ(unit().guest.rip, kHandler);
  EXPECT_TRUE(unit().guest.nmi_blocked);
}

TEST_F(VirtualEventsTest, AVirtualNmiWaitsWhereNmisAreBlockedOrClosed) {
  for (const bool closed : {false, true}) {
    CpuState state = processor().GetState();
    state.nmi_blocked = !closed;
    state.gpr[kRsp] = TestProcessor::kStackTop;
    processor().SetState(state);
    unit().left_for.reset();
    unit().interrupts = {
        .virtual_nmis = true, .virtual_nmi_pending = true, .virtual_open = !closed};
    RunGuest({0x90, 0xf4});
    EXPECT_EQ(unit().guest.rip, kGuest + 1) << closed;
    EXPECT_TRUE(unit().virtual_nmi_pending) << closed;
  }
}

TEST_F(VirtualEventsTest, RealNmisWaitForTheHypervisorsBlockingNotForTheGuests) {
  for (const bool blocked : {false, true}) {
    CpuState state = processor().GetState();
    state.nmi_blocked = !blocked;
    state.rip = TestProcessor::kCode;
    processor().SetState(state);
    unit().interrupts = {.nmi_leaves = true, .virtual_nmis = true, .real_nmi_blocked = blocked};
    machine_.Write(TestProcessor::kCode, Bytes{0x0f, 0x01, 0xdc, 0xeb, 0xfe});  // stgi; jmp here
    processor().Run(100);
    EXPECT_EQ(processor().CanTakeNmi(), !blocked);
  }
}

TEST_F(VirtualEventsTest, AVirtualInterruptIsAcknowledgedByTheUnit) {
  unit().interrupts = {.virtual_pending = true, .virtual_vector = 0x41, .virtual_priority = 1};
  machine_.Write(0x99 * 16, Bytes{0x00, 0x40, 8, 0, 0, 0x8e, 0, 0});
  machine_.Write(kHandler, Bytes{0xf4});
  RunGuest({0xfb, 0x90, 0x90, 0xf4});  // sti; nop; nop
  EXPECT_EQ(unit().guest.rip, kHandler);
}

TEST_F(VirtualEventsTest, TheUnitIsAskedBehindTheInstructionThatAsksForIt) {
  // wrmsr; inc ebx; hlt
  const Bytes code = {0xb9, 0x17, 0x01, 0x01, 0xc0, 0x0f, 0x30, 0xff, 0xc3, 0xf4};
  RunGuest(code);
  ASSERT_EQ(unit().asked.size(), 2u);
  EXPECT_EQ(unit().asked[0].what, Intercept::kVirtualApic);
  EXPECT_EQ(unit().guest.gpr[kRbx], 1u);
  unit().leaves = true;
  RunGuest(code);
  EXPECT_EQ(unit().left_for->what, Intercept::kVirtualApic);
  EXPECT_EQ(unit().guest.rip, kGuest + 7);
}

TEST_F(VirtualEventsTest, TheUnitIsAskedAboutTaskPrioritiesIfItWants) {
  unit().interrupts = {.has_virtual_tpr = true, .asks_about_tpr = true};
  RunGuest({0xb8, 7, 0, 0, 0, 0x44, 0x0f, 0x22, 0xc0, 0xf4});  // mov eax, 7; mov cr8, rax
  ASSERT_EQ(unit().asked.size(), 2u);
  EXPECT_EQ(unit().asked[0].what, Intercept::kVirtualApic);
}

TEST_F(VirtualEventsTest, AnInterruptThatTheUnitDealsWithIsOver) {
  const auto take = [this](bool leaves) {
    unit().interrupts = {.by_host_flag = true,
                         .host_flag = true,
                         .interrupt_leaves = true,
                         .taken_on_leaving = true,
                         .asks_about_interrupts = true};
    unit().leaves = leaves;
    CpuState state = processor().GetState();
    state.rip = TestProcessor::kCode;
    processor().SetState(state);
    machine_.Write(TestProcessor::kCode, Bytes{0x0f, 0x01, 0xdc, 0xeb, 0xfe});  // stgi; jmp here
    processor().Run(100);
    EXPECT_TRUE(processor().CanTakeInterrupt());
    return processor().TakeInterrupt([] { return std::uint8_t{0xf2}; });
  };
  EXPECT_TRUE(take(false));
  EXPECT_FALSE(unit().left_for);
  ASSERT_FALSE(unit().asked.empty());
  EXPECT_EQ(unit().asked.back().number, 0xf2u);
  EXPECT_FALSE(take(true));
  EXPECT_TRUE(unit().left_for);
}

TEST_F(VirtualEventsTest, TheGuestsTimeStampCounterIsScaled) {
  constexpr std::uint64_t kOffset = std::uint64_t{1} << 60;
  unit().wanted.tsc = {.multiplier = 3, .fraction_bits = 0, .offset = kOffset};
  // rdtsc into rsi
  RunGuest({0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0xc6, 0xf4});
  const std::uint64_t inside = unit().guest.gpr[kRsi] - kOffset;
  machine_.Write(kBehind, Bytes{0x0f, 0x31, 0xf4});
  CpuState state = processor().GetState();
  state.rip = kBehind;
  state.activity = Activity::kActive;
  processor().SetState(state);
  processor().Run(10);
  state = processor().GetState();
  const std::uint64_t outside = state.gpr[kRdx] << 32 | state.gpr[kRax];
  EXPECT_LE(inside / 3, outside);
  EXPECT_GT(inside, outside) << "a counter that starts with the host's is large";
}

TEST_F(VirtualEventsTest, TheUnitSeesTheCodeAtRipAsFarAsItCanBeFetched) {
  RunGuest({0xf4, 0x11, 0x22});
  ASSERT_EQ(unit().code_bytes, 15u);
  EXPECT_EQ(unit().code[0], std::byte{0xf4});
  EXPECT_EQ(unit().code[2], std::byte{0x22});
  // HLT at the end of a page behind which there is none.
  machine_.Write(0x1ffe, Bytes{0x90, 0xf4});
  machine_.Spte(0x2000) = 0;
  RunGuest({0xe9, 0xf6, 0x0f, 0, 0});  // jmp 1ffeh
  EXPECT_EQ(unit().guest.rip, 0x1fffu);
  EXPECT_EQ(unit().code_bytes, 1u);
}

}  // namespace
}  // namespace pagesaw::cpu
