module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>
module pagesaw.machine.boot_memory;

import pagesaw.core.paging_state;

namespace pagesaw {
namespace {

constexpr std::uint64_t kBaseMemoryEnd = 0xa'0000;    // 640 KiB
constexpr std::uint64_t kExtendedMemory = 0x10'0000;  // 1 MiB

// Type, S, DPL 0, present, granularity; then the default size or L.
constexpr std::uint16_t kCode32 = 0xc09b, kCode64 = 0xa09b, kData = 0xc093;
constexpr std::uint16_t kBusyTss = 0x8b;
// The same as descriptors.
constexpr std::uint64_t kCode64Descriptor = 0x00af'9b00'0000'ffff;
constexpr std::uint64_t kDataDescriptor = 0x00cf'9300'0000'ffff;

constexpr unsigned kGdtBytes = 0x20;

CpuState FlatState(std::uint64_t entry, std::uint16_t code_attributes,
                   const FlatSelectors& selectors) {
  CpuState state = ResetState();
  state.extended = {};  // firmware has executed FNINIT: exceptions of x87 are masked
  state.rip = entry;
  state.cr0 = kCr0Pe | 0x10;  // ET is fixed
  state.gpr[kRdx] = 0;
  state.segments[kCs] = {
      .selector = selectors.code, .attributes = code_attributes, .limit = ~0u, .base = 0};
  for (const SegmentName name : {kEs, kSs, kDs, kFs, kGs}) {
    state.segments[name] = {
        .selector = selectors.data, .attributes = kData, .limit = ~0u, .base = 0};
  }
  state.segments[kTr] = {.selector = 0, .attributes = kBusyTss, .limit = 0x67, .base = 0};
  state.gdtr = {.base = 0, .limit = 0};
  state.idtr = {.base = 0, .limit = 0};
  return state;
}

// A PML4, a PDPT and four page directories, in a row.
absl::StatusOr<Gpa> PlaceIdentityTables(BootMemory& boot) {
  constexpr std::uint64_t kPresentWritable = 0x3, kLarge = 0x80;
  const auto at = boot.Take("page tables", 6 * kPageBytes, kBootInfoFrom);
  if (!at.ok()) return at;
  const std::uint64_t pdpt = at->bits() + kPageBytes;
  const std::uint64_t directories = pdpt + kPageBytes;
  TableBuilder tables;
  for (unsigned i = 0; i < 512; ++i) tables.U64(i == 0 ? pdpt | kPresentWritable : 0);
  for (unsigned i = 0; i < 512; ++i) {
    tables.U64(i < 4 ? (directories + i * kPageBytes) | kPresentWritable : 0);
  }
  for (std::uint64_t i = 0; i < 4 * 512; ++i) tables.U64(i << 21 | kPresentWritable | kLarge);
  if (absl::Status status = boot.Write(*at, tables.bytes()); !status.ok()) return status;
  return at;
}

absl::StatusOr<Gpa> PlaceGdt(BootMemory& boot, const FlatSelectors& selectors) {
  TableBuilder gdt;
  for (unsigned selector = 0; selector < kGdtBytes; selector += 8) {
    gdt.U64(selector == selectors.code   ? kCode64Descriptor
            : selector == selectors.data ? kDataDescriptor
                                         : 0);
  }
  return boot.Place("the GDT", gdt.bytes(), kBootInfoFrom);
}

}  // namespace

std::string BootRequest::full_cmdline() const {
  return cmdline.empty() ? image_name : image_name + " " + cmdline;
}

std::vector<MemoryRange> MemoryMap(std::uint64_t memory_bytes) {
  std::vector<MemoryRange> map;
  for (const RamRange& range : RamLayout(memory_bytes)) {
    const std::uint64_t end = range.base.bits() + range.bytes;
    if (range.base.bits() != 0) {
      map.push_back({range.base.bits(), range.bytes});
      continue;
    }
    map.push_back({0, std::min(end, kBaseMemoryEnd)});
    map.push_back({kBaseMemoryEnd, kExtendedMemory - kBaseMemoryEnd, false});
    if (end > kExtendedMemory) map.push_back({kExtendedMemory, end - kExtendedMemory});
  }
  return map;
}

absl::Status BootMemory::LoadSegments(const ElfImage& image) {
  unsigned index = 0;
  for (const ElfSegment& segment : image.segments) {
    const Gpa base(segment.physical);
    absl::Status status = memory_.Write(base, segment.file);
    if (status.ok()) {
      status = memory_.Clear(Gpa(segment.physical + segment.file.size()),
                             segment.memory_bytes - segment.file.size());
    }
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "segment %d: %d bytes at physical address 0x%x lie outside the %d bytes of RAM", index,
          segment.memory_bytes, segment.physical, memory_bytes_));
    }
    const std::uint64_t end = segment.physical + segment.memory_bytes;
    taken_.emplace_back(segment.physical, end);
    image_end_ = std::max(image_end_, Gpa(end));
    ++index;
  }
  return absl::OkStatus();
}

