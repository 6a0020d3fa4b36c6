// Boots ELF images that carry a multiboot 2 header. [multiboot2] "Multiboot2 Specification"
module;
#include <absl/status/statusor.h>
#include <cstddef>
#include <span>
export module pagesaw.machine.multiboot2;

import pagesaw.core.cpu_state;
import pagesaw.machine.boot_memory;
import pagesaw.machine.elf;

export namespace pagesaw {

// Whether the first 32 KiB of `image` hold a multiboot 2 header.
bool HasMultiboot2Header(std::span<const std::byte> image);

// As LoadMultiboot does. InvalidArgument if the header asks for what is not known.
absl::StatusOr<CpuState> LoadMultiboot2(const BootRequest& request, const ElfImage& elf);

}  // namespace pagesaw
