// How a virtual machine ends, and what its vCPUs count on the way.
module;
#include <cstdint>
#include <string>
export module pagesaw.machine.vm_exit;

export namespace pagesaw {

enum class StopReason : std::uint8_t {
  kNone,       // not stopped
  kRequested,  // Stop was called
  kDebugExit,  // the guest wrote `debug_exit_value` to isa-debug-exit
  kShutdown,   // triple fault
  kReset,      // the guest asked for a reset
  kPowerOff,   // the guest switched the machine off
  kTimeLimit,
  kError,  // the guest did what this machine cannot run; `message` says what
};

struct VmExit {
  StopReason reason = StopReason::kNone;
  std::uint32_t debug_exit_value = 0;
  std::string message;  // one sentence for people, for every reason but kNone
};

// The status of a process that ran the guest in the foreground: debug exit (value << 1) | 1 cut to
// 8 bits, time limit 124, asked to stop or switched off 0, everything else 1.
int ProcessStatus(const VmExit& exit);

struct VcpuStatistics {
  std::uint64_t instructions = 0;
  std::uint64_t exits = 0;
  std::uint64_t exits_table_fault = 0;
  std::uint64_t exits_bus = 0;
  std::uint64_t exits_halt = 0;
  std::uint64_t interrupts = 0;  // delivered
};

}  // namespace pagesaw
