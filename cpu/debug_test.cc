// Debug exceptions as programs meet them: what DR6 says, where RIP stands, what RF and the load of
// SS hide. [intel/vol3] "Debug Exceptions"
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

import pagesaw.cpu.control_bits;
import pagesaw.cpu.test_processor;
import pagesaw.cpu.test_vendor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint64_t kIdt = 0x20000, kGdt = 0x21000, kHandler = 0x22000, kOther = 0x23000;
constexpr std::uint64_t kLog = 0x24000;  // a count, then an entry for each #DB
constexpr std::uint64_t kData = 0x30000;

struct Seen {
  std::uint64_t rip = 0;
  std::uint64_t dr6 = 0;
  std::uint64_t flags = 0;
};

// Runs code whose #DB handler logs RIP, DR6 and RFLAGS, sets RF in the image and clears DR6; every
// other exception ends in HLT at kOther.
class DebugTest : public testing::Test {
 protected:
  explicit DebugTest(Vendor vendor = Vendor::kIntel) : machine_(ModelOf(vendor)) {
    machine_.Write(kHandler,
                   Bytes{
                       0x50,                                      // push rax
                       0x51,                                      // push rcx
                       0x8b, 0x0c, 0x25, 0,    0x40, 2,    0,     // mov ecx, [kLog]
                       0xff, 0x04, 0x25, 0,    0x40, 2,    0,     // inc dword [kLog]
                       0x48, 0x8d, 0x0c, 0x49,                    // lea rcx, [rcx + 2 * rcx]
                       0x48, 0x8b, 0x44, 0x24, 0x10,              // mov rax, [rsp + 16]
                       0x48, 0x89, 0x04, 0xcd, 8,    0x40, 2, 0,  // mov [kLog + 8 + 8 rcx]
                       0x0f, 0x21, 0xf0,                          // mov rax, dr6
                       0x48, 0x89, 0x04, 0xcd, 0x10, 0x40, 2, 0,  // mov [kLog + 16 ...]
                       0x48, 0x8b, 0x44, 0x24, 0x20,              // mov rax, [rsp + 32]
                       0x48, 0x89, 0x04, 0xcd, 0x18, 0x40, 2, 0,  // mov [kLog + 24 ...]
                       0x81, 0x4c, 0x24, 0x20, 0,    0,    1, 0,  // or dword [rsp + 32], RF
                       0xb8, 0xf0, 0x0f, 0xff, 0xff,              // mov eax, ffff0ff0h
                       0x0f, 0x23, 0xf0,                          // mov dr6, rax
                       0x59,                                      // pop rcx
                       0x58,                                      // pop rax
                       0x48, 0xcf,                                // iretq
                   });
    machine_.Write(kOther, Bytes{0xf4});
    for (unsigned vector = 0; vector < 32; ++vector) {
      const std::uint64_t entry = vector == 1 ? kHandler : kOther;
      Put(kIdt + vector * 16, (entry & 0xffff) | 0x8e00'0008'0000 | (entry >> 16) << 48);
      Put(kIdt + vector * 16 + 8, entry >> 32);
    }
    Put(kGdt + 8, 0x00af'9b00'0000'ffff);
    Put(kGdt + 16, 0x00cf'9300'0000'ffff);
    state_ = TestProcessor::LongModeState();
    state_.idtr = {.base = kIdt, .limit = 0x1ff};
    state_.gdtr = {.base = kGdt, .limit = 0x1f};
    state_.segments[kSs].selector = 0x10;
  }

  void Put(std::uint64_t at, std::uint64_t value) {
    Bytes bytes(8);
    __builtin_memcpy(bytes.data(), &value, 8);
    machine_.Write(at, bytes);
  }

  // Enables breakpoint `n`; R/W and LEN as DR7 has them.
  void Arm(unsigned n, std::uint64_t address, unsigned watch, unsigned length) {
    state_.dr[n] = address;
    state_.dr7 |= 1u << (2 * n) | std::uint64_t{watch | length << 2} << (16 + 4 * n);
  }

  // Runs `code`, with HLT behind it, from kCode, and tells the debug exceptions.
  std::vector<Seen> Run(Bytes code) {
    code.push_back(0xf4);
    end_ = TestProcessor::kCode + code.size();
    machine_.processor().SetState(state_);
    exit_ = machine_.RunCode(code);
    state_ = machine_.processor().GetState();
    std::vector<Seen> seen(std::min<std::uint64_t>(machine_.Read<std::uint32_t>(kLog), 16));
    for (unsigned i = 0; i < seen.size(); ++i) seen[i] = machine_.Read<Seen>(kLog + 8 + i * 24);
    return seen;
  }

  void ExpectEnd() {
    EXPECT_EQ(exit_.reason, ExitReason::kHalt);
    EXPECT_EQ(state_.rip, end_);
  }

  static constexpr std::uint64_t At(unsigned offset) { return TestProcessor::kCode + offset; }

  TestProcessor machine_;
  CpuState state_;
  Exit exit_;
  std::uint64_t end_ = 0;
};

constexpr unsigned kExecute = 0, kWrite = 1, kPort = 2, kAccess = 3;
constexpr unsigned kLen1 = 0, kLen4 = 3;
constexpr std::uint64_t kDr6 = kDr6Fixed;

const Bytes kNops = {0x90, 0x90, 0x90, 0x90};
const Bytes kStore = {0x89, 0x04, 0x25, 0, 0, 3, 0};  // mov [kData], eax
const Bytes kLoad = {0x8b, 0x04, 0x25, 0, 0, 3, 0};   // mov eax, [kData]

Bytes operator+(Bytes left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

TEST_F(DebugTest, InstructionBreakpointIsAFaultThatRfLetsPass) {
  Arm(2, At(2), kExecute, kLen1);
  const std::vector<Seen> seen = Run(kNops);
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].rip, At(2));
  EXPECT_EQ(seen[0].dr6, kDr6 | 4);
  EXPECT_EQ(seen[0].flags & kFlagRf, 0u);
}

TEST_F(DebugTest, RfLastsForOneInstruction) {
  Arm(0, At(1), kExecute, kLen1);
  Arm(1, At(2), kExecute, kLen1);
  const std::vector<Seen> seen = Run(kNops);
  ExpectEnd();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[1].rip, At(2));
  EXPECT_EQ(seen[1].dr6, kDr6 | 2);
  EXPECT_EQ(state_.rflags & kFlagRf, 0u);
}

