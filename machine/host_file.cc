module;
#include <absl/cleanup/cleanup.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>
module pagesaw.machine.host_file;

namespace pagesaw {
absl::Status HostFileError(std::string_view what, const std::string& path, int error) {
  const std::string message = absl::StrFormat("%s '%s': %s", what, path, std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  return absl::InvalidArgumentError(message);
}

absl::StatusOr<std::vector<std::byte>> ReadHostFile(std::string_view what, const std::string& path,
                                                    std::uint64_t max_bytes) {
  // Without O_NONBLOCK a FIFO would block here.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return HostFileError(what, path, errno);
  const absl::Cleanup close_file = [file] { close(file); };

  struct stat info = {};
  if (fstat(file, &info) != 0) return HostFileError(what, path, errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s '%s': not a regular file", what, path));
  }
  if (info.st_size == 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%s '%s': the file is empty", what, path));
  }
  const auto bytes = static_cast<std::uint64_t>(info.st_size);
  if (bytes > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s '%s': %d bytes do not fit into the guest's memory (at most %d)", what,
                        path, bytes, max_bytes));
  }
  std::vector<std::byte> data(bytes);
  std::size_t done = 0;
  while (done < data.size()) {
    const ssize_t count = read(file, data.data() + done, data.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return HostFileError(what, path, errno);
    if (count == 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s '%s': became shorter while it was read", what, path));
    }
    done += static_cast<std::size_t>(count);
  }
  return data;
}

}  // namespace pagesaw
