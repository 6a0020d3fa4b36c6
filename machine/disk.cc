module;
#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
module pagesaw.machine.disk;

namespace pagesaw {
namespace {

// Calls `work(block, offset in it, offset in the data, count)` for each block of a range, until it
// is false.
template <class Work>
bool ForEachBlock(std::uint64_t block_bytes, std::uint64_t offset, std::uint64_t count,
                  const Work& work) {
  for (std::uint64_t done = 0; done < count;) {
    const std::uint64_t inside = (offset + done) % block_bytes;
    const std::uint64_t piece = std::min(block_bytes - inside, count - done);
    if (!work((offset + done) / block_bytes, inside, done, piece)) return false;
    done += piece;
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Disk>> Disk::Open(const std::string& path, bool read_only,
                                                 std::uint64_t written_max_bytes) {
  auto file = HostFile::Open("disk", path);
  if (!file.ok()) return file.status();
  if (file->bytes() == 0 || file->bytes() % kSectorBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("disk '%s': %d bytes: must be a positive multiple of %d", path,
                        file->bytes(), kSectorBytes));
  }
  return std::unique_ptr<Disk>(new Disk(*std::move(file), read_only, written_max_bytes));
}

bool Disk::Contains(std::uint64_t offset, std::uint64_t count) const {
  return offset <= bytes() && count <= bytes() - offset;
}

bool Disk::Read(std::uint64_t offset, std::span<std::byte> data) const {
  if (!Contains(offset, data.size())) return false;
  if (written_.empty()) return file_.Read(offset, data).ok();
  return ForEachBlock(
      kBlockBytes, offset, data.size(),
      [&](std::uint64_t number, std::uint64_t inside, std::uint64_t at, std::uint64_t count) {
        const auto found = written_.find(number);
        if (found == written_.end()) {
          return file_.Read(offset + at, data.subspan(at, count)).ok();
        }
        std::memcpy(data.data() + at, found->second->data() + inside, count);
        return true;
      });
}

// The block, with what the disk holds there. Null if no more can be kept or the file cannot be
// read.
Disk::Block* Disk::BlockToWrite(std::uint64_t number) {
  const auto found = written_.find(number);
  if (found != written_.end()) return found->second.get();
  if (written_.size() >= written_max_blocks_) return nullptr;
  auto block = std::make_unique<Block>();
  const std::uint64_t offset = number * kBlockBytes;
  const std::uint64_t count = std::min(kBlockBytes, bytes() - offset);
  if (!file_.Read(offset, std::span(*block).first(count)).ok()) return nullptr;
  return written_.emplace(number, std::move(block)).first->second.get();
}

bool Disk::Write(std::uint64_t offset, std::span<const std::byte> data) {
  if (read_only_ || !Contains(offset, data.size())) return false;
  return ForEachBlock(
      kBlockBytes, offset, data.size(),
      [&](std::uint64_t number, std::uint64_t inside, std::uint64_t at, std::uint64_t count) {
        Block* block = BlockToWrite(number);
        if (block == nullptr) return false;
        std::memcpy(block->data() + inside, data.data() + at, count);
        return true;
      });
}

}  // namespace pagesaw