TEST_F(DebugTest, ALoopMeetsItsBreakpointEachTime) {
  Arm(0, At(0), kExecute, kLen1);
  state_.gpr[kRcx] = 3;
  const std::vector<Seen> seen = Run({0xff, 0xc0, 0xe2, 0xfc});  // again: inc eax; loop again
  ExpectEnd();
  EXPECT_EQ(seen.size(), 3u);
  EXPECT_EQ(state_.gpr[kRax], 3u);
}

TEST_F(DebugTest, BreakpointOnDataIsATrap) {
  Arm(1, kData, kWrite, kLen4);
  const std::vector<Seen> seen = Run(kLoad + kStore + kNops);
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].rip, At(14));
  EXPECT_EQ(seen[0].dr6, kDr6 | 2);
}

TEST_F(DebugTest, SeveralCausesMakeOneException) {
  Arm(0, kData, kAccess, kLen4);
  Arm(3, kData, kWrite, kLen1);
  const std::vector<Seen> seen = Run(kLoad + kStore);
  ExpectEnd();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0].dr6, kDr6 | 1);
  EXPECT_EQ(seen[1].dr6, kDr6 | 9);
}

TEST_F(DebugTest, SingleStepAndDataMakeOneException) {
  Arm(0, kData, kWrite, kLen4);
  state_.rflags |= kFlagTf;
  const std::vector<Seen> seen = Run(kStore);
  ASSERT_GE(seen.size(), 2u);
  EXPECT_EQ(seen[0].dr6, kDr6 | kDr6Bs | 1);
  EXPECT_EQ(seen[0].rip, At(7));
  EXPECT_EQ(seen[1].dr6, kDr6 | kDr6Bs);
}

TEST_F(DebugTest, RepeatedStringsTrapBehindTheIteration) {
  Arm(0, kData + 1, kWrite, kLen1);
  state_.gpr[kRcx] = 4;
  state_.gpr[kRdi] = kData;
  const std::vector<Seen> seen = Run({0xf3, 0xaa});  // rep stosb
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].rip, At(0));
  EXPECT_NE(seen[0].flags & kFlagRf, 0u);
  EXPECT_EQ(state_.gpr[kRdi], kData + 4);
}

TEST_F(DebugTest, AStringInstructionThatGoesOnMeetsNoBreakpointOnItself) {
  Arm(0, At(0), kExecute, kLen1);
  Arm(1, kData + 1, kWrite, kLen1);
  state_.gpr[kRcx] = 4;
  state_.gpr[kRdi] = kData;
  const std::vector<Seen> seen = Run({0xf3, 0xaa});
  ExpectEnd();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0].dr6, kDr6 | 1);
  EXPECT_EQ(seen[1].dr6, kDr6 | 2);
}

