// AMD's records of the last control transfers. [amd/vol2] "Control-Transfer Breakpoint Features"
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.core.processor;
import pagesaw.cpu.test_processor;
import pagesaw.cpu.test_vendor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint64_t kIdt = 0x20000, kGdt = 0x21000, kHandler = 0x22000;

struct Records {
  std::uint64_t from = 0, to = 0, int_from = 0, int_to = 0, debugctl = 0;
};

// What the records are behind `code`, which runs with recording on. Offsets into it; handlers of
// #BP and #DB, at kHandler, return at once.
class TransferRecordsTest {
 public:
  Records Run(const Bytes& code) {
    // mov ecx, 1d9h; xor edx, edx; xor eax, eax; inc eax; wrmsr
    Bytes all = {0xb9, 0xd9, 1, 0, 0, 0x31, 0xd2, 0x31, 0xc0, 0xff, 0xc0, 0x0f, 0x30};
    begin_ = TestProcessor::kCode + all.size();
    all.insert(all.end(), code.begin(), code.end());
    // mov ecx, 1d9h; rdmsr; mov ebx, eax; xor eax, eax; wrmsr
    for (const std::uint8_t byte :
         {0xb9, 0xd9, 1, 0, 0, 0x0f, 0x32, 0x89, 0xc3, 0x31, 0xc0, 0x0f, 0x30}) {
      all.push_back(byte);
    }
    // Four times: mov ecx, 1dbh + i; rdmsr; mov esi/edi/ebp/r8d, eax
    const Bytes keep[] = {{0x89, 0xc6}, {0x89, 0xc7}, {0x89, 0xc5}, {0x41, 0x89, 0xc0}};
    for (unsigned i = 0; i < 4; ++i) {
      all.insert(all.end(), {0xb9, static_cast<std::uint8_t>(0xdb + i), 1, 0, 0, 0x0f, 0x32});
      all.insert(all.end(), keep[i].begin(), keep[i].end());
    }
    all.push_back(0xf4);
    TestProcessor machine(ModelOf(Vendor::kAmd));
    machine.Write(kHandler, Bytes{0x48, 0xcf});
    for (const unsigned vector : {1u, 3u}) {
      std::uint64_t gate = (kHandler & 0xffff) | 0x8e00'0008'0000 | (kHandler >> 16) << 48;
      __builtin_memcpy(machine.memory() + kIdt + vector * 16, &gate, 8);
    }
    const std::uint64_t segments[] = {0, 0x00af'9b00'0000'ffff, 0x00cf'9300'0000'ffff};
    __builtin_memcpy(machine.memory() + kGdt, segments, sizeof(segments));
    CpuState state = TestProcessor::LongModeState();
    state.idtr = {.base = kIdt, .limit = 0x1ff};
    state.gdtr = {.base = kGdt, .limit = 0x17};
    machine.processor().SetState(state);
    EXPECT_EQ(machine.RunCode(all).reason, ExitReason::kHalt);
    state = machine.processor().GetState();
    EXPECT_EQ(state.rip, TestProcessor::kCode + all.size());
    return {state.gpr[kRsi], state.gpr[kRdi], state.gpr[kRbp], state.gpr[kR8], state.gpr[kRbx]};
  }
  std::uint64_t At(unsigned offset) const { return begin_ + offset; }

 private:
  std::uint64_t begin_ = 0;
};

struct BranchCase {
  const char* name;
  Bytes code;
  unsigned from, to;
};
class Branch : public testing::TestWithParam<BranchCase> {};
TEST_P(Branch, IsRecordedIfItIsTaken) {
  TransferRecordsTest test;
  const Records records = test.Run(GetParam().code);
  EXPECT_EQ(records.from, test.At(GetParam().from));
  EXPECT_EQ(records.to, test.At(GetParam().to));
  EXPECT_EQ(records.int_from, 0u);
  EXPECT_EQ(records.int_to, 0u);
  EXPECT_EQ(records.debugctl, 1u);
}
INSTANTIATE_TEST_SUITE_P(
    All, Branch,
    testing::Values(BranchCase{"Jump", {0x90, 0xeb, 1, 0x90}, 1, 4},
                    BranchCase{"JumpToTheNext", {0xeb, 0, 0x90}, 0, 2},
                    BranchCase{"ConditionalTaken", {0x31, 0xd2, 0x74, 1, 0x90}, 2, 5},
                    BranchCase{"ConditionalNotTaken", {0xeb, 0, 0x31, 0xd2, 0x75, 0}, 0, 2},
                    BranchCase{"Call", {0xe8, 1, 0, 0, 0, 0x90}, 0, 6},
                    BranchCase{"Return", {0xe8, 2, 0, 0, 0, 0xeb, 1, 0xc3}, 5, 8},
                    BranchCase{"Loop", {0x6a, 3, 0x59, 0x90, 0xe2, 0xfd, 0x90}, 4, 3},
                    BranchCase{"RepeatedStoreIsNone", {0xeb, 0, 0x6a, 0, 0x59, 0xf3, 0xaa}, 0, 2}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(TransferRecords, AnExceptionIsOneAndKeepsTheOneBefore) {
  TransferRecordsTest test;
  const Records records = test.Run({0xeb, 0, 0xcc, 0x90});  // INT3
  EXPECT_EQ(records.int_from, test.At(0));
  EXPECT_EQ(records.int_to, test.At(2));
  EXPECT_EQ(records.from, kHandler);  // the handler's IRET
  EXPECT_EQ(records.to, test.At(3));
  EXPECT_EQ(records.debugctl, 1u);
}

TEST(TransferRecords, ADebugExceptionEndsRecordingAndIsNotRecorded) {
  TransferRecordsTest test;
  const Records records = test.Run({0xeb, 0, 0xf1, 0xeb, 0});  // ICEBP
  EXPECT_EQ(records.from, test.At(0));
  EXPECT_EQ(records.to, test.At(2));
  EXPECT_EQ(records.int_from, 0u);
  EXPECT_EQ(records.debugctl, 0u);
}

}  // namespace
}  // namespace pagesaw::cpu
