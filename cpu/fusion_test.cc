#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.cpu.decoder;
import pagesaw.cpu.test_processor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

struct Encoding {
  const char* name;
  Bytes bytes;
};

// Instructions that handlers of two begin with. RDI and RSI point to data, R8 to nothing.
const Encoding kFirst[] = {
    {"mov eax, ecx", {0x89, 0xc8}},
    {"mov rax, rcx", {0x48, 0x89, 0xc8}},
    {"mov ecx, 7", {0xb9, 7, 0, 0, 0}},
    {"mov ecx, [rdi]", {0x8b, 0x0f}},
    {"mov rcx, [rdi]", {0x48, 0x8b, 0x0f}},
    {"mov rcx, [r8]", {0x49, 0x8b, 0x08}},
    {"mov [rdi], ecx", {0x89, 0x0f}},
    {"mov [rdi], rcx", {0x48, 0x89, 0x0f}},
    {"mov [r8], rcx", {0x49, 0x89, 0x08}},
    {"lea rcx, [rdi+rdx*4+5]", {0x48, 0x8d, 0x4c, 0x97, 5}},
    {"push rcx", {0x51}},
    {"push rsp", {0x54}},
    {"pop rcx", {0x59}},
    {"pop rsp", {0x5c}},
    {"add rcx, -3", {0x48, 0x83, 0xc1, 0xfd}},
    {"sub rcx, 9", {0x48, 0x83, 0xe9, 9}},
    {"and ecx, 0x70", {0x83, 0xe1, 0x70}},
    {"add ecx, 1", {0x83, 0xc1, 1}},
    {"and ecx, edx", {0x21, 0xd1}},
    {"xor ecx, ecx", {0x31, 0xc9}},
    {"add rcx, rdx", {0x48, 0x01, 0xd1}},
    {"cmp ecx, edx", {0x39, 0xd1}},
    {"cmp cl, dl", {0x38, 0xd1}},
    {"cmp rcx, 5", {0x48, 0x83, 0xf9, 5}},
    {"cmp dword [rdi], 5", {0x83, 0x3f, 5}},
    {"cmp [rdi], rcx", {0x48, 0x39, 0x0f}},
    {"cmp rcx, [rdi]", {0x48, 0x3b, 0x0f}},
    {"cmp rcx, [r8]", {0x49, 0x3b, 0x08}},
    {"test ecx, edx", {0x85, 0xd1}},
    {"test cl, 0x81", {0xf6, 0xc1, 0x81}},
    {"test byte [rdi], 1", {0xf6, 0x07, 1}},
    {"and rcx, rdx", {0x48, 0x21, 0xd1}},
    {"sub ecx, edx", {0x29, 0xd1}},
    {"sub cl, 1", {0x80, 0xe9, 1}},
    {"or ecx, edx", {0x09, 0xd1}},
    {"dec ecx", {0xff, 0xc9}},
    {"dec rcx", {0x48, 0xff, 0xc9}},
};

// Instructions that may follow. A taken jump skips INC R15, and a taken CALL as well.
std::vector<Encoding> Second() {
  std::vector<Encoding> all = {{"call", {0xe8, 3, 0, 0, 0}}, {"jmp", {0xeb, 3}}, {"ret", {0xc3}}};
  for (std::uint8_t code = 0; code < 16; ++code) {
    all.push_back({"jcc", {static_cast<std::uint8_t>(0x70 | code), 3}});
  }
  for (const Encoding& first : kFirst) all.push_back(first);
  return all;
}

constexpr std::uint64_t kPage = TestProcessor::kCode;
constexpr std::uint64_t kData = 0x20000, kNothing = 0x30000, kReturnTo = 0x6000;

struct Outcome {
  ExitReason reason = ExitReason::kBudget;
  CpuState state;
  std::uint64_t faulting = 0;
  std::uint64_t retired = 0;
  std::array<std::byte, 64> data = {}, stack = {};
};