struct LockCase {
  const char* name;
  Bytes code;
  std::size_t want;
};
class DebugInstructions : public DebugTest, public testing::WithParamInterface<LockCase> {};
// The breakpoint watches writes; RBX and RSI are kData, RDI is far away.
TEST_P(DebugInstructions, OfManyKindsMeetBreakpointsOnData) {
  Arm(0, kData, kWrite, kLen4);
  state_.gpr[kRbx] = state_.gpr[kRsi] = kData;
  state_.gpr[kRdi] = kData + 0x2000;
  state_.cr4 |= kCr4Osfxsr;
  const std::vector<Seen> seen = Run(GetParam().code);
  ExpectEnd();
  EXPECT_EQ(seen.size(), GetParam().want);
}
INSTANTIATE_TEST_SUITE_P(
    Accesses, DebugInstructions,
    testing::Values(
        LockCase{"Add", {0x01, 0x03}, 1}, LockCase{"LockedAdd", {0xf0, 0x01, 0x03}, 1},
        LockCase{"Exchange", {0x87, 0x03}, 1}, LockCase{"BitSet", {0x0f, 0xba, 0x2b, 1}, 1},
        LockCase{"Compare", {0x39, 0x03}, 0}, LockCase{"Unaligned", {0x89, 0x43, 0xfd}, 1},
        LockCase{"VectorStore", {0x0f, 0x29, 0x03}, 1},
        LockCase{"VectorLoad", {0x0f, 0x28, 0x03}, 0}, LockCase{"FloatStore", {0xd9, 0x1b}, 1},
        LockCase{"Fxsave", {0x0f, 0xae, 0x03}, 1}, LockCase{"MovsFromIt", {0xa4}, 0},
        LockCase{"Push", {0x48, 0x8d, 0x63, 8, 0x50}, 1},
        LockCase{"Call", {0x48, 0x8d, 0x63, 8, 0xe8, 0, 0, 0, 0}, 1}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(DebugTest, AFaultOfTheInstructionComesAloneAndItsDataIsMetWhenItSucceeds) {
  Arm(0, kData, kWrite, kLen4);
  machine_.Spte(kData + 0x1000) = 0;
  state_.gpr[kRdi] = kData + 0xffc;
  const std::vector<Seen> seen =
      Run({0x48, 0x89, 0x07});  // mov [rdi], rax: into the page that is not there
  EXPECT_EQ(exit_.reason, ExitReason::kTableFault);
  EXPECT_TRUE(seen.empty());
}

// MOV SS, POP SS: [kData] is a selector.
class DebugStackSwitch : public DebugTest {
 protected:
  explicit DebugStackSwitch(Vendor vendor = Vendor::kIntel) : DebugTest(vendor) {
    Put(kData, 0x10);
    Arm(0, kData, kAccess, kLen4);
  }
  const Bytes kMovSs = {0x8e, 0x14, 0x25, 0, 0, 3, 0};
};

TEST_F(DebugStackSwitch, HidesDebugExceptionsForOneInstruction) {
  const std::vector<Seen> seen = Run(kMovSs + kNops);
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].rip, At(8));
  EXPECT_EQ(seen[0].dr6, kDr6 | 1);
}

TEST_F(DebugStackSwitch, HidesTheBreakpointOnTheNextInstruction) {
  Arm(1, At(7), kExecute, kLen1);
  const std::vector<Seen> seen = Run(kMovSs + kNops);
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].dr6, kDr6 | 1);
}

class DebugStackSwitchOnAmd : public DebugStackSwitch {
 protected:
  DebugStackSwitchOnAmd() : DebugStackSwitch(Vendor::kAmd) {}
};

TEST_F(DebugStackSwitchOnAmd, DoesNotHideTheBreakpointOnTheNextInstruction) {
  Arm(1, At(7), kExecute, kLen1);
  const std::vector<Seen> seen = Run(kMovSs + kNops);
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].rip, At(7));
  EXPECT_EQ(seen[0].dr6, kDr6 | 3);
}

TEST_F(DebugStackSwitch, TakesNoSingleStepOfItsOwn) {
  state_.dr7 = kDr7Fixed;
  state_.rflags |= kFlagTf;
  const std::vector<Seen> seen = Run(kMovSs + kNops);
  ASSERT_GE(seen.size(), 1u);
  EXPECT_EQ(seen[0].rip, At(8));
}

TEST_F(DebugStackSwitch, IcebpTellsWhatWaits) {
  const std::vector<Seen> seen = Run(kMovSs + Bytes{0xf1});
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].rip, At(8));
  EXPECT_EQ(seen[0].dr6, kDr6 | 1);
}

