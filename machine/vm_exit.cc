module;
#include <cstdint>
module pagesaw.machine.vm_exit;

namespace pagesaw {

int ProcessStatus(const VmExit& exit) {
  switch (exit.reason) {
    case StopReason::kDebugExit:
      return static_cast<int>((exit.debug_exit_value << 1 | 1) & 0xff);
    case StopReason::kTimeLimit:
      return 124;
    case StopReason::kRequested:
    case StopReason::kPowerOff:
      return 0;
    default:
      return 1;
  }
}

}  // namespace pagesaw
