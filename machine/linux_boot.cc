module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>
module pagesaw.machine.linux_boot;

import pagesaw.core.address;
import pagesaw.machine.acpi_tables;
import pagesaw.machine.elf;

namespace pagesaw {
namespace {

// Offsets of the setup header, in the file and in the boot parameters alike.
// [linux/boot] "The Real-Mode Kernel Header"
constexpr std::size_t kSetupSectors = 0x1f1, kKernelParagraphs = 0x1f4, kBootFlag = 0x1fe,
                      kHeaderLength = 0x201, kMagic = 0x202, kVersion = 0x206, kLoaderType = 0x210,
                      kLoadFlags = 0x211, kInitrd = 0x218, kInitrdBytes = 0x21c, kCmdline = 0x228,
                      kInitrdMax = 0x22c, kAlignment = 0x230, kRelocatable = 0x234,
                      kExtendedLoadFlags = 0x236, kCmdlineMax = 0x238, kPreferredAddress = 0x258,
                      kInitBytes = 0x260;
constexpr std::size_t kHeaderEnd = 0x264;  // as of version 2.10
// Of the boot parameters beyond it. [linux/zero-page] "Zero Page"
constexpr std::size_t kScreen = 0x000, kRsdp = 0x070, kMapEntries = 0x1e8, kMap = 0x2d0,
                      kMapEntryBytes = 20;

constexpr std::uint64_t kBootFlagValue = 0xaa55, kMagicValue = 0x5372'6448;  // "HdrS"
constexpr unsigned kVersionMin = 0x20c;  // the first that tells whether there is a 64-bit entry
constexpr unsigned kLoadedHigh = 1, kHas64BitEntry = 1;
constexpr std::uint64_t kUnknownLoader = 0xff;
constexpr std::uint64_t kSectorBytes = 512, kParagraphBytes = 16;
constexpr std::uint64_t kEntry64 = 0x200;  // behind the start of the protected-mode kernel
constexpr std::uint64_t kLowestKernel = 0x10'0000;
constexpr std::uint32_t kMapRam = 1, kMapReserved = 2;

// What the file says of itself.
struct Header {
  std::uint64_t setup_bytes = 0, kernel_bytes = 0;
  std::uint64_t version = 0, load_flags = 0, extended_load_flags = 0;
  std::uint64_t initrd_max = 0;  // the last address that it may have
  std::uint64_t alignment = 0, preferred = 0, init_bytes = 0, cmdline_max = 0;
  bool relocatable = false;
};

Header ReadHeader(std::span<const std::byte> image) {
  const auto field = [image](std::size_t at, unsigned count) {
    return LoadLittleEndian(image, at, count).value_or(0);
  };
  // 0 sectors stand for 4, for loaders of old.
  const std::uint64_t sectors = field(kSetupSectors, 1);
  return {.setup_bytes = ((sectors == 0 ? 4 : sectors) + 1) * kSectorBytes,
          .kernel_bytes = field(kKernelParagraphs, 4) * kParagraphBytes,
          .version = field(kVersion, 2),
          .load_flags = field(kLoadFlags, 1),
          .extended_load_flags = field(kExtendedLoadFlags, 2),
          .initrd_max = field(kInitrdMax, 4),
          .alignment = field(kAlignment, 4),
          .preferred = field(kPreferredAddress, 8),
          .init_bytes = field(kInitBytes, 4),
          .cmdline_max = field(kCmdlineMax, 4),
          .relocatable = field(kRelocatable, 1) != 0};
}

absl::Status CheckHeader(const Header& header, const BootRequest& request) {
  if (header.version < kVersionMin) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Linux boot protocol %d.%02d: must be at least 2.12", header.version >> 8,
                        header.version & 0xff));
  }
  if ((header.load_flags & kLoadedHigh) == 0 ||
      (header.extended_load_flags & kHas64BitEntry) == 0) {
    return absl::InvalidArgumentError(
        "a Linux kernel without a 64-bit entry (XLF_KERNEL_64) cannot be booted");
  }
  // The size is told in whole paragraphs, one at least, of which the file may lack the last bytes.
  const std::uint64_t end =
      header.setup_bytes + std::max<std::uint64_t>(header.kernel_bytes, kParagraphBytes);
  if (request.image.size() < kHeaderEnd || request.image.size() + kParagraphBytes <= end) {
    return absl::InvalidArgumentError(
        absl::StrFormat("truncated Linux kernel: %d bytes, where its header tells of %d",
                        request.image.size(), std::max<std::uint64_t>(end, kHeaderEnd)));
  }
  const bool power = header.alignment != 0 && (header.alignment & (header.alignment - 1)) == 0;
  if (header.relocatable && !power) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Linux kernel: alignment 0x%x: must be a power of two", header.alignment));
  }
  if (header.preferred < kLowestKernel || header.preferred >> 32 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "Linux kernel: preferred address 0x%x: must lie from 1 MiB up to 4 GiB", header.preferred));
  }
  if (request.cmdline.size() > header.cmdline_max) {
    return absl::InvalidArgumentError(
        absl::StrFormat("command line of %d characters: this kernel takes at most %d",
                        request.cmdline.size(), header.cmdline_max));
  }
  return absl::OkStatus();
}