TEST_F(DebugStackSwitch, ASoftwareInterruptIsEnteredFirst) {
  const std::vector<Seen> seen = Run(kMovSs + Bytes{0xcd, 1});
  ExpectEnd();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0].rip, kHandler);
  EXPECT_EQ(seen[0].dr6, kDr6 | 1);
  EXPECT_EQ(seen[1].rip, At(9));
}

TEST_F(DebugTest, IcebpLeavesDr6Alone) {
  state_.dr6 = kDr6 | kDr6Bs;
  const std::vector<Seen> seen = Run({0xf1});
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].dr6, kDr6 | kDr6Bs);
  EXPECT_EQ(seen[0].rip, At(1));
}

TEST_F(DebugTest, PushesOfAnEventMeetBreakpointsBehindItsDelivery) {
  // The frame of INT 1 ends below kStackTop.
  Arm(0, TestProcessor::kStackTop - 8, kWrite, kLen4);
  const std::vector<Seen> seen = Run({0xcd, 1});
  ExpectEnd();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0].rip, kHandler);
  EXPECT_EQ(seen[0].dr6, kDr6 | 1);
}

TEST_F(DebugTest, GeneralDetectIsAFaultBeforeTheMove) {
  state_.dr7 |= kDr7Gd;
  const std::vector<Seen> seen = Run({0x0f, 0x21, 0xf8});  // mov rax, dr7
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].rip, At(0));
  EXPECT_EQ(seen[0].dr6, kDr6 | kDr6Bd);
  EXPECT_NE(seen[0].flags & kFlagRf, 0u);
  EXPECT_EQ(state_.gpr[kRax], kDr7Fixed);  // GD is clear in the handler and behind it
}

TEST_F(DebugTest, PortsAreWatchedWithDebugExtensions) {
  for (const bool extensions : {false, true}) {
    Put(kLog, 0);
    state_ = TestProcessor::LongModeState();
    state_.idtr = {.base = kIdt, .limit = 0x1ff};
    state_.gdtr = {.base = kGdt, .limit = 0x1f};
    if (extensions) state_.cr4 |= kCr4De;
    Arm(0, 0x61, kPort, kLen1);
    Run({0xe4, 0x61});  // in al, 61h
    ASSERT_EQ(exit_.reason, ExitReason::kBus);
    BusAccess answer = exit_.bus;
    answer.value = 0x2a;
    machine_.processor().CompleteBus(answer);
    EXPECT_EQ(machine_.processor().Run(1000).reason, ExitReason::kHalt);
    EXPECT_EQ(machine_.processor().GetState().gpr[kRax] & 0xff, 0x2au);
    EXPECT_EQ(machine_.Read<std::uint32_t>(kLog), extensions ? 1u : 0u);
  }
}

TEST_F(DebugTest, BreakpointsMayBeSetAndTakenAwayByTheProgram) {
  state_.gpr[kRax] = kData;
  state_.gpr[kRcx] = 0x401 | 0xd'0000;  // L0, write, four bytes
  state_.gpr[kRdx] = 0x400;
  const Bytes set = {0x0f, 0x23, 0xc0, 0x0f, 0x23, 0xf9};  // mov dr0, rax; mov dr7, rcx
  const Bytes drop = {0x0f, 0x23, 0xfa};                   // mov dr7, rdx
  const std::vector<Seen> seen = Run(kStore + set + kStore + drop + kStore);
  ExpectEnd();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].rip, At(20));
}

TEST_F(DebugTest, BranchTrapFlagStepsToTheNextTakenBranch) {
  // mov ecx, 1d9h; xor edx, edx; mov eax, 2; wrmsr; pushf; or [rsp], TF; popf
  const Bytes begin = {0xb9, 0xd9, 1,    0,    0,    0x31, 0xd2, 0xb8, 2, 0, 0,   0,
                       0x0f, 0x30, 0x9c, 0x81, 0x0c, 0x24, 0,    1,    0, 0, 0x9d};
  const auto from = static_cast<unsigned>(begin.size());
  // nop; jmp +0; nop
  const std::vector<Seen> seen = Run(begin + Bytes{0x90, 0xeb, 0, 0x90});
  ASSERT_GE(seen.size(), 2u);
  EXPECT_EQ(seen[0].rip, At(from + 3));
  EXPECT_EQ(seen[0].dr6, kDr6 | kDr6Bs);
  EXPECT_EQ(seen[1].rip, At(from + 4));  // the exception has cleared BTF
}

}  // namespace
}  // namespace pagesaw::cpu