absl::Status BootMemory::CheckEntry(const ElfImage& image, std::uint64_t entry) const {
  const bool inside =
      std::any_of(image.segments.begin(), image.segments.end(),
                  [entry](const ElfSegment& segment) { return segment.HasPhysical(entry); });
  if (inside) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("entry point 0x%x: no loaded segment holds that physical address", entry));
}

absl::StatusOr<Gpa> BootMemory::Take(std::string_view what, std::uint64_t byte_count, Gpa from) {
  const std::uint64_t limit = std::min(memory_bytes_, kLowRamMaxBytes);
  const auto align = [](std::uint64_t at) { return (at + kPageBytes - 1) & ~(kPageBytes - 1); };
  std::uint64_t at = align(from.bits());
  bool moved = true;
  while (moved) {
    moved = false;
    for (const auto& [first, end] : taken_) {
      if (at < end && first < at + byte_count) {
        at = align(end);
        moved = true;
      }
    }
    // Nothing of ours goes where a PC has its video memory and firmware.
    if (at < kExtendedMemory && at + byte_count > kBaseMemoryEnd) {
      at = kExtendedMemory;
      moved = true;
    }
    if (at > limit || byte_count > limit - at) {
      return absl::ResourceExhaustedError(absl::StrFormat(
          "%s: no room for %d bytes in %d bytes of RAM", what, byte_count, memory_bytes_));
    }
  }
  taken_.emplace_back(at, at + byte_count);
  return Gpa(at);
}

absl::StatusOr<Gpa> BootMemory::Place(std::string_view what, std::span<const std::byte> bytes,
                                      Gpa from) {
  const absl::StatusOr<Gpa> at = Take(what, bytes.size(), from);
  if (!at.ok()) return at;
  if (absl::Status status = memory_.Write(*at, bytes); !status.ok()) return status;
  return at;
}

TableBuilder& TableBuilder::Append(std::uint64_t value, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    bytes_.push_back(static_cast<std::byte>(value >> (8 * i) & 0xff));
  }
  return *this;
}

TableBuilder& TableBuilder::U32(std::uint32_t value) { return Append(value, 4); }
TableBuilder& TableBuilder::U64(std::uint64_t value) { return Append(value, 8); }

TableBuilder& TableBuilder::Text(std::string_view text) {
  for (const char c : text) bytes_.push_back(static_cast<std::byte>(c));
  return Append(0, 1);
}

CpuState Flat32State(std::uint64_t entry) { return FlatState(entry, kCode32, {}); }

CpuState Flat64State(std::uint64_t entry, Gpa cr3, const FlatSelectors& selectors) {
  CpuState state = FlatState(entry, kCode64, selectors);
  state.cr0 |= kCr0Pg | kCr0Wp;
  state.cr3 = cr3.bits();
  state.cr4 = kCr4Pae;
  state.efer = kEferLme | kEferLma | kEferNxe;
  return state;
}

absl::StatusOr<CpuState> EnterFlat64(BootMemory& boot, std::uint64_t entry,
                                     const FlatSelectors& selectors) {
  const auto tables = PlaceIdentityTables(boot);
  if (!tables.ok()) return tables.status();
  const auto gdt = PlaceGdt(boot, selectors);
  if (!gdt.ok()) return gdt.status();
  CpuState state = Flat64State(entry, *tables, selectors);
  state.gdtr = {.base = gdt->bits(), .limit = kGdtBytes - 1};
  return state;
}

}  // namespace pagesaw
