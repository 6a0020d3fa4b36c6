module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <cstdint>
#include <string>
#include <vector>
module pagesaw.machine.image_loader;

import pagesaw.machine.elf;
import pagesaw.machine.host_file;
import pagesaw.machine.linux_boot;
import pagesaw.machine.multiboot;
import pagesaw.machine.multiboot2;
import pagesaw.machine.pvh;

namespace pagesaw {
namespace {

std::string BaseName(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

}  // namespace

absl::StatusOr<CpuState> LoadImage(const BootRequest& request) {
  if (HasLinuxHeader(request.image)) return LoadLinux(request);
  if (!HasElfMagic(request.image)) {
    return absl::InvalidArgumentError(
        "neither an ELF file, which begins with 7F 45 4C 46, nor a Linux kernel, whose setup "
        "header has 'HdrS' at 0x202");
  }
  const absl::StatusOr<ElfImage> elf = ParseElf(request.image);
  if (!elf.ok()) return elf.status();
  if (HasMultiboot2Header(request.image)) return LoadMultiboot2(request, *elf);
  if (elf->is_64) return LoadElf64(request, *elf);
  if (!HasMultibootHeader(request.image)) {
    return absl::InvalidArgumentError(
        "a 32-bit ELF file without a multiboot header in its first 8192 bytes cannot be booted");
  }
  return LoadMultiboot(request, *elf);
}

absl::StatusOr<CpuState> LoadImageFiles(const SlotTable& memory, std::uint64_t memory_bytes,
                                        const std::string& image_path, const std::string& cmdline,
                                        const std::string& initrd_path, LoadProgress& progress) {
  // An image may carry debug information that is never loaded.
  constexpr std::uint64_t kImageMaxBytes = std::uint64_t{1} << 30;
  for (const std::string* path : {&image_path, &initrd_path}) {
    // If it cannot be opened, whoever reads it says why.
    const auto file = HostFile::Open("file", *path);
    if (file.ok()) progress.Expect(file->bytes());
  }
  const auto image = ReadHostFile("image", image_path, kImageMaxBytes, progress);
  if (!image.ok()) return image.status();
  std::vector<std::byte> initrd;
  if (!initrd_path.empty()) {
    auto file = ReadHostFile("initrd", initrd_path, memory_bytes, progress);
    if (!file.ok()) return file.status();
    initrd = *std::move(file);
  }
  absl::StatusOr<CpuState> state = LoadImage({.memory = &memory,
                                              .memory_bytes = memory_bytes,
                                              .image_name = BaseName(image_path),
                                              .image = *image,
                                              .cmdline = cmdline,
                                              .initrd = initrd,
                                              .initrd_name = BaseName(initrd_path)});
  if (state.ok()) return state;
  return absl::Status(state.status().code(),
                      absl::StrCat("image '", image_path, "': ", state.status().message()));
}

}  // namespace pagesaw
