module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>
module pagesaw.machine.elf;

namespace pagesaw {
namespace {

constexpr std::uint64_t kTypeExecutable = 2, kTypeShared = 3;
constexpr std::uint64_t kMachine386 = 3, kMachineX86Pc64 = 62;
constexpr std::uint64_t kSegmentLoad = 1, kSegmentNote = 4;

// Where fields lie in the two classes.
struct Fields {
  unsigned word;  // bytes of an address or offset
  unsigned header_bytes, entry, program_offset, program_entry_bytes, program_count;
  unsigned program_bytes, p_offset, p_linear, p_physical, p_file_bytes, p_memory_bytes;
};
constexpr Fields kFields32 = {4, 52, 24, 28, 42, 44, 32, 4, 8, 12, 16, 20};
constexpr Fields kFields64 = {8, 64, 24, 32, 54, 56, 56, 8, 16, 24, 32, 40};

// `bytes` from `offset`, or nothing if they are not all there.
std::optional<std::span<const std::byte>> Part(std::span<const std::byte> bytes,
                                               std::uint64_t offset, std::uint64_t count) {
  if (offset > bytes.size() || count > bytes.size() - offset) return std::nullopt;
  return bytes.subspan(offset, count);
}

absl::Status CheckHeader(std::span<const std::byte> bytes) {
  if (!HasElfMagic(bytes)) {
    return absl::InvalidArgumentError("not an ELF file: it does not start with 7F 45 4C 46");
  }
  if (bytes.size() < kFields32.header_bytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("truncated: the ELF header needs %d bytes, the file has %d",
                        kFields32.header_bytes, bytes.size()));
  }
  const auto elf_class = static_cast<unsigned>(bytes[4]);
  if (elf_class != 1 && elf_class != 2) {
    return absl::InvalidArgumentError(
        absl::StrFormat("ELF class %d: expected 1 (32-bit) or 2 (64-bit)", elf_class));
  }
  if (bytes[5] != std::byte{1}) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "ELF byte order %d: expected 1 (little-endian)", static_cast<unsigned>(bytes[5])));
  }
  const bool is_64 = elf_class == 2;
  if (is_64 && bytes.size() < kFields64.header_bytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("truncated: the ELF header needs %d bytes, the file has %d",
                        kFields64.header_bytes, bytes.size()));
  }
  const std::uint64_t machine = *LoadLittleEndian(bytes, 18, 2);
  const std::uint64_t expected = is_64 ? kMachineX86Pc64 : kMachine386;
  if (machine != expected) {
    return absl::InvalidArgumentError(absl::StrFormat("ELF machine %d: expected %d (%s)", machine,
                                                      expected, is_64 ? "x86-64" : "80386"));
  }
  const std::uint64_t type = *LoadLittleEndian(bytes, 16, 2);
  if (type != kTypeExecutable && type != kTypeShared) {
    return absl::InvalidArgumentError(
        absl::StrFormat("ELF type %d: expected 2 (executable) or 3 (shared)", type));
  }
  return absl::OkStatus();
}

std::uint64_t PadToWord(std::uint64_t bytes) { return (bytes + 3) & ~std::uint64_t{3}; }

// Notes that do not parse end the list: nothing depends on them but what is found.
void AddNotes(std::span<const std::byte> bytes, std::vector<ElfNote>& notes) {
  std::uint64_t at = 0;
  while (bytes.size() - at >= 12) {
    const std::uint64_t name_bytes = *LoadLittleEndian(bytes, at, 4);
    const std::uint64_t data_bytes = *LoadLittleEndian(bytes, at + 4, 4);
    const std::uint64_t type = *LoadLittleEndian(bytes, at + 8, 4);
    const auto name = Part(bytes, at + 12, name_bytes);
    const auto data = Part(bytes, at + 12 + PadToWord(name_bytes), data_bytes);
    if (!name.has_value() || !data.has_value()) return;
    std::string_view text(reinterpret_cast<const char*>(name->data()), name->size());
    text = text.substr(0, text.find('\0'));
    notes.push_back({text, static_cast<std::uint32_t>(type), *data});
    at += 12 + PadToWord(name_bytes) + PadToWord(data_bytes);
    if (at > bytes.size()) return;
  }
}

