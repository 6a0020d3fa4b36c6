// Random user-level instructions whose memory operands stay in a given area. For tests.
#ifndef PAGESAW_CPU_RANDOM_CODE_H_
#define PAGESAW_CPU_RANDOM_CODE_H_

#include "cpu/native_runner.h"

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace pagesaw::cpu {

using Random = std::mt19937_64;

// What the manuals leave open.
enum class Undefined : std::uint8_t {
  kNothing,
  kShift,
  kRotate,
  kDoubleShift,
  kMultiply,
  kDivide,
  kBitTest,
  kScan,
  kCount,
  kLogic,
  kAndn,
  kBextr,
  kBls,
};

struct RandomCode {
  std::string name;
  std::vector<std::uint8_t> bytes;  // the instructions, the one under test last
  std::size_t last = 0;             // where that one starts
  std::array<std::uint64_t, 16> gpr = {};
  std::uint64_t rflags = 2;
  NativeExtended extended = NativeExtended::Initial();
  std::uint64_t undefined_flags = 0;
  bool undefined_result = false;   // the same for registers and memory
  bool undefined_if_zero = false;  // the same for registers if ZF comes out set
  bool misaligned = false;         // the memory operand is not on a boundary of 16 bytes
  bool optional = false;           // not every processor has the instruction
};

// Where things are, below 2 GiB.
struct CodeArea {
  std::uint64_t code = 0;    // of the first byte
  std::uint64_t target = 0;  // where branches go, within 127 bytes of the code
  std::uint64_t data = 0;    // page aligned: two pages that can be written
};

// `memory` receives what the two data pages are to hold.
RandomCode MakeRandomCode(Random& random, const CodeArea& area, std::vector<std::uint8_t>& memory);

// The same for x87 and vector instructions, with values in their registers that floating point
// finds interesting.
RandomCode MakeRandomVectorCode(Random& random, const CodeArea& area,
                                std::vector<std::uint8_t>& memory);

}  // namespace pagesaw::cpu

#endif  // PAGESAW_CPU_RANDOM_CODE_H_
