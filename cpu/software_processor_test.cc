#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <thread>
#include <variant>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.paging_state;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

class SoftwareProcessorTest : public testing::Test {
 protected:
  static CpuModel Model() { return CpuModel(); }

  std::uint64_t Register(Gpr number) { return machine_.processor().GetState().gpr[number]; }
  void SetGpr(Gpr number, std::uint64_t value) {
    CpuState state = machine_.processor().GetState();
    state.gpr[number] = value;
    machine_.processor().SetState(state);
  }

  TestProcessor machine_{Model()};
};

TEST_F(SoftwareProcessorTest, HaltLeavesBehindTheInstruction) {
  const Exit exit = machine_.RunCode(Bytes{0xb8, 0x2a, 0, 0, 0, 0xf4});  // mov eax, 42; hlt
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  EXPECT_EQ(Register(kRax), 42u);
  EXPECT_EQ(machine_.processor().GetState().rip, TestProcessor::kCode + 6);
  EXPECT_EQ(machine_.processor().instructions_retired(), 2u);
}

TEST_F(SoftwareProcessorTest, LoopRunsOutOfItsBudget) {
  const Exit exit = machine_.RunCode(Bytes{0xff, 0xc0, 0xeb, 0xfc});  // again: inc eax; jmp again
  EXPECT_EQ(exit.reason, ExitReason::kBudget);
  EXPECT_GE(machine_.processor().instructions_retired(), 1'000'000u);
  EXPECT_LE(machine_.processor().instructions_retired(), 1'000'100u);
  EXPECT_GE(Register(kRax), 499'999u);
}

TEST_F(SoftwareProcessorTest, RequestExitEndsAnEndlessLoop) {
  machine_.Write(TestProcessor::kCode, Bytes{0xeb, 0xfe});
  std::thread asker([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    machine_.processor().RequestExit();
  });
  EXPECT_EQ(machine_.processor().Run(~std::uint64_t{0}).reason, ExitReason::kRequested);
  asker.join();
}

TEST_F(SoftwareProcessorTest, SingleStepTrapFollowsALoadOfCr3ThatLeaves) {
  CpuState state = TestProcessor::LongModeState();
  state.rflags |= kFlagTf;
  machine_.processor().SetState(state);
  const Exit exit = machine_.RunCode(Bytes{0x0f, 0x22, 0xd8});  // mov cr3, rax
  EXPECT_EQ(exit.reason, ExitReason::kPagingChanged);
  EXPECT_TRUE(machine_.processor().HasQueuedEvent());
}

TEST_F(SoftwareProcessorTest, AnInterruptThroughATaskGateThatLoadsCr3Leaves) {
  const auto write = [&](std::uint64_t at, auto value) {
    std::memcpy(machine_.memory() + at, &value, sizeof(value));
  };
  constexpr std::uint64_t kGdt = 0x9000, kIdt = 0xa000, kTask = 0x5000;
  write(kGdt + 0x08, std::uint64_t{0x00cf'9b00'0000'ffff});
  write(kGdt + 0x10, std::uint64_t{0x00cf'9300'0000'ffff});
  write(kGdt + 0x18, std::uint64_t{0x0000'8b00'3000'0067});
  write(kGdt + 0x20, std::uint64_t{0x0000'8900'5000'0067});
  write(kIdt + 8 * 0x20, std::uint64_t{0x0000'8500'0020'0000});
  write(kTask + 0x1c, std::uint32_t{0x2000});  // CR3
  write(kTask + 0x20, std::uint32_t{0x6000});  // EIP
  write(kTask + 0x24, std::uint32_t{2});
  write(kTask + 0x38, std::uint32_t{0x7000});
  const std::array<std::uint32_t, 6> selectors = {0x10, 0x08, 0x10, 0x10, 0, 0};
  write(kTask + 0x48, selectors);

  CpuState state = TestProcessor::LongModeState();
  state.cr0 = kCr0Pe | kCr0Pg;
  state.cr3 = state.cr4 = state.efer = 0;
  state.rflags |= kFlagIf;
  for (Segment& segment : state.segments) {
    segment = {.selector = 0x10, .attributes = 0xc093, .limit = 0xffff'ffff, .base = 0};
  }
  state.segments[kCs].selector = 0x08;
  state.segments[kCs].attributes = 0xc09b;
  state.segments[kTr] = {.selector = 0x18, .attributes = 0x8b, .limit = 0x67, .base = 0x3000};
  state.gdtr = {.base = kGdt, .limit = 0x27};
  state.idtr = {.base = kIdt, .limit = 8 * 0x21 - 1};
  machine_.processor().SetState(state);
  machine_.processor().Inject({.kind = Event::Kind::kExternalInterrupt, .vector = 0x20});
  const Exit exit = machine_.processor().Run(100);
  EXPECT_EQ(exit.reason, ExitReason::kPagingChanged);
  EXPECT_EQ(exit.invalidation.scope, Invalidation::Scope::kAddressSpace);
  EXPECT_EQ(machine_.processor().GetState().cr3, 0x2000u);
  EXPECT_EQ(machine_.processor().GetState().rip, 0x6000u);
}

TEST_F(SoftwareProcessorTest, SingleStepTrapFollowsASysretThatSetsTf) {
  TestProcessor machine(std::get<CpuModel>(MakeModel({})));
  CpuState state = TestProcessor::LongModeState();
  state.gpr[kRcx] = TestProcessor::kCode + 3;
  state.gpr[kR11] = kFlagTf | kFlagFixed;
  state.idtr.limit = 0;
  machine.processor().SetState(state);
  const Exit exit = machine.RunCode(Bytes{0x48, 0x0f, 0x07, 0xff, 0xc0});  // sysretq; inc eax
  EXPECT_EQ(exit.reason, ExitReason::kShutdown);  // no IDT to deliver #DB by
  EXPECT_EQ(machine.processor().GetState().gpr[kRax], 0u);
}

TEST_F(SoftwareProcessorTest, TableFaultStartsTheInstructionAgain) {
  machine_.Spte(0x5000) = 0;
  SetGpr(kRdi, 0x5008);
  // add dword [rdi], 3; hlt
  const Exit exit = machine_.RunCode(Bytes{0x83, 0x07, 0x03, 0xf4});
  EXPECT_EQ(exit.reason, ExitReason::kTableFault);
  EXPECT_EQ(exit.fault.address, InputAddress(0x5008));
  EXPECT_TRUE(exit.fault.access.is_write());
  EXPECT_FALSE(exit.fault.present);
  EXPECT_EQ(machine_.processor().GetState().rip, TestProcessor::kCode);
  machine_.Spte(0x5000) = reinterpret_cast<std::uint64_t>(machine_.memory() + 0x5000) | 0x67;
  EXPECT_EQ(machine_.processor().Run(100).reason, ExitReason::kHalt);
  EXPECT_EQ(machine_.Read<std::uint32_t>(0x5008), 3u);
}

TEST_F(SoftwareProcessorTest, WritesSetDirtyInTheGivenTables) {
  machine_.Spte(0x5000) &= ~std::uint64_t{0x60};
  SetGpr(kRdi, 0x5000);
  // mov eax, [rdi]; nop; mov [rdi], eax; hlt
  EXPECT_EQ(machine_.RunCode(Bytes{0x8b, 0x07, 0xf4}).reason, ExitReason::kHalt);
  EXPECT_EQ(machine_.Spte(0x5000) & 0x60, 0x20u);
  EXPECT_EQ(machine_.RunCode(Bytes{0x89, 0x07, 0xf4}).reason, ExitReason::kHalt);
  EXPECT_EQ(machine_.Spte(0x5000) & 0x60, 0x60u);
}

TEST_F(SoftwareProcessorTest, DeviceReadIsAnsweredWhenTheInstructionRunsAgain) {
  machine_.Spte(0x5000) |= std::uint64_t{1} << 51;  // malformed: a device
  SetGpr(kRdi, 0x5004);
  SetGpr(kRax, 1);
  // or eax, [rdi]; hlt
  Exit exit = machine_.RunCode(Bytes{0x0b, 0x07, 0xf4});
  ASSERT_EQ(exit.reason, ExitReason::kTableFault);
  EXPECT_TRUE(exit.fault.malformed);
  EXPECT_EQ(exit.fault.bus.kind, BusAccess::Kind::kMmioRead);
  EXPECT_EQ(exit.fault.bus.bytes, 4);
  exit.fault.bus.value = 0xf0;
  machine_.processor().CompleteBus(exit.fault.bus);
  EXPECT_EQ(machine_.processor().Run(100).reason, ExitReason::kHalt);
  EXPECT_EQ(Register(kRax), 0xf1u);
}

TEST_F(SoftwareProcessorTest, ReadModifyWriteOfADeviceReadsAndWritesOnce) {
  machine_.Spte(0x5000) |= std::uint64_t{1} << 51;
  SetGpr(kRdi, 0x5000);
  // or dword [rdi], 1; hlt
  Exit exit = machine_.RunCode(Bytes{0x83, 0x0f, 0x01, 0xf4});
  ASSERT_EQ(exit.fault.bus.kind, BusAccess::Kind::kMmioRead);
  exit.fault.bus.value = 0x80;
  machine_.processor().CompleteBus(exit.fault.bus);
  exit = machine_.processor().Run(100);
  ASSERT_EQ(exit.fault.bus.kind, BusAccess::Kind::kMmioWrite);
  EXPECT_EQ(exit.fault.bus.value, 0x81u);
  machine_.processor().CompleteBus(exit.fault.bus);
  EXPECT_EQ(machine_.processor().Run(100).reason, ExitReason::kHalt);
}

TEST_F(SoftwareProcessorTest, PortReadIsABusExit) {
  Exit exit = machine_.RunCode(Bytes{0xe4, 0x60, 0xf4});  // in al, 60h; hlt
  ASSERT_EQ(exit.reason, ExitReason::kBus);
  EXPECT_EQ(exit.bus.kind, BusAccess::Kind::kPortIn);
  EXPECT_EQ(exit.bus.address, 0x60u);
  exit.bus.value = 0x1c;
  machine_.processor().CompleteBus(exit.bus);
  EXPECT_EQ(machine_.processor().Run(100).reason, ExitReason::kHalt);
  EXPECT_EQ(Register(kRax), 0x1cu);
}

TEST_F(SoftwareProcessorTest, CodeThatChangesItselfExecutesWhatItWrote) {
  SetGpr(kRdi, TestProcessor::kCode + 7);
  // mov byte [rdi], 5 (the immediate of the next mov); mov al, 1; hlt
  const Exit exit = machine_.RunCode(Bytes{0xc6, 0x07, 0x05, 0x90, 0x90, 0x90, 0xb0, 0x01, 0xf4});
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  EXPECT_EQ(Register(kRax) & 0xff, 5u);
}

TEST_F(SoftwareProcessorTest, LoopThatChangesItsOwnBodySeesEachChange) {
  // xor ebx,ebx; mov ecx,10
  // again: add ebx,1 (immediate at kCode+9); inc byte [rdi]; dec ecx; jnz again; hlt
  SetGpr(kRdi, TestProcessor::kCode + 9);
  const Exit exit = machine_.RunCode(Bytes{0x31, 0xdb, 0xb9, 10, 0, 0, 0, 0x83, 0xc3, 0x01, 0xfe,
                                           0x07, 0xff, 0xc9, 0x75, 0xf7, 0xf4});
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  EXPECT_EQ(Register(kRbx), 55u);
}

TEST_F(SoftwareProcessorTest, WritesFromOutsideAreExecutedAndTranslationsStay) {
  constexpr std::uint64_t kData = 0x9000, kOtherData = 0xa000;
  machine_.Write(kData, Bytes{0x11});
  machine_.Write(kOtherData, Bytes{0x22});
  // again: mov eax, 1; mov ebx, [kData]; jmp again
  machine_.Write(TestProcessor::kCode,
                 Bytes{0xb8, 1, 0, 0, 0, 0x8b, 0x1c, 0x25, 0, 0x90, 0, 0, 0xeb, 0xf2});
  EXPECT_EQ(machine_.processor().Run(300).reason, ExitReason::kBudget);
  EXPECT_EQ(Register(kRax), 1u);
  EXPECT_EQ(Register(kRbx), 0x11u);

  const auto host = [this](std::uint64_t linear) {
    return Hpa(reinterpret_cast<std::uint64_t>(machine_.memory() + linear));
  };
  machine_.Spte(kData) = host(kOtherData).bits() | 0x67;
  machine_.memory()[TestProcessor::kCode + 1] = std::byte{2};
  EXPECT_FALSE(machine_.processor().ContentsChanged(host(kData), 8));
  EXPECT_TRUE(machine_.processor().ContentsChanged(host(TestProcessor::kCode + 1), 1));
  machine_.processor().Run(300);
  EXPECT_EQ(Register(kRax), 2u);
  EXPECT_EQ(Register(kRbx), 0x11u);

  machine_.processor().FlushTlb();
  machine_.processor().Run(300);
  EXPECT_EQ(Register(kRbx), 0x22u);
}

TEST_F(SoftwareProcessorTest, InstructionAcrossPagesExecutes) {
  const std::uint64_t start = 0x2000 - 2;
  machine_.Write(start, Bytes{0xb8, 0x78, 0x56, 0x34, 0x12, 0xf4});  // mov eax, 12345678h; hlt
  CpuState state = machine_.processor().GetState();
  state.rip = start;
  machine_.processor().SetState(state);
  EXPECT_EQ(machine_.processor().Run(100).reason, ExitReason::kHalt);
  EXPECT_EQ(Register(kRax), 0x12345678u);
}

TEST_F(SoftwareProcessorTest, InstructionAcrossPagesIsWhatItsBytesAreEachTime) {
  const std::uint64_t start = 0x2000 - 2;
  const auto run = [&](std::span<const std::uint8_t> code) {
    machine_.Write(start, code);
    CpuState state = machine_.processor().GetState();
    state.rip = start;
    state.activity = Activity::kActive;
    machine_.processor().SetState(state);
    EXPECT_EQ(machine_.processor().Run(100).reason, ExitReason::kHalt);
    return Register(kRax);
  };
  for (unsigned twice = 0; twice < 2; ++twice) {
    EXPECT_EQ(run(Bytes{0xb8, 0x78, 0x56, 0x34, 0x12, 0xf4}), 0x12345678u);  // mov eax, 12345678h
    EXPECT_EQ(run(Bytes{0xb8, 0x78, 0x56, 0x34, 0x13, 0xf4}), 0x13345678u);
    EXPECT_EQ(run(Bytes{0xb0, 0x11, 0xf4, 0x90, 0x90, 0x90}), 0x13345611u);  // mov al, 11h
  }
}

TEST_F(SoftwareProcessorTest, FetchFromAMissingSecondPageFaultsThere) {
  const std::uint64_t start = 0x2000 - 2;
  machine_.Write(start, Bytes{0xb8, 0x78, 0x56, 0x34, 0x12, 0xf4});
  machine_.Spte(0x2000) = 0;
  CpuState state = machine_.processor().GetState();
  state.rip = start;
  machine_.processor().SetState(state);
  const Exit exit = machine_.processor().Run(100);
  EXPECT_EQ(exit.reason, ExitReason::kTableFault);
  EXPECT_EQ(exit.fault.address, InputAddress(0x2000));
  EXPECT_TRUE(exit.fault.access.is_fetch());
  EXPECT_EQ(machine_.processor().GetState().rip, start);
}

TEST_F(SoftwareProcessorTest, CallAndReturnAcrossPages) {
  // call 3000h; hlt    3000h: mov eax, 7; ret
  machine_.Write(0x3000, Bytes{0xb8, 7, 0, 0, 0, 0xc3});
  const Exit exit = machine_.RunCode(Bytes{0xe8, 0xfb, 0x1f, 0, 0, 0xf4});
  EXPECT_EQ(exit.reason, ExitReason::kHalt);
  EXPECT_EQ(Register(kRax), 7u);
  EXPECT_EQ(Register(kRsp), TestProcessor::kStackTop);
}

TEST_F(SoftwareProcessorTest, TripleFaultIsAShutdown) {
  EXPECT_EQ(machine_.RunCode(Bytes{0x0f, 0x0b}).reason, ExitReason::kShutdown);  // ud2, no IDT
}

TEST_F(SoftwareProcessorTest, StateComesBackAsItWasSet) {
  CpuState state = TestProcessor::LongModeState();
  for (unsigned i = 0; i < 16; ++i) state.gpr[i] = 0x1111'1111'1111'1111u * i;
  state.rflags = kFlagFixed | kFlagCf | kFlagZf | kFlagDf;
  state.cr2 = 0x1234;
  state.lstar = 0xffff'8000'0000'0000;
  machine_.processor().SetState(state);
  EXPECT_EQ(machine_.processor().GetState(), state);
}

TEST_F(SoftwareProcessorTest, SnapshotFollowsThePagingState) {
  CpuState state = TestProcessor::LongModeState();
  state.cr3 = 0xabc000;
  machine_.processor().SetState(state);
  EXPECT_EQ(machine_.processor().paging_snapshot().cr3, 0xabc000u);
  EXPECT_EQ(machine_.processor().paging_snapshot().mode(), PagingMode::k4Level);
}

// The tables' owner says what a fault in the middle of a delivery means to the guest.
TEST_F(SoftwareProcessorTest, PageFaultsInjectedDuringDeliveryEndInShutdown) {
  constexpr std::uint64_t kIdt = 0x30'0000;
  CpuState state = machine_.processor().GetState();
  state.idtr = {.base = kIdt, .limit = 0xfff};
  machine_.processor().SetState(state);
  machine_.Spte(kIdt) = 0;
  Exit exit = machine_.RunCode(Bytes{0x0f, 0x0b});  // ud2
  const Event page_fault = {
      .kind = Event::Kind::kException, .vector = 14, .has_error_code = true, .cr2 = kIdt};
  for (const char* being_delivered : {"#UD", "#PF", "#DF"}) {
    ASSERT_EQ(exit.reason, ExitReason::kTableFault) << being_delivered;
    EXPECT_EQ(exit.fault.linear.bits() >> 12, kIdt >> 12);
    machine_.processor().Inject(page_fault);
    exit = machine_.processor().Run(1'000);
  }
  EXPECT_EQ(exit.reason, ExitReason::kShutdown);
  EXPECT_EQ(machine_.processor().GetState().cr2, kIdt);
}

}  // namespace
}  // namespace pagesaw::cpu
