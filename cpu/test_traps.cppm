// What a piece of 64-bit code ends in: for tests that ask whether an instruction exists.
module;
#include <cstdint>
#include <span>
export module pagesaw.cpu.test_traps;

export import pagesaw.cpu.test_processor;

export namespace pagesaw::cpu {

// Runs code at CPL 0 behind an IDT whose handlers halt.
class TrapTester {
 public:
  static constexpr int kNoTrap = -1;
  static constexpr int kOther = -2;               // some other end
  static constexpr std::uint64_t kData = 0x5000;  // RDI; zeroes at first

  explicit TrapTester(const CpuModel& model);

  // The vector that `code` ends in, or kNoTrap: it ends by itself, or asks the outside something.
  // `state` is what it starts in; RIP, RDI, RSP and the descriptor tables are set here.
  int Run(std::span<const std::uint8_t> code, CpuState state = TestProcessor::LongModeState());
  // As it was left.
  CpuState state() { return test_.processor().GetState(); }
  TestProcessor& test() { return test_; }

 private:
  TestProcessor test_;
};

}  // namespace pagesaw::cpu
