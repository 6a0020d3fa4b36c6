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
module pagesaw.machine.multiboot;

import pagesaw.core.address;
import pagesaw.machine.memory_slots;

namespace pagesaw {
namespace {

constexpr std::uint32_t kHeaderMagic = 0x1bad'b002;
constexpr std::uint32_t kLoaderMagic = 0x2bad'b002;
constexpr std::uint64_t kHeaderSearchBytes = 8192;
// Page-aligned modules, memory information and a video mode can be asked for; the last is a wish.
constexpr std::uint32_t kKnownRequirements = 0x7;
constexpr std::uint32_t kInfoMemory = 1u << 0, kInfoCmdline = 1u << 2, kInfoModules = 1u << 3,
                        kInfoMemoryMap = 1u << 6;

// The flags of the header, if there is one.
std::optional<std::uint32_t> HeaderFlags(std::span<const std::byte> image) {
  const std::uint64_t limit = std::min<std::uint64_t>(image.size(), kHeaderSearchBytes);
  for (std::uint64_t at = 0; at + 12 <= limit; at += 4) {
    const auto word = [&](std::uint64_t offset) {
      return static_cast<std::uint32_t>(*LoadLittleEndian(image, at + offset, 4));
    };
    if (word(0) == kHeaderMagic && word(0) + word(4) + word(8) == 0) return word(4);
  }
  return std::nullopt;
}

std::uint32_t Low(Gpa gpa) { return static_cast<std::uint32_t>(gpa.bits()); }

}  // namespace

bool HasMultibootHeader(std::span<const std::byte> image) { return HeaderFlags(image).has_value(); }

absl::StatusOr<CpuState> LoadMultiboot(const BootRequest& request, const ElfImage& elf) {
  const std::uint32_t requirements = HeaderFlags(request.image).value_or(0) & 0xffff;
  if ((requirements & ~kKnownRequirements) != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "multiboot flags 0x%x: asks for features that are not known", requirements));
  }
  BootMemory boot(*request.memory, request.memory_bytes);
  if (absl::Status status = boot.LoadSegments(elf); !status.ok()) return status;
  if (absl::Status status = boot.CheckEntry(elf, elf.entry); !status.ok()) return status;

  std::uint32_t flags = kInfoMemory | kInfoCmdline | kInfoMemoryMap;
  std::uint32_t module_count = 0;
  Gpa modules;
  if (!request.initrd.empty()) {
    const auto data = boot.Place("initrd", request.initrd, boot.image_end());
    if (!data.ok()) return data.status();
    TableBuilder text;
    text.Text(request.initrd_name);
    const auto name = boot.Place("the initrd's name", text.bytes(), kBootInfoFrom);
    if (!name.ok()) return name.status();
    TableBuilder list;
    list.U32(Low(*data)).U32(Low(*data) + static_cast<std::uint32_t>(request.initrd.size()));
    list.U32(Low(*name)).U32(0);
    const auto placed = boot.Place("the module list", list.bytes(), kBootInfoFrom);
    if (!placed.ok()) return placed.status();
    modules = *placed;
    module_count = 1;
    flags |= kInfoModules;
  }

  TableBuilder cmdline;
  cmdline.Text(request.full_cmdline());
  const auto cmdline_at = boot.Place("the command line", cmdline.bytes(), kBootInfoFrom);
  if (!cmdline_at.ok()) return cmdline_at.status();

  TableBuilder map;
  for (const MemoryRange& range : MemoryMap(request.memory_bytes)) {
    map.U32(20).U64(range.base).U64(range.bytes).U32(range.usable ? 1 : 2);
  }
  const auto map_at = boot.Place("the memory map", map.bytes(), kBootInfoFrom);
  if (!map_at.ok()) return map_at.status();

  const std::uint64_t low = std::min(request.memory_bytes, kLowRamMaxBytes);
  const std::uint64_t upper = low > 0x10'0000 ? low - 0x10'0000 : 0;
  TableBuilder info;
  info.U32(flags);
  info.U32(static_cast<std::uint32_t>(std::min<std::uint64_t>(low, 0xa'0000) >> 10));
  info.U32(static_cast<std::uint32_t>(upper >> 10));
  info.U32(0);  // boot device
  info.U32(Low(*cmdline_at));
  info.U32(module_count).U32(Low(modules));
  info.U32(0).U32(0).U32(0).U32(0);  // symbols
  info.U32(static_cast<std::uint32_t>(map.bytes().size())).U32(Low(*map_at));
  for (unsigned i = 0; i < 16; ++i) info.U32(0);  // drives to video modes: flagged absent
  const auto info_at = boot.Place("the multiboot information", info.bytes(), kBootInfoFrom);
  if (!info_at.ok()) return info_at.status();

  CpuState state = Flat32State(elf.entry);
  state.gpr[kRax] = kLoaderMagic;
  state.gpr[kRbx] = info_at->bits();
  return state;
}

}  // namespace pagesaw
