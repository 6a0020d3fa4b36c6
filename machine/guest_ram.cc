module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <sys/mman.h>
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>
module pagesaw.machine.guest_ram;

namespace pagesaw {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kTwoMib = std::uint64_t{2} << 20;
constexpr std::uint64_t kOneGib = std::uint64_t{1} << 30;

}  // namespace

absl::StatusOr<std::unique_ptr<GuestRam>> GuestRam::Create(std::uint64_t bytes) {
  if (bytes == 0 || bytes % kPage != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("memory size %d: must be a positive multiple of %d", bytes, kPage));
  }
  const std::uint64_t alignment = bytes >= kOneGib ? kOneGib : kTwoMib;
  const std::uint64_t mapping_bytes = bytes + alignment;
  void* mapping = MAP_FAILED;
  if (mapping_bytes > bytes) {
    mapping = mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (mapping == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "memory size %d: the host cannot map that much: %s", bytes, std::strerror(errno)));
  }
  // A huge page would be paid for whole when one byte of it is touched. Failing costs memory only.
  (void)madvise(mapping, mapping_bytes, MADV_NOHUGEPAGE);
  (void)madvise(mapping, mapping_bytes, MADV_DONTDUMP);
  const auto start = reinterpret_cast<std::uintptr_t>(mapping);
  auto* host = reinterpret_cast<std::byte*>((start + alignment - 1) & ~(alignment - 1));
  return std::unique_ptr<GuestRam>(new GuestRam(mapping, mapping_bytes, host, bytes));
}

GuestRam::~GuestRam() { munmap(mapping_, mapping_bytes_); }

std::uint64_t GuestRam::ResidentBytes() const {
  std::vector<unsigned char> resident(std::min(bytes_, kOneGib) / kPage);
  std::uint64_t pages = 0;
  for (std::uint64_t at = 0; at < bytes_; at += kOneGib) {
    const std::uint64_t part = std::min(bytes_ - at, kOneGib);
    if (mincore(host_ + at, part, resident.data()) != 0) return pages * kPage;
    pages += static_cast<std::uint64_t>(std::count_if(
        resident.begin(), resident.begin() + static_cast<std::ptrdiff_t>(part / kPage),
        [](unsigned char flags) { return (flags & 1) != 0; }));
  }
  return pages * kPage;
}

}  // namespace pagesaw
