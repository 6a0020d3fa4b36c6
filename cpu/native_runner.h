// Runs a few bytes of code on this machine's own processor, with every register chosen, and reports
// what they did. For tests.
#ifndef PAGESAW_CPU_NATIVE_RUNNER_H_
#define PAGESAW_CPU_NATIVE_RUNNER_H_

#include <array>
#include <cstdint>

namespace pagesaw::cpu {

// How running code ended.
struct NativeEnd {
  bool at_second_exit = false;  // which exit it jumped to, unless a fault ended it
  bool fault = false;
  unsigned vector = 0;
  std::uint64_t error_code = 0;
  std::uint64_t cr2 = 0;
  std::uint64_t rip = 0;  // with a fault
};

// x87 and vector registers as XSAVE stores them in the standard format.
struct alignas(64) NativeExtended {
  static constexpr unsigned kHeader = 512, kYmmHigh = 576;
  std::array<std::uint8_t, 832> bytes = {};

  // The state that programs start with.
  static NativeExtended Initial();
};

struct NativeState {
  std::array<std::uint64_t, 16> gpr = {};
  std::uint64_t rflags = 2;
  NativeExtended extended = NativeExtended::Initial();
};

// The code must end by a jump to one of these.
std::uint64_t NativeFirstExit();
std::uint64_t NativeSecondExit();

// Runs the code at `code`. `state` is what it starts with, then what it left. One thread only.
NativeEnd RunNative(std::uint64_t code, NativeState& state);

}  // namespace pagesaw::cpu

#endif  // PAGESAW_CPU_NATIVE_RUNNER_H_
