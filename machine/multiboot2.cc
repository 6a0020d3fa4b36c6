module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>
module pagesaw.machine.multiboot2;

import pagesaw.core.address;
import pagesaw.machine.memory_slots;

namespace pagesaw {
namespace {

constexpr std::uint32_t kHeaderMagic = 0xe852'50d6;
constexpr std::uint32_t kLoaderMagic = 0x36d7'6289;
constexpr std::uint64_t kHeaderSearchBytes = 32768;

// Tags of the header. [multiboot2] "Layout of Multiboot2 header"
enum HeaderTag : std::uint16_t {
  kHeaderEnd = 0,
  kInformationRequest = 1,
  kEntryAddress = 3,
  kConsoleFlags = 4,
  kModuleAlignment = 6,
  kRelocatable = 10,
};
// Tags of the information. [multiboot2] "Boot information format"
enum InfoTag : std::uint32_t { kEnd = 0, kCmdline = 1, kModule = 3, kMeminfo = 4, kMap = 6 };

struct Header {
  std::uint64_t at = 0;
  std::uint32_t bytes = 0;
};

std::uint32_t Word(std::span<const std::byte> image, std::uint64_t at) {
  return static_cast<std::uint32_t>(LoadLittleEndian(image, at, 4).value_or(0));
}

std::optional<Header> FindHeader(std::span<const std::byte> image) {
  const std::uint64_t limit = std::min<std::uint64_t>(image.size(), kHeaderSearchBytes);
  for (std::uint64_t at = 0; at + 16 <= limit; at += 8) {
    if (Word(image, at) != kHeaderMagic) continue;
    const std::uint32_t sum =
        Word(image, at) + Word(image, at + 4) + Word(image, at + 8) + Word(image, at + 12);
    const std::uint32_t bytes = Word(image, at + 8);
    if (sum == 0 && bytes >= 16 && bytes <= limit - at) return Header{at, bytes};
  }
  return std::nullopt;
}

// The entry point: the header's if it names one, else the image's. InvalidArgument for a tag that
// is neither known nor optional.
absl::StatusOr<std::uint64_t> EntryOf(std::span<const std::byte> image, const Header& header,
                                      std::uint64_t entry) {
  const std::uint64_t end = header.at + header.bytes;
  for (std::uint64_t at = header.at + 16; at + 8 <= end;) {
    const std::uint32_t type_and_flags = Word(image, at);
    const std::uint32_t bytes = Word(image, at + 4);
    const bool optional = (type_and_flags >> 16 & 1) != 0;
    if (bytes < 8) break;
    switch (type_and_flags & 0xffff) {
      case kHeaderEnd:
        return entry;
      case kEntryAddress:
        entry = Word(image, at + 8);
        break;
      case kInformationRequest:
      case kConsoleFlags:
      case kModuleAlignment:
      case kRelocatable:
        break;
      default:
        if (optional) break;
        return absl::InvalidArgumentError(absl::StrFormat(
            "multiboot 2 tag %d: asks for what is not known", type_and_flags & 0xffff));
    }
    at += (std::uint64_t{bytes} + 7) & ~std::uint64_t{7};
  }
  return entry;
}

// The information block: tags, each on 8 bytes.
class Information {
 public:
  void Tag(std::uint32_t type, const TableBuilder& body) {
    TableBuilder head;
    head.U32(type).U32(static_cast<std::uint32_t>(8 + body.bytes().size()));
    Append(head.bytes());
    Append(body.bytes());
    tags_.resize((tags_.size() + 7) & ~std::size_t{7});
  }
  std::vector<std::byte> Finish() {
    Tag(kEnd, TableBuilder());
    TableBuilder head;
    head.U32(static_cast<std::uint32_t>(8 + tags_.size())).U32(0);
    std::vector<std::byte> all(head.bytes().begin(), head.bytes().end());
    all.insert(all.end(), tags_.begin(), tags_.end());
    return all;
  }

 private:
  void Append(std::span<const std::byte> bytes) {
    tags_.insert(tags_.end(), bytes.begin(), bytes.end());
  }
  std::vector<std::byte> tags_;
};

absl::StatusOr<Gpa> PlaceInformation(BootMemory& boot, const BootRequest& request) {
  Information info;
  TableBuilder cmdline;
  cmdline.Text(request.full_cmdline());
  info.Tag(kCmdline, cmdline);
  if (!request.initrd.empty()) {
    const auto data = boot.Place("initrd", request.initrd, boot.image_end());
    if (!data.ok()) return data.status();
    const auto first = static_cast<std::uint32_t>(data->bits());
    TableBuilder module;
    module.U32(first).U32(first + static_cast<std::uint32_t>(request.initrd.size()));
    module.Text(request.initrd_name);
    info.Tag(kModule, module);
  }
  const std::uint64_t low = std::min(request.memory_bytes, kLowRamMaxBytes);
  TableBuilder meminfo;
  meminfo.U32(static_cast<std::uint32_t>(std::min<std::uint64_t>(low, 0xa'0000) >> 10));
  meminfo.U32(static_cast<std::uint32_t>((low > 0x10'0000 ? low - 0x10'0000 : 0) >> 10));
  info.Tag(kMeminfo, meminfo);
  TableBuilder map;
  map.U32(24).U32(0);
  for (const MemoryRange& range : MemoryMap(request.memory_bytes)) {
    map.U64(range.base).U64(range.bytes).U32(range.usable ? 1 : 2).U32(0);
  }
  info.Tag(kMap, map);
  return boot.Place("the multiboot information", info.Finish(), kBootInfoFrom);
}

}  // namespace

bool HasMultiboot2Header(std::span<const std::byte> image) { return FindHeader(image).has_value(); }

absl::StatusOr<CpuState> LoadMultiboot2(const BootRequest& request, const ElfImage& elf) {
  const std::optional<Header> header = FindHeader(request.image);
  if (!header.has_value()) return absl::InvalidArgumentError("no multiboot 2 header");
  const auto entry = EntryOf(request.image, *header, elf.entry);
  if (!entry.ok()) return entry.status();
  if (*entry >> 32 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("entry point 0x%x: must lie below 4 GiB", *entry));
  }
  BootMemory boot(*request.memory, request.memory_bytes);
  if (absl::Status status = boot.LoadSegments(elf); !status.ok()) return status;
  if (absl::Status status = boot.CheckEntry(elf, *entry); !status.ok()) return status;
  const auto info = PlaceInformation(boot, request);
  if (!info.ok()) return info.status();
  CpuState state = Flat32State(*entry);
  state.gpr[kRax] = kLoaderMagic;
  state.gpr[kRbx] = info->bits();
  return state;
}

}  // namespace pagesaw
