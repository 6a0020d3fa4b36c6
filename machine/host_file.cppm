// Files of the host that a guest is given.
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
export module pagesaw.machine.host_file;

export import pagesaw.machine.load_progress;

export namespace pagesaw {

// A regular file, open for reading.
class HostFile {
 public:
  // `what` is what messages call it ("image", "disk"). NotFound, PermissionDenied; InvalidArgument
  // for what is no regular file.
  static absl::StatusOr<HostFile> Open(std::string_view what, const std::string& path);
  HostFile(HostFile&& other) noexcept
      : name_(std::move(other.name_)),
        file_(std::exchange(other.file_, -1)),
        bytes_(other.bytes_) {}
  HostFile& operator=(HostFile&&) = delete;
  ~HostFile();

  // When it was opened.
  std::uint64_t bytes() const { return bytes_; }
  // InvalidArgument if the file is too short by now.
  absl::Status Read(std::uint64_t offset, std::span<std::byte> data) const;

 private:
  HostFile(std::string name, int file, std::uint64_t bytes)
      : name_(std::move(name)), file_(file), bytes_(bytes) {}

  std::string name_;  // in messages
  int file_;
  std::uint64_t bytes_;
};

// The contents of a file. As `HostFile::Open`; InvalidArgument if it is empty, ResourceExhausted if
// it has more than `max_bytes`. `progress` is told of each piece that has been read.
absl::StatusOr<std::vector<std::byte>> ReadHostFile(std::string_view what, const std::string& path,
                                                    std::uint64_t max_bytes,
                                                    LoadProgress& progress);

}  // namespace pagesaw
