// Reads a file of the host that a guest is to be given.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.machine.host_file;

export namespace pagesaw {

// What `error`, an errno, says of the file `path`.
absl::Status HostFileError(std::string_view what, const std::string& path, int error);

// The contents of the regular file `path`, which `what` calls it in messages ("image", "initrd").
// NotFound, PermissionDenied, InvalidArgument (empty, or not a regular file), ResourceExhausted
// (more than `max_bytes`).
absl::StatusOr<std::vector<std::byte>> ReadHostFile(std::string_view what, const std::string& path,
                                                    std::uint64_t max_bytes);

}  // namespace pagesaw
