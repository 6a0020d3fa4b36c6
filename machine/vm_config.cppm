// What a virtual machine is asked to be, and the rules that such a wish must keep.
module;
#include <absl/status/status.h>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
export module pagesaw.machine.vm_config;

export namespace pagesaw {

// Whether second-stage tables tell supervisor from user execution.
enum class ExecuteSplit : std::uint8_t {
  kAuto,  // where a registered format can
  kOn,    // or the VM is not made
  kOff,
};

// What a VM's time is.
enum class ClockKind : std::uint8_t {
  kHost,     // the host's
  kVirtual,  // that of the instructions executed, on one vCPU: each run is as the last
};

struct VmConfig {
  std::string name;              // [a-z][a-z0-9-]{0,62}
  std::string vendor = "intel";  // a vendor that some plugin provides
  std::uint64_t memory_bytes = std::uint64_t{128} << 20;
  unsigned cpu_count = 1;
  bool tdp = true;  // two-stage translation
  ExecuteSplit execute_split = ExecuteSplit::kAuto;
  // A and D are kept in second-stage SPTEs. Without, first accesses and writes are seen by faults.
  bool spte_accessed_dirty = true;
  std::string image_path;       // empty: no image; registers are as after RESET
  std::string cmdline;          // for the image, without its name
  std::string initrd_path;      // empty: none
  std::string cpu_model;        // empty: all that works; else of that very vendor
  std::string cpu_features;     // "+name,-name": on top of the model
  std::string disk_path;        // a raw file; empty: no disk
  bool disk_read_only = false;  // else writes are kept in memory, for the VM's life
  bool virtio_console = false;  // beside the serial port
  bool virtio_entropy = false;  // a source of random numbers
  ClockKind clock = ClockKind::kHost;
  std::chrono::milliseconds time_limit{0};  // of running, on the host's clock; 0: none
};

// The most vCPUs of one VM.
inline constexpr unsigned kMaxCpus = 64;

inline constexpr std::uint64_t kDefaultMemoryLimitBytes = std::uint64_t{64} << 30;

// OK if `name` is [a-z][a-z0-9-]{0,62}, else InvalidArgument with a sentence that names it.
absl::Status CheckVmName(std::string_view name);

// Checks what can be told without opening a file or asking a plugin: InvalidArgument (name, memory
// size, counts, an option without the image it is for), ResourceExhausted (more memory than
// `memory_limit_bytes`), Unimplemented (what no part of the program can do yet).
absl::Status CheckVmConfig(const VmConfig& config, std::uint64_t memory_limit_bytes);

// The memory of a guest must not be larger than this: what the host has, at most
// kDefaultMemoryLimitBytes.
std::uint64_t HostMemoryLimitBytes();

}  // namespace pagesaw
