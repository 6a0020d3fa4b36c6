// Brings a VM's image into its memory, whichever boot protocol it speaks.
module;
#include <absl/status/statusor.h>
#include <cstdint>
#include <string>
export module pagesaw.machine.image_loader;

import pagesaw.core.cpu_state;
import pagesaw.machine.boot_memory;
import pagesaw.machine.load_progress;
import pagesaw.machine.memory_slots;

export namespace pagesaw {

// Loads what `request.image` holds; messages begin with the image's name. InvalidArgument for an
// image that cannot be booted, ResourceExhausted where something does not fit into the RAM.
absl::StatusOr<CpuState> LoadImage(const BootRequest& request);

// The same for files; `initrd_path` may be empty.
absl::StatusOr<CpuState> LoadImageFiles(const SlotTable& memory, std::uint64_t memory_bytes,
                                        const std::string& image_path, const std::string& cmdline,
                                        const std::string& initrd_path, LoadProgress& progress);

}  // namespace pagesaw
