// Where a loader puts things into a guest's memory: the image's segments, and around them what the
// boot protocol hands over.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
export module pagesaw.machine.boot_memory;

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.machine.elf;
import pagesaw.machine.memory_slots;

export namespace pagesaw {

// From here on loaders put what a guest is told, above what firmware of old has in the first pages.
inline constexpr Gpa kBootInfoFrom(0x9000);

// What is to be booted.
struct BootRequest {
  const SlotTable* memory = nullptr;
  std::uint64_t memory_bytes = 0;
  std::string image_name;  // the first word of the command line
  std::span<const std::byte> image;
  std::string cmdline;
  std::span<const std::byte> initrd;  // empty: none
  std::string initrd_name;

  // The image's name and its arguments.
  std::string full_cmdline() const;
};

// What lies where in the guest's physical address space, for firmware tables.
struct MemoryRange {
  std::uint64_t base = 0;
  std::uint64_t bytes = 0;
  bool usable = true;
};
std::vector<MemoryRange> MemoryMap(std::uint64_t memory_bytes);

class BootMemory {
 public:
  BootMemory(const SlotTable& memory, std::uint64_t memory_bytes)
      : memory_(memory), memory_bytes_(memory_bytes) {}

  // Copies the segments and zeroes what follows them. InvalidArgument if one lies outside RAM.
  absl::Status LoadSegments(const ElfImage& image);
  // InvalidArgument unless the segments hold `entry`, a physical address.
  absl::Status CheckEntry(const ElfImage& image, std::uint64_t entry) const;

  // Takes `byte_count` bytes of RAM below 3 GiB, page aligned, at or above `from`, that nothing
  // else has. ResourceExhausted if there are none; `what` names them.
  absl::StatusOr<Gpa> Take(std::string_view what, std::uint64_t byte_count, Gpa from);
  // Takes room for `bytes` and copies them there.
  absl::StatusOr<Gpa> Place(std::string_view what, std::span<const std::byte> bytes, Gpa from);

  absl::Status Write(Gpa gpa, std::span<const std::byte> bytes) const {
    return memory_.Write(gpa, bytes);
  }
  // Behind the last segment.
  Gpa image_end() const { return image_end_; }

 private:
  const SlotTable& memory_;
  const std::uint64_t memory_bytes_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> taken_;  // first, end
  Gpa image_end_;
};

// A growing little-endian table.
class TableBuilder {
 public:
  TableBuilder& U32(std::uint32_t value);
  TableBuilder& U64(std::uint64_t value);
  TableBuilder& Text(std::string_view text);  // with a NUL behind it
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  TableBuilder& Append(std::uint64_t value, unsigned count);
  std::vector<std::byte> bytes_;
};

// 32-bit protected mode with flat segments, paging and interrupts off. [multiboot] "Machine state";
// the PVH entry asks for the same.
CpuState Flat32State(std::uint64_t entry);

// Selectors of the flat segments in a GDT of ours: different multiples of 8, at most 18h.
struct FlatSelectors {
  std::uint16_t code = 0x08, data = 0x10;
};

// 64-bit mode with flat segments under the tables at `cr3`, interrupts off.
CpuState Flat64State(std::uint64_t entry, Gpa cr3, const FlatSelectors& selectors = {});

// The same under tables and with a GDT that this places: pages of 2 MiB, writable and for the
// supervisor, map the first 4 GiB to themselves. There is no IDT and no stack. ResourceExhausted if
// there is no room.
absl::StatusOr<CpuState> EnterFlat64(BootMemory& boot, std::uint64_t entry,
                                     const FlatSelectors& selectors = {});

}  // namespace pagesaw
