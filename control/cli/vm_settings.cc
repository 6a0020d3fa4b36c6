module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "control/cli/client.h"
module pagesaw.control.cli.commands;
import :support;
import :vm_settings;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kMaxCpus = 4096;

absl::StatusOr<std::string> FileOf(std::string_view where, const std::string& path) {
  std::error_code error;
  if (path.empty()) {
    return Usage(absl::InvalidArgumentError(
        absl::StrCat(std::string(where), "=: must be the path of a file")));
  }
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": there is no such file"));
  }
  return std::filesystem::absolute(path, error).string();
}

absl::Status SetMemory(const std::string& text, v1::VmConfig& config) {
  const auto bytes = ParseBytes("--memory", text);
  if (!bytes.ok()) return Usage(bytes.status());
  if (*bytes % kPageBytes != 0) {
    return Usage(absl::InvalidArgumentError(
        absl::StrCat("--memory=", text, ": must be a multiple of ", kPageBytes)));
  }
  config.set_memory_bytes(static_cast<std::int64_t>(*bytes));
  return absl::OkStatus();
}

absl::Status SetChoices(const ParsedCommand& parsed, v1::VmConfig& config) {
  const auto tdp = ParseChoice("--tdp", parsed.Value("tdp", "on"), {"on", "off"});
  if (!tdp.ok()) return Usage(tdp.status());
  config.set_tdp(*tdp == 0 ? v1::VmConfig::TDP_ON : v1::VmConfig::TDP_OFF);
  const auto split =
      ParseChoice("--execute_split", parsed.Value("execute_split", "auto"), {"auto", "on", "off"});
  if (!split.ok()) return Usage(split.status());
  static constexpr v1::VmConfig::ExecuteSplit kSplits[] = {v1::VmConfig::EXECUTE_SPLIT_UNSPECIFIED,
                                                           v1::VmConfig::EXECUTE_SPLIT_ON,
                                                           v1::VmConfig::EXECUTE_SPLIT_OFF};
  config.set_execute_split(kSplits[*split]);
  const auto accessed_dirty =
      ParseChoice("--spte_ad", parsed.Value("spte_ad", "on"), {"on", "off"});
  if (!accessed_dirty.ok()) return Usage(accessed_dirty.status());
  config.set_spte_accessed_dirty_off(*accessed_dirty == 1);
  return absl::OkStatus();
}