// Takes room for the kernel while it starts: as much as its header asks for.
absl::StatusOr<Gpa> TakeKernelRoom(BootMemory& boot, const Header& header) {
  const std::uint64_t bytes = std::max(header.init_bytes, header.kernel_bytes);
  const auto preferred = boot.Take("the Linux kernel", bytes, Gpa(header.preferred));
  if (preferred.ok() || !header.relocatable) return preferred;
  const std::uint64_t alignment = std::max<std::uint64_t>(header.alignment, kPageBytes);
  const std::uint64_t lowest = (kLowestKernel + alignment - 1) & ~(alignment - 1);
  return boot.Take("the Linux kernel", bytes, Gpa(lowest));
}

absl::StatusOr<Gpa> PlaceInitrd(BootMemory& boot, const BootRequest& request, const Header& header,
                                Gpa from) {
  const auto at = boot.Place("initrd", request.initrd, from);
  if (!at.ok() || at->bits() + request.initrd.size() - 1 <= header.initrd_max) return at;
  return absl::ResourceExhaustedError(
      absl::StrFormat("initrd: %d bytes do not end by 0x%x, as this kernel wants it",
                      request.initrd.size(), header.initrd_max));
}

// The page of boot parameters.
class BootParameters {
 public:
  // Begins with the setup header of `image`.
  explicit BootParameters(std::span<const std::byte> image) : bytes_(kPageBytes) {
    const std::size_t length = static_cast<std::size_t>(image[kHeaderLength]);
    const std::size_t end = std::min({kMagic + length, image.size(), kMap});
    std::copy(image.begin() + kSetupSectors, image.begin() + static_cast<std::ptrdiff_t>(end),
              bytes_.begin() + kSetupSectors);
  }

  void Set(std::size_t at, std::uint64_t value, unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      bytes_[at + i] = static_cast<std::byte>(value >> (8 * i) & 0xff);
    }
  }

  // As firmware leaves a VGA: text of 80 columns and 25 lines of 16 pixels, the cursor at home.
  void SetScreen() {
    constexpr std::size_t kMode = 0x06, kColumns = 0x07, kLines = 0x0e, kIsVga = 0x0f,
                          kPoints = 0x10;
    Set(kScreen + kMode, 3, 1);
    Set(kScreen + kColumns, 80, 1);
    Set(kScreen + kLines, 25, 1);
    Set(kScreen + kIsVga, 1, 1);
    Set(kScreen + kPoints, 16, 2);
  }

  void SetMap(std::uint64_t memory_bytes) {
    std::size_t entries = 0;
    for (const MemoryRange& range : MemoryMap(memory_bytes)) {
      const std::size_t at = kMap + entries * kMapEntryBytes;
      Set(at, range.base, 8);
      Set(at + 8, range.bytes, 8);
      Set(at + 16, range.usable ? kMapRam : kMapReserved, 4);
      ++entries;
    }
    Set(kMapEntries, entries, 1);
  }

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

bool HasLinuxHeader(std::span<const std::byte> image) {
  return LoadLittleEndian(image, kBootFlag, 2) == kBootFlagValue &&
         LoadLittleEndian(image, kMagic, 4) == kMagicValue;
}

absl::StatusOr<CpuState> LoadLinux(const BootRequest& request) {
  const Header header = ReadHeader(request.image);
  if (absl::Status status = CheckHeader(header, request); !status.ok()) return status;

  BootMemory boot(*request.memory, request.memory_bytes);
  const auto kernel = TakeKernelRoom(boot, header);
  if (!kernel.ok()) return kernel.status();
  const auto code = request.image.subspan(header.setup_bytes);
  const auto loaded = code.first(std::min<std::size_t>(code.size(), header.kernel_bytes));
  if (absl::Status status = boot.Write(*kernel, loaded); !status.ok()) return status;

  BootParameters parameters(request.image);
  parameters.Set(kLoaderType, kUnknownLoader, 1);
  parameters.Set(kRsdp, kAcpiTables.bits(), 8);
  parameters.SetScreen();
  parameters.SetMap(request.memory_bytes);
  if (!request.initrd.empty()) {
    const auto initrd = PlaceInitrd(boot, request, header, *kernel);
    if (!initrd.ok()) return initrd.status();
    parameters.Set(kInitrd, initrd->bits(), 4);
    parameters.Set(kInitrdBytes, request.initrd.size(), 4);
  }
  TableBuilder cmdline;
  cmdline.Text(request.cmdline);
  const auto cmdline_at = boot.Place("the command line", cmdline.bytes(), kBootInfoFrom);
  if (!cmdline_at.ok()) return cmdline_at.status();
  parameters.Set(kCmdline, cmdline_at->bits(), 4);
  const auto parameters_at = boot.Place("the boot parameters", parameters.bytes(), kBootInfoFrom);
  if (!parameters_at.ok()) return parameters_at.status();

  // CS is 10h and the data segments are 18h. [linux/boot] "64-bit Boot Protocol"
  auto state = EnterFlat64(boot, kernel->bits() + kEntry64, {.code = 0x10, .data = 0x18});
  if (state.ok()) state->gpr[kRsi] = parameters_at->bits();
  return state;
}

}  // namespace pagesaw
