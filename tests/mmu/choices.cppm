// Where a test's choices come from: a seed, or the bytes that a fuzzer made up.
module;
#include <cstddef>
#include <cstdint>
#include <span>
export module pagesaw.tests.mmu.choices;

export namespace pagesaw {

class Choices {
 public:
  // Endless, and the same for the same seed.
  explicit Choices(std::uint64_t seed) : state_(seed) {}
  // As long as `bytes`, which must outlive the choices, last; then every choice is 0.
  explicit Choices(std::span<const std::uint8_t> bytes) : bytes_(bytes), scripted_(true) {}

  // 0 to `bound` - 1.
  std::uint64_t Below(std::uint64_t bound) { return Next(bound) % bound; }
  // True once in `times`.
  bool Chance(unsigned times) { return Below(times) == 0; }
  // Any value.
  std::uint64_t Word() { return Next(~std::uint64_t{0}); }

  // Whether the bytes have run out.
  bool exhausted() const { return scripted_ && used_ == bytes_.size(); }

 private:
  std::uint64_t Next(std::uint64_t bound) {
    if (scripted_) {
      std::uint64_t value = 0;
      for (std::uint64_t left = bound - 1; left != 0 && used_ < bytes_.size(); left >>= 8) {
        value = value << 8 | bytes_[used_++];
      }
      return value;
    }
    // SplitMix64.
    std::uint64_t z = state_ += 0x9e37'79b9'7f4a'7c15;
    z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
    z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
    return z ^ (z >> 31);
  }

  std::uint64_t state_ = 0;
  std::span<const std::uint8_t> bytes_;
  std::size_t used_ = 0;
  bool scripted_ = false;
};

}  // namespace pagesaw
