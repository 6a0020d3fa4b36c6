module;
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>
module pagesaw.cpu.test_traps;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kGdt = 0x2'0000, kIdt = 0x2'1000, kHandlers = 0x2'2000;
constexpr unsigned kVectors = 32, kHandlerBytes = 16;
constexpr std::uint8_t kHlt = 0xf4;
constexpr unsigned kExits = 64;  // more than changes of control registers make

}  // namespace

TrapTester::TrapTester(const CpuModel& model) : test_(model) {
  const std::array<std::uint64_t, 3> gdt = {0, 0x00af'9b00'0000'ffff, 0x00cf'9300'0000'ffff};
  std::memcpy(test_.memory() + kGdt, gdt.data(), sizeof(gdt));
  // Pages of supervisors: SMEP and SMAP have nothing against them.
  for (std::uint64_t page = 0; page < TestProcessor::kMemoryBytes; page += 4096) {
    test_.Spte(page) &= ~std::uint64_t{4};
  }
  for (std::uint64_t vector = 0; vector < kVectors; ++vector) {
    const std::uint64_t handler = kHandlers + vector * kHandlerBytes;
    const std::uint64_t gate = (handler & 0xffff) | std::uint64_t{8} << 16 |
                               std::uint64_t{0x8e00} << 32 | handler >> 16 << 48;
    std::memcpy(test_.memory() + kIdt + vector * 16, &gate, sizeof(gate));
    std::memcpy(test_.memory() + handler, &kHlt, 1);
  }
}

int TrapTester::Run(std::span<const std::uint8_t> code, CpuState state) {
  std::vector<std::uint8_t> bytes(code.begin(), code.end());
  bytes.push_back(kHlt);
  test_.Write(TestProcessor::kCode, bytes);
  state.rip = TestProcessor::kCode;
  state.gpr[kRdi] = kData;
  state.gpr[kRsp] = TestProcessor::kStackTop;
  state.gdtr = {.base = kGdt, .limit = 0xff};
  state.idtr = {.base = kIdt, .limit = 0xfff};
  test_.processor().SetState(state);
  for (unsigned i = 0; i < kExits; ++i) {
    const Exit exit = test_.processor().Run(1000);
    if (exit.reason == ExitReason::kPagingChanged || exit.reason == ExitReason::kInvalidate)
      continue;
    if (exit.reason == ExitReason::kBus) return kNoTrap;
    if (exit.reason != ExitReason::kHalt) return kOther;
    const std::uint64_t behind = test_.processor().GetState().rip - 1;
    if (behind == TestProcessor::kCode + code.size()) return kNoTrap;
    return static_cast<int>((behind - kHandlers) / kHandlerBytes);
  }
  return kOther;
}

}  // namespace pagesaw::cpu
