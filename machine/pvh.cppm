// Boots ELF64 images: at their PVH entry if a note names one, else at e_entry in 64-bit mode.
// [xen/pvh] "x86/HVM direct boot ABI"
module;
#include <absl/status/statusor.h>
export module pagesaw.machine.pvh;

import pagesaw.core.cpu_state;
import pagesaw.machine.boot_memory;
import pagesaw.machine.elf;

export namespace pagesaw {

// Loads the image and a start-info block (memory map, command line, the initrd as the only module).
//
// With a note XEN_ELFNOTE_PHYS32_ENTRY: 32-bit protected mode, EBX points to the start info.
//
// Without: 64-bit mode at e_entry, whose linear address must be its physical one. RDI points to the
// start info. Tables of 2 MiB pages, writable and for the supervisor, map the first 4 GiB to
// themselves; GDTR names a GDT with code at 08h and data at 10h; there is no IDT and no stack.
absl::StatusOr<CpuState> LoadElf64(const BootRequest& request, const ElfImage& elf);

}  // namespace pagesaw
