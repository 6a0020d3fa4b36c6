// What a guest has as a disk: a file of the host that is never written. What a guest writes is kept
// in memory, up to a bound, and gone with the VM.
module;
#include <absl/container/flat_hash_map.h>
#include <absl/status/statusor.h>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
export module pagesaw.machine.disk;

import pagesaw.machine.host_file;

export namespace pagesaw {

class Disk {
 public:
  static constexpr std::uint64_t kSectorBytes = 512;
  static constexpr std::uint64_t kWrittenMaxBytes = std::uint64_t{256} << 20;

  // NotFound, PermissionDenied; InvalidArgument for what is no regular file, or not a positive
  // multiple of kSectorBytes long.
  static absl::StatusOr<std::unique_ptr<Disk>> Open(
      const std::string& path, bool read_only, std::uint64_t written_max_bytes = kWrittenMaxBytes);
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;

  std::uint64_t bytes() const { return file_.bytes(); }
  bool read_only() const { return read_only_; }

  // False beyond the end, and if the file cannot be read any more, as when it was made shorter.
  [[nodiscard]] bool Read(std::uint64_t offset, std::span<std::byte> data) const;
  // False beyond the end, for a disk that is read-only, and when the bound of what is kept is met.
  // The parts before that have been written.
  [[nodiscard]] bool Write(std::uint64_t offset, std::span<const std::byte> data);

 private:
  static constexpr std::uint64_t kBlockBytes = 4096;
  using Block = std::array<std::byte, kBlockBytes>;

  Disk(HostFile file, bool read_only, std::uint64_t written_max_bytes)
      : file_(std::move(file)),
        read_only_(read_only),
        written_max_blocks_(written_max_bytes / kBlockBytes) {}
  bool Contains(std::uint64_t offset, std::uint64_t count) const;
  Block* BlockToWrite(std::uint64_t number);

  const HostFile file_;
  const bool read_only_;
  const std::uint64_t written_max_blocks_;
  absl::flat_hash_map<std::uint64_t, std::unique_ptr<Block>> written_;  // by number
};

}  // namespace pagesaw
