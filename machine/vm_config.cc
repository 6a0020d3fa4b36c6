module;
#include <absl/status/status.h>
#include <absl/strings/str_format.h>
#include <unistd.h>
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
module pagesaw.machine.vm_config;

namespace pagesaw {
namespace {

constexpr std::size_t kNameMaxChars = 63;
constexpr std::size_t kCmdlineMaxChars = 4095;
constexpr std::uint64_t kMinMemoryBytes = 4096;

bool IsLower(char c) { return c >= 'a' && c <= 'z'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

absl::Status CheckVmName(std::string_view name) {
  const bool good = !name.empty() && name.size() <= kNameMaxChars && IsLower(name.front()) &&
                    std::all_of(name.begin(), name.end(),
                                [](char c) { return IsLower(c) || IsDigit(c) || c == '-'; });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("VM name '%s': must match [a-z][a-z0-9-]{0,62}",
                                                    std::string(name.substr(0, 80))));
}

absl::Status CheckVmConfig(const VmConfig& config, std::uint64_t memory_limit_bytes) {
  if (absl::Status status = CheckVmName(config.name); !status.ok()) return status;
  if (config.memory_bytes == 0 || config.memory_bytes % kMinMemoryBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("memory size %d: must be a positive multiple of %d bytes",
                        config.memory_bytes, kMinMemoryBytes));
  }
  if (config.memory_bytes > memory_limit_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("memory size %d: this host allows at most %d bytes for a VM",
                        config.memory_bytes, memory_limit_bytes));
  }
  if (config.cpu_count == 0) {
    return absl::InvalidArgumentError("vCPU count 0: must be at least 1");
  }
  if (config.cpu_count > kMaxCpus) {
    return absl::InvalidArgumentError(
        absl::StrFormat("vCPU count %d: a VM can have at most %d", config.cpu_count, kMaxCpus));
  }
  if (config.time_limit.count() < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("time limit %d ms: must not be negative", config.time_limit.count()));
  }
  if (config.cmdline.size() > kCmdlineMaxChars) {
    return absl::InvalidArgumentError(
        absl::StrFormat("command line of %d characters: at most %d are possible",
                        config.cmdline.size(), kCmdlineMaxChars));
  }
  if (config.cmdline.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("command line: has a NUL character");
  }
  if (config.clock == ClockKind::kVirtual && config.cpu_count != 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("vCPU count %d: a VM with a virtual clock has one vCPU", config.cpu_count));
  }
  if (config.disk_path.empty() && config.disk_read_only) {
    return absl::InvalidArgumentError("disk: read-only, but there is none");
  }
  if (config.image_path.empty() && !config.initrd_path.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("initrd '%s': there is no image to give it to", config.initrd_path));
  }
  if (config.image_path.empty() && !config.cmdline.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("command line '%s': there is no image to give it to", config.cmdline));
  }
  return absl::OkStatus();
}

std::uint64_t HostMemoryLimitBytes() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page_bytes = sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page_bytes <= 0) return kDefaultMemoryLimitBytes;
  return std::min(kDefaultMemoryLimitBytes,
                  static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page_bytes));
}

}  // namespace pagesaw