// Runs `code` at `start` of a machine whose registers and data come from `seed`. Places are counted
// from `start`.
Outcome RunAt(const Bytes& code, std::uint64_t start, unsigned seed, bool returns, bool calls) {
  TestProcessor machine{CpuModel()};
  std::mt19937_64 random(seed);
  const auto some = [&random] { return random() & (random() % 3 == 0 ? 7 : ~std::uint64_t{0}); };
  for (std::uint64_t at = kData; at < kData + 64; at += 8) {
    const std::uint64_t value = some();
    std::memcpy(machine.memory() + at, &value, sizeof(value));
  }
  CpuState state = machine.processor().GetState();
  for (std::uint64_t& gpr : state.gpr) gpr = some();
  state.gpr[kRdi] = kData;
  state.gpr[kRsi] = kData + 32;
  state.gpr[8] = kNothing;
  state.gpr[kRsp] = TestProcessor::kStackTop - 32;
  state.rflags |= some() & (kFlagCf | kFlagPf | kFlagAf | kFlagZf | kFlagSf | kFlagOf);
  state.rip = start;
  machine.Spte(kNothing) = 0;
  if (returns) {
    for (std::uint64_t at = TestProcessor::kStackTop - 64; at < TestProcessor::kStackTop; at += 8) {
      std::memcpy(machine.memory() + at, &kReturnTo, sizeof(kReturnTo));
    }
    const std::uint64_t data[] = {kReturnTo, kReturnTo};
    std::memcpy(machine.memory() + kData, data, sizeof(data));
  }
  machine.Write(kReturnTo, Bytes{0xf4});
  machine.Write(start, code);
  machine.processor().SetState(state);
  const Exit exit = machine.processor().Run(1000);
  Outcome outcome = {.reason = exit.reason, .state = machine.processor().GetState()};
  outcome.retired = machine.processor().instructions_retired();
  outcome.faulting = exit.reason == ExitReason::kTableFault ? exit.fault.address.bits() : 0;
  if (outcome.state.rip - start < 64) outcome.state.rip -= start;
  std::memcpy(outcome.data.data(), machine.memory() + kData, 64);
  if (calls && exit.reason == ExitReason::kHalt && outcome.state.gpr[kRsp] < kReturnTo * 16) {
    std::uint64_t pushed = 0;
    std::byte* const top = machine.memory() + outcome.state.gpr[kRsp];
    std::memcpy(&pushed, top, sizeof(pushed));
    pushed -= start;
    std::memcpy(top, &pushed, sizeof(pushed));
  }
  std::memcpy(outcome.stack.data(), machine.memory() + TestProcessor::kStackTop - 64, 64);
  return outcome;
}

// Two that share a page may have one handler; behind the end of a page another block begins.
TEST(FusionTest, TwoInstructionsDoTogetherWhatEachDoesAlone) {
  for (const Encoding& second : Second()) {
    const std::string name = second.name;
    for (const Encoding& first : kFirst) {
      Bytes code = first.bytes;
      code.insert(code.end(), second.bytes.begin(), second.bytes.end());
      code.insert(code.end(), {0x49, 0xff, 0xc7, 0xf4});  // inc r15; hlt
      for (unsigned seed = 1; seed <= 6; ++seed) {
        SCOPED_TRACE(std::string(first.name) + "; " + name + ", seed " + std::to_string(seed));
        const bool returns = name == "ret", calls = name == "call";
        const Outcome together = RunAt(code, kPage, seed, returns, calls);
        const Outcome apart =
            RunAt(code, kPage + 0x1000 - first.bytes.size(), seed, returns, calls);
        ASSERT_EQ(together.reason, apart.reason);
        ASSERT_EQ(together.state.gpr, apart.state.gpr);
        ASSERT_EQ(together.state.rflags, apart.state.rflags);
        ASSERT_EQ(together.state.rip, apart.state.rip);
        ASSERT_EQ(together.faulting, apart.faulting);
        ASSERT_EQ(together.retired, apart.retired);
        ASSERT_EQ(together.data, apart.data);
        ASSERT_EQ(together.stack, apart.stack);
      }
    }
  }
}

TEST(FusionTest, ACompareAndItsJumpHaveOneHandlerAndTheJumpItsOwn) {
  const CpuModel model;
  const auto decode = [&](const Bytes& code, std::vector<Op>& ops) {
    ops.assign(kMaxBlockOps, Op{});
    const std::span<const std::byte> bytes = std::as_bytes(std::span(code));
    DecodeBlock({bytes.data(), bytes.size(), 0}, CodeMode{}, model, ops.data());
  };
  std::vector<Op> pair, compare, jump;
  decode({0x39, 0xd1, 0x74, 0x00, 0xf4}, pair);  // cmp ecx, edx; jz; hlt
  decode({0x39, 0xd1, 0xf4}, compare);
  decode({0x74, 0x00, 0xf4}, jump);
  EXPECT_NE(pair[0].run, compare[0].run);
  EXPECT_EQ(pair[1].run, jump[0].run);
}

}  // namespace
}  // namespace pagesaw::cpu
