// How instructions that lie in two pages were decoded the last time. Nobody keeps blocks of them,
// since either page may be mapped anew; so they are found by their bytes.
module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
export module pagesaw.cpu.split_instructions;

export import pagesaw.cpu.decoder;

export namespace pagesaw::cpu {

struct SplitInstruction {
  std::array<std::byte, 15> bytes = {};
  std::uint8_t length = 0;  // 0: none
  std::uint16_t page_offset = 0;
  unsigned mode = 0;  // CodeMode::key
  DecodedBlock decoded;
  std::array<Op, 4> ops;  // as they were decoded: no branch of them knows its target

  // Whether its bytes begin with `first`, of which there are too few, at its place in its mode.
  inline bool BeginsWith(std::span<const std::byte> first, std::uint16_t offset,
                         CodeMode code) const {
    return first.size() < length && page_offset == offset && mode == code.key() &&
           std::equal(first.begin(), first.end(), bytes.begin());
  }
  // Whether `code` begins with all of it.
  inline bool IsAt(std::span<const std::byte> code) const {
    return length <= code.size() && std::equal(bytes.begin(), bytes.begin() + length, code.begin());
  }
};

class SplitInstructions {
 public:
  // Where the one that begins at `linear` is remembered, if it is.
  inline SplitInstruction& At(std::uint64_t linear) {
    return remembered_[(linear >> 12) & (kCount - 1)];
  }

 private:
  static constexpr unsigned kCount = 16;
  std::array<SplitInstruction, kCount> remembered_;
};

}  // namespace pagesaw::cpu