absl::StatusOr<ElfSegment> ReadSegment(std::span<const std::byte> bytes, unsigned index,
                                       std::span<const std::byte> header, const Fields& fields) {
  const auto field = [&](unsigned offset) {
    return *LoadLittleEndian(header, offset, fields.word);
  };
  const std::uint64_t offset = field(fields.p_offset);
  const std::uint64_t file_bytes = field(fields.p_file_bytes);
  ElfSegment segment{.physical = field(fields.p_physical),
                     .linear = field(fields.p_linear),
                     .memory_bytes = field(fields.p_memory_bytes),
                     .file = {}};
  if (file_bytes > segment.memory_bytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("segment %d: %d bytes in the file are more than its %d bytes in memory",
                        index, file_bytes, segment.memory_bytes));
  }
  const auto file = Part(bytes, offset, file_bytes);
  if (!file.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("truncated: segment %d has %d bytes at offset %d, the file has %d bytes",
                        index, file_bytes, offset, bytes.size()));
  }
  segment.file = *file;
  if (segment.physical + segment.memory_bytes < segment.physical) {
    return absl::InvalidArgumentError(
        absl::StrFormat("segment %d: %d bytes at physical address 0x%x wrap around", index,
                        segment.memory_bytes, segment.physical));
  }
  return segment;
}

}  // namespace

std::optional<std::uint64_t> LoadLittleEndian(std::span<const std::byte> bytes,
                                              std::uint64_t offset, unsigned count) {
  const auto part = Part(bytes, offset, count);
  if (!part.has_value()) return std::nullopt;
  std::uint64_t value = 0;
  for (unsigned i = 0; i < count; ++i) {
    value |= static_cast<std::uint64_t>((*part)[i]) << (8 * i);
  }
  return value;
}

bool HasElfMagic(std::span<const std::byte> bytes) {
  return LoadLittleEndian(bytes, 0, 4) == 0x464c'457f;
}

absl::StatusOr<ElfImage> ParseElf(std::span<const std::byte> bytes) {
  if (absl::Status status = CheckHeader(bytes); !status.ok()) return status;
  ElfImage image;
  image.is_64 = bytes[4] == std::byte{2};
  const Fields& fields = image.is_64 ? kFields64 : kFields32;
  image.entry = *LoadLittleEndian(bytes, fields.entry, fields.word);
  const std::uint64_t table = *LoadLittleEndian(bytes, fields.program_offset, fields.word);
  const std::uint64_t stride = *LoadLittleEndian(bytes, fields.program_entry_bytes, 2);
  const std::uint64_t count = *LoadLittleEndian(bytes, fields.program_count, 2);
  if (count > 0 && stride < fields.program_bytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "program header size %d: expected at least %d", stride, fields.program_bytes));
  }
  if (!Part(bytes, table, count * stride).has_value()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "truncated: %d program headers of %d bytes at offset %d, the file has %d bytes", count,
        stride, table, bytes.size()));
  }
  for (unsigned i = 0; i < count; ++i) {
    const auto header = bytes.subspan(table + i * stride, fields.program_bytes);
    const std::uint64_t type = *LoadLittleEndian(header, 0, 4);
    if (type != kSegmentLoad && type != kSegmentNote) continue;
    absl::StatusOr<ElfSegment> segment = ReadSegment(bytes, i, header, fields);
    if (!segment.ok()) return segment.status();
    if (type == kSegmentNote) {
      AddNotes(segment->file, image.notes);
    } else if (segment->memory_bytes > 0) {
      image.segments.push_back(*segment);
    }
  }
  if (image.segments.empty()) {
    return absl::InvalidArgumentError("the ELF file has no loadable segment");
  }
  return image;
}

}  // namespace pagesaw
