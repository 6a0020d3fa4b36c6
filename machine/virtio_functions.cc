module;
#include <sys/random.h>
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <vector>
module pagesaw.machine.virtio_functions;

namespace pagesaw {
namespace {

constexpr std::uint64_t kPieceBytes = 64 << 10;  // copied at a time

// Calls `copy(offset, piece)` for each piece of `count` bytes, until it is false.
template <class Copy>
bool ForEachPiece(std::uint64_t count, const Copy& copy) {
  std::vector<std::byte> piece(std::min(count, kPieceBytes));
  for (std::uint64_t done = 0; done < count;) {
    const std::uint64_t now = std::min(count - done, kPieceBytes);
    if (!copy(done, std::span(piece).first(now))) return false;
    done += now;
  }
  return true;
}

}  // namespace

// -- block

namespace {

// [virtio] "Block Device", "Device Operation"
struct BlockHeader {
  std::uint32_t type;
  std::uint32_t reserved;
  std::uint64_t sector;
};
constexpr std::uint32_t kIn = 0, kOut = 1, kFlush = 4, kGetId = 8;
constexpr std::byte kOk{0}, kIoError{1}, kUnsupported{2};
constexpr std::uint64_t kFeatureSegments = 1u << 2, kFeatureReadOnly = 1u << 5,
                        kFeatureFlush = 1u << 9;
constexpr std::uint64_t kSegmentsOffset = 12;
constexpr std::uint32_t kSegments = Virtqueue::kMaxSize - 2;  // beside header and status

}  // namespace

std::uint64_t VirtioBlock::features() const {
  return kFeatureSegments | kFeatureFlush | (disk_->read_only() ? kFeatureReadOnly : 0);
}

std::uint8_t VirtioBlock::Configuration(std::uint64_t offset) const {
  if (offset < 8) {
    return static_cast<std::uint8_t>(disk_->bytes() / Disk::kSectorBytes >> (8 * offset));
  }
  if (offset - kSegmentsOffset < 4) {
    return static_cast<std::uint8_t>(kSegments >> (8 * (offset - kSegmentsOffset)));
  }
  return 0;
}

bool VirtioBlock::ReadDisk(std::uint64_t offset, const DescriptorChain& chain, std::uint64_t count,
                           DeviceMemory& memory) const {
  return ForEachPiece(count, [&](std::uint64_t at, std::span<std::byte> piece) {
    return disk_->Read(offset + at, piece) && chain.Write(memory, at, piece);
  });
}

bool VirtioBlock::WriteDisk(std::uint64_t offset, const DescriptorChain& chain, std::uint64_t count,
                            const DeviceMemory& memory) {
  return ForEachPiece(count, [&](std::uint64_t at, std::span<std::byte> piece) {
    return chain.Read(memory, sizeof(BlockHeader) + at, piece) && disk_->Write(offset + at, piece);
  });
}

std::optional<std::uint32_t> VirtioBlock::Handle(unsigned, const DescriptorChain& chain,
                                                 DeviceMemory& memory) {
  // Without a byte for the status there is no way to say anything.
  const std::uint64_t writable = chain.writable_bytes();
  if (writable == 0) return 0;
  const std::uint64_t in_bytes = writable - 1;
  BlockHeader header = {};
  std::byte status = kIoError;
  std::uint64_t written = 0;
  if (chain.Read(memory, 0, std::as_writable_bytes(std::span(&header, 1)))) {
    const std::uint64_t out_bytes = chain.readable_bytes() - sizeof header;
    const bool sector_fits = header.sector <= disk_->bytes() / Disk::kSectorBytes;
    const std::uint64_t offset = sector_fits ? header.sector * Disk::kSectorBytes : disk_->bytes();
    switch (header.type) {
      case kIn:
        if (in_bytes <= kRequestMaxBytes && ReadDisk(offset, chain, in_bytes, memory)) {
          status = kOk;
          written = in_bytes;
        }
        break;
      case kOut:
        if (out_bytes <= kRequestMaxBytes && WriteDisk(offset, chain, out_bytes, memory)) {
          status = kOk;
        }
        break;
      case kFlush:
        status = kOk;
        break;
      case kGetId: {
        constexpr std::array<char, 20> kId = {"pagesaw"};
        const std::uint64_t count = std::min<std::uint64_t>(in_bytes, kId.size());
        if (chain.Write(memory, 0, std::as_bytes(std::span(kId)).first(count))) {
          status = kOk;
          written = count;
        }
        break;
      }
      default:
        status = kUnsupported;
    }
  }
  // A status that cannot be written is the driver's loss.
  if (!chain.Write(memory, in_bytes, std::span(&status, 1))) return 0;
  return static_cast<std::uint32_t>(written + 1);
}

// -- entropy

void VirtioEntropy::Fill(std::span<std::byte> bytes) {
  if (!generator_.has_value()) {
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t count = getrandom(bytes.data() + done, bytes.size() - done, 0);
      if (count > 0) done += static_cast<std::size_t>(count);
    }
    return;
  }
  for (std::byte& byte : bytes) byte = static_cast<std::byte>((*generator_)());
}

std::optional<std::uint32_t> VirtioEntropy::Handle(unsigned, const DescriptorChain& chain,
                                                   DeviceMemory& memory) {
  std::vector<std::byte> bytes(std::min(chain.writable_bytes(), kFillMaxBytes));
  Fill(bytes);
  if (!chain.Write(memory, 0, bytes)) return 0;
  return static_cast<std::uint32_t>(bytes.size());
}

// -- console

bool VirtioConsole::Receive(std::string_view data) {
  const std::lock_guard lock(mutex_);
  if (data.size() > kInputMaxBytes - input_.size()) return false;
  input_.insert(input_.end(), data.begin(), data.end());
  return true;
}

std::optional<std::uint32_t> VirtioConsole::GiveInput(const DescriptorChain& chain,
                                                      DeviceMemory& memory) {
  const std::lock_guard lock(mutex_);
  if (input_.empty()) return std::nullopt;
  const std::uint64_t count = std::min<std::uint64_t>(input_.size(), chain.writable_bytes());
  std::vector<char> data(input_.begin(), input_.begin() + static_cast<std::ptrdiff_t>(count));
  input_.erase(input_.begin(), input_.begin() + static_cast<std::ptrdiff_t>(count));
  if (!chain.Write(memory, 0, std::as_bytes(std::span(data)))) return 0;
  return static_cast<std::uint32_t>(count);
}

std::optional<std::uint32_t> VirtioConsole::Handle(unsigned queue, const DescriptorChain& chain,
                                                   DeviceMemory& memory) {
  if (queue == 0) return GiveInput(chain, memory);
  std::vector<char> text(std::min(chain.readable_bytes(), kPrintMaxBytes));
  if (chain.Read(memory, 0, std::as_writable_bytes(std::span(text)))) {
    output_.Append({text.data(), text.size()});
  }
  return 0;
}

}  // namespace pagesaw
