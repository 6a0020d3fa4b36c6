// Boots ELF32 images that carry a multiboot 1 header. [multiboot] "Multiboot Specification 0.6.96"
module;
#include <absl/status/statusor.h>
#include <cstddef>
#include <span>
export module pagesaw.machine.multiboot;

import pagesaw.core.cpu_state;
import pagesaw.machine.boot_memory;
import pagesaw.machine.elf;

export namespace pagesaw {

// Whether the first 8 KiB of `image` hold a multiboot header.
bool HasMultibootHeader(std::span<const std::byte> image);

// Loads the image, writes the information block (memory map, command line, the initrd as the only
// module) and returns the registers to start with.
absl::StatusOr<CpuState> LoadMultiboot(const BootRequest& request, const ElfImage& elf);

}  // namespace pagesaw
