// Boots Linux kernels and whatever else comes as a bzImage, at the 64-bit entry.
// [linux/boot] "The Linux/x86 Boot Protocol"
module;
#include <absl/status/statusor.h>
#include <cstddef>
#include <span>
export module pagesaw.machine.linux_boot;

import pagesaw.core.cpu_state;
import pagesaw.machine.boot_memory;

export namespace pagesaw {

// Whether `image` has the boot sector and the magic number of a setup header, of any version.
bool HasLinuxHeader(std::span<const std::byte> image);

// Loads the protected-mode kernel where it prefers to be, or at the lowest address that suits it if
// it can be relocated and there is too little RAM, and the initrd behind what it needs to start.
// RSI points to the boot parameters: memory map, command line, initrd, ACPI tables, a text screen
// of 80 columns and 25 lines.
//
// InvalidArgument for an image that is truncated, speaks a protocol before 2.12 or has no 64-bit
// entry, and for a command line that is longer than it takes; ResourceExhausted where something
// does not fit into the RAM.
absl::StatusOr<CpuState> LoadLinux(const BootRequest& request);

}  // namespace pagesaw
