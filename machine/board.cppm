// The devices of a VM, wired as a PC's are.
module;
#include <absl/status/status.h>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>
export module pagesaw.machine.board;

import pagesaw.machine.apic_bus;
import pagesaw.machine.bus;
import pagesaw.machine.clock;
import pagesaw.machine.console;
import pagesaw.machine.device;
import pagesaw.machine.local_apic;
import pagesaw.machine.pic;
import pagesaw.machine.pit;
import pagesaw.machine.small_devices;
import pagesaw.machine.uart;

export namespace pagesaw {

struct BoardOptions {
  std::uint64_t memory_bytes = 0;
  unsigned cpu_count = 1;
  unsigned physical_bits = 46;
};

class Board {
 public:
  // `wake(i)` makes vCPU i look for interrupts. All that is given outlives the board.
  Board(const BoardOptions& options, const Clock& clock, Console& console, SystemControl& system,
        std::function<void(unsigned)> wake);

  const Bus& bus() const { return bus_; }
  Pic& pic() { return pic_; }
  Uart& uart() { return uart_; }
  LocalApic& apic(unsigned cpu) { return *apics_[cpu]; }

 private:
  Pic pic_;
  Pit pit_;
  Uart uart_;
  DebugExit debug_exit_;
  DebugConsole debug_console_;
  KeyboardController keyboard_;
  FwCfg fw_cfg_;
  RealTimeClock rtc_;
  Bus bus_;
  ApicBus apic_bus_;
  std::vector<std::unique_ptr<LocalApic>> apics_;
};

}  // namespace pagesaw
