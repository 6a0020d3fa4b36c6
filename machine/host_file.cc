module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>
module pagesaw.machine.host_file;

namespace pagesaw {
namespace {

absl::Status SystemError(const std::string& name, int error) {
  const std::string message = absl::StrFormat("%s: %s", name, std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  return absl::InvalidArgumentError(message);
}

}  // namespace

absl::StatusOr<HostFile> HostFile::Open(std::string_view what, const std::string& path) {
  const std::string name = absl::StrFormat("%s '%s'", what, path);
  // Without O_NONBLOCK a FIFO would block here.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return SystemError(name, errno);
  HostFile opened(name, file, 0);
  struct stat info = {};
  if (fstat(file, &info) != 0) return SystemError(name, errno);
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: is a directory", name));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: not a regular file", name));
  }
  opened.bytes_ = static_cast<std::uint64_t>(info.st_size);
  return opened;
}

HostFile::~HostFile() {
  if (file_ >= 0) close(file_);
}

absl::Status HostFile::Read(std::uint64_t offset, std::span<std::byte> data) const {
  while (!data.empty()) {
    const ssize_t count = pread(file_, data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return SystemError(name_, errno);
    if (count == 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: became shorter while it was read", name_));
    }
    offset += static_cast<std::uint64_t>(count);
    data = data.subspan(static_cast<std::size_t>(count));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::byte>> ReadHostFile(std::string_view what, const std::string& path,
                                                    std::uint64_t max_bytes,
                                                    LoadProgress& progress) {
  constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
  const auto file = HostFile::Open(what, path);
  if (!file.ok()) return file.status();
  if (file->bytes() == 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%s '%s': the file is empty", what, path));
  }
  if (file->bytes() > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s '%s': %d bytes do not fit into the guest's memory (at most %d)", what,
                        path, file->bytes(), max_bytes));
  }
  std::vector<std::byte> data(file->bytes());
  for (std::size_t at = 0; at < data.size();) {
    const auto piece = std::span(data).subspan(at, std::min(kPieceBytes, data.size() - at));
    if (absl::Status status = file->Read(at, piece); !status.ok()) return status;
    at += piece.size();
    progress.Add(piece.size());
  }
  return data;
}

}  // namespace pagesaw
