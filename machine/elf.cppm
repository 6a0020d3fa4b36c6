// Reads ELF executables for x86 from bytes that nobody vouches for: every offset is checked.
// [sysv/gabi] "Object Files", "Program Loading and Dynamic Linking"
module;
#include <absl/status/statusor.h>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>
export module pagesaw.machine.elf;

export namespace pagesaw {

// A loadable piece of an image. `file` has at most `memory_bytes` bytes; the rest is zeroes.
struct ElfSegment {
  std::uint64_t physical = 0;
  std::uint64_t linear = 0;
  std::uint64_t memory_bytes = 0;
  std::span<const std::byte> file;

  constexpr bool HasPhysical(std::uint64_t address) const {
    return address - physical < memory_bytes;
  }
};

struct ElfNote {
  std::string_view name;
  std::uint32_t type = 0;
  std::span<const std::byte> data;
};

// Views into the bytes that it was read from.
struct ElfImage {
  bool is_64 = false;
  std::uint64_t entry = 0;
  std::vector<ElfSegment> segments;  // at least one; no address wraps
  std::vector<ElfNote> notes;
};

bool HasElfMagic(std::span<const std::byte> bytes);

// InvalidArgument, with a sentence that says what was expected and what is there.
absl::StatusOr<ElfImage> ParseElf(std::span<const std::byte> bytes);

// The little-endian value of `count` (at most 8) bytes at `offset`, or nothing if they are not all
// there.
std::optional<std::uint64_t> LoadLittleEndian(std::span<const std::byte> bytes,
                                              std::uint64_t offset, unsigned count);

}  // namespace pagesaw