absl::Status SetNumbers(const ParsedCommand& parsed, v1::VmConfig& config) {
  if (parsed.Has("memory")) {
    if (auto status = SetMemory(parsed.Value("memory"), config); !status.ok()) return status;
  }
  if (parsed.Has("cpus")) {
    const auto cpus = ParseNumber("--cpus", parsed.Value("cpus"), 1, kMaxCpus);
    if (!cpus.ok()) return Usage(cpus.status());
    config.set_cpu_count(static_cast<std::int32_t>(*cpus));
  }
  if (parsed.Has("time_limit")) {
    const auto limit = ParseDuration("--time_limit", parsed.Value("time_limit"));
    if (!limit.ok()) return Usage(limit.status());
    config.set_time_limit_ms(limit->count());
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<OptionSpec> VmSettingOptions() {
  return {
      {.name = "vendor",
       .placeholder = "intel|amd",
       .help = "whose virtual processor, or another vendor that a plugin has; default: that of "
               "the CPU model, or intel"},
      {.name = "tdp",
       .placeholder = "on|off",
       .help = "second-stage tables (on) or shadow paging (off); default: on"},
      {.name = "execute_split",
       .placeholder = "auto|on|off",
       .help = "tell supervisor from user execution in SPTEs (MBEC, GMET); default: auto"},
      {.name = "spte_ad",
       .placeholder = "on|off",
       .help = "A and D in second-stage SPTEs; EPT can do without; default: on"},
      {.name = "memory", .placeholder = "512M", .help = "guest memory; default: 128M"},
      {.name = "cpus", .placeholder = "1", .help = "vCPUs; default: 1"},
      {.name = "cmdline", .placeholder = "TEXT", .help = "command line for the image"},
      {.name = "initrd", .placeholder = "FILE", .help = "boot module or initial ramdisk"},
      {.name = "disk",
       .placeholder = "FILE",
       .help = "raw file as a virtio disk; it is never written: writes are kept in memory"},
      {.name = "disk_mode",
       .placeholder = "cow|read-only",
       .help = "what the guest may do with the disk; default: cow, copy on write"},
      {.name = "virtio",
       .placeholder = "console,rng",
       .help = "virtio devices: a console beside the serial port, a source of random numbers"},
      {.name = "clock",
       .placeholder = "host|virtual",
       .help = "virtual: time follows from the instructions of the one vCPU, and two runs are the "
               "same; default: host"},
      {.name = "cpu",
       .placeholder = "max",
       .help =
           "CPU model: max (all that works and the vendor has; the default), nehalem, ivy-bridge, "
           "haswell, skylake-server, sapphire-rapids, opteron, epyc-rome, epyc-milan or "
           "epyc-genoa"},
      {.name = "cpu_features",
       .placeholder = "+x,-y",
       .help = "CPU features to add to the model's and to take away; maxphyaddr=N: N physical "
               "address bits"},
      {.name = "time_limit",
       .placeholder = "60s",
       .help = "stop the guest after this time; default: never"},
  };
}

namespace {

absl::Status SetDevices(const ParsedCommand& parsed, v1::VmConfig& config) {
  const auto clock = ParseChoice("--clock", parsed.Value("clock", "host"), {"host", "virtual"});
  if (!clock.ok()) return Usage(clock.status());
  config.set_clock(*clock == 0 ? v1::VmConfig::CLOCK_HOST : v1::VmConfig::CLOCK_VIRTUAL);
  const auto mode =
      ParseChoice("--disk_mode", parsed.Value("disk_mode", "cow"), {"cow", "read-only"});
  if (!mode.ok()) return Usage(mode.status());
  config.set_disk_read_only(*mode == 1);
  if (parsed.Has("disk_mode") && !parsed.Has("disk")) {
    return Usage(absl::InvalidArgumentError("--disk_mode: there is no --disk that it could be of"));
  }
  if (parsed.Has("disk")) {
    const auto path = FileOf("--disk", parsed.Value("disk"));
    if (!path.ok()) return path.status();
    config.set_disk_path(*path);
  }
  if (!parsed.Has("virtio")) return absl::OkStatus();
  for (const std::string& device :
       std::vector<std::string>(absl::StrSplit(parsed.Value("virtio"), ','))) {
    const auto choice = ParseChoice("--virtio", device, {"console", "rng"});
    if (!choice.ok()) return Usage(choice.status());
    (*choice == 0 ? config.set_virtio_console(true) : config.set_virtio_entropy(true));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::VmConfig> VmConfigOf(const ParsedCommand& parsed, const std::string& image) {
  v1::VmConfig config;
  if (parsed.Has("vendor") && parsed.Value("vendor").empty()) {
    return Usage(absl::InvalidArgumentError("--vendor=: must name a vendor, as in --vendor=intel"));
  }
  config.set_vendor(parsed.Value("vendor"));
  if (auto status = SetChoices(parsed, config); !status.ok()) return status;
  if (auto status = SetNumbers(parsed, config); !status.ok()) return status;
  if (auto status = SetDevices(parsed, config); !status.ok()) return status;
  config.set_command_line(parsed.Value("cmdline"));
  config.set_cpu_model(parsed.Value("cpu"));
  config.set_cpu_features(parsed.Value("cpu_features"));
  if (!image.empty()) {
    const auto path = FileOf("IMAGE", image);
    if (!path.ok()) return path.status();
    config.set_image_path(*path);
  }
  if (parsed.Has("initrd")) {
    const auto path = FileOf("--initrd", parsed.Value("initrd"));
    if (!path.ok()) return path.status();
    config.set_initrd_path(*path);
  }
  return config;
}

}  // namespace pagesaw
