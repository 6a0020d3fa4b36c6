module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <algorithm>
#include <cstdint>
#include <optional>
module pagesaw.machine.pvh;

import pagesaw.core.address;

namespace pagesaw {
namespace {

constexpr std::uint32_t kStartInfoMagic = 0x336e'c578;
constexpr std::uint32_t kNotePhysical32Entry = 18;
constexpr std::uint32_t kMapRam = 1, kMapReserved = 2;

std::optional<std::uint64_t> PvhEntry(const ElfImage& elf) {
  for (const ElfNote& note : elf.notes) {
    if (note.name != "Xen" || note.type != kNotePhysical32Entry) continue;
    return LoadLittleEndian(note.data, 0, note.data.size() >= 8 ? 8 : 4);
  }
  return std::nullopt;
}

absl::StatusOr<Gpa> PlaceStartInfo(BootMemory& boot, const BootRequest& request) {
  Gpa modules;
  if (!request.initrd.empty()) {
    const auto data = boot.Place("initrd", request.initrd, boot.image_end());
    if (!data.ok()) return data.status();
    TableBuilder list;
    list.U64(data->bits()).U64(request.initrd.size()).U64(0).U64(0);
    const auto placed = boot.Place("the module list", list.bytes(), kBootInfoFrom);
    if (!placed.ok()) return placed.status();
    modules = *placed;
  }
  TableBuilder cmdline;
  cmdline.Text(request.full_cmdline());
  const auto cmdline_at = boot.Place("the command line", cmdline.bytes(), kBootInfoFrom);
  if (!cmdline_at.ok()) return cmdline_at.status();

  TableBuilder map;
  std::uint32_t ranges = 0;
  for (const MemoryRange& range : MemoryMap(request.memory_bytes)) {
    map.U64(range.base).U64(range.bytes).U32(range.usable ? kMapRam : kMapReserved).U32(0);
    ++ranges;
  }
  const auto map_at = boot.Place("the memory map", map.bytes(), kBootInfoFrom);
  if (!map_at.ok()) return map_at.status();

  TableBuilder info;
  info.U32(kStartInfoMagic).U32(1).U32(0);  // version 1, no flags
  info.U32(request.initrd.empty() ? 0 : 1).U64(modules.bits());
  info.U64(cmdline_at->bits()).U64(0);  // no ACPI
  info.U64(map_at->bits()).U32(ranges).U32(0);
  return boot.Place("the start info", info.bytes(), kBootInfoFrom);
}

absl::StatusOr<CpuState> Enter64(BootMemory& boot, const ElfImage& elf) {
  const bool identity =
      std::any_of(elf.segments.begin(), elf.segments.end(), [&](const ElfSegment& segment) {
        return segment.HasPhysical(elf.entry) && segment.linear == segment.physical;
      });
  if (!identity) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "entry point 0x%x: must lie in a segment whose linear address is its physical one, or a "
        "PVH note must name an entry",
        elf.entry));
  }
  if (elf.entry >> 32 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("entry point 0x%x: must lie below 4 GiB", elf.entry));
  }
  return EnterFlat64(boot, elf.entry);
}

}  // namespace

absl::StatusOr<CpuState> LoadElf64(const BootRequest& request, const ElfImage& elf) {
  BootMemory boot(*request.memory, request.memory_bytes);
  if (absl::Status status = boot.LoadSegments(elf); !status.ok()) return status;
  const std::optional<std::uint64_t> pvh_entry = PvhEntry(elf);
  if (pvh_entry.has_value()) {
    if (absl::Status status = boot.CheckEntry(elf, *pvh_entry); !status.ok()) return status;
    if (*pvh_entry >> 32 != 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("PVH entry point 0x%x: must lie below 4 GiB", *pvh_entry));
    }
  }
  const auto info = PlaceStartInfo(boot, request);
  if (!info.ok()) return info.status();
  if (pvh_entry.has_value()) {
    CpuState state = Flat32State(*pvh_entry);
    state.gpr[kRbx] = info->bits();
    return state;
  }
  absl::StatusOr<CpuState> state = Enter64(boot, elf);
  if (state.ok()) state->gpr[kRdi] = info->bits();
  return state;
}

}  // namespace pagesaw
