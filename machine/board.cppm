// The devices of a VM, wired as a PC's are.
module;
#include <absl/status/status.h>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>
export module pagesaw.machine.board;

import pagesaw.core.address;
import pagesaw.machine.apic_bus;
import pagesaw.machine.bus;
import pagesaw.machine.clock;
import pagesaw.machine.console;
import pagesaw.machine.coprocessor_error;
import pagesaw.machine.device;
import pagesaw.machine.device_memory;
import pagesaw.machine.hpet;
import pagesaw.machine.interrupt_router;
import pagesaw.machine.io_apic;
import pagesaw.machine.local_apic;
import pagesaw.machine.pci_host;
import pagesaw.machine.pic;
import pagesaw.machine.pit;
import pagesaw.machine.power_management;
import pagesaw.machine.real_time_clock;
import pagesaw.machine.small_devices;
import pagesaw.machine.test_device;
import pagesaw.machine.uart;
import pagesaw.machine.virtio_devices;

export namespace pagesaw {

struct BoardOptions {
  std::uint64_t memory_bytes = 0;
  unsigned cpu_count = 1;
  unsigned physical_bits = 46;
  VirtioOptions virtio = {};
};

class Board {
 public:
  // `wake(i)` makes vCPU i look for interrupts; `forget(gfn)` drops what was built to map a frame.
  // All that is given outlives the board.
  Board(BoardOptions options, const Clock& clock, Console& console, SystemControl& system,
        DeviceMemory& memory, const std::function<void(unsigned)>& wake,
        std::function<void(Gfn)> forget);

  const Bus& bus() const { return bus_; }
  const ApicBus& apic_bus() const { return apic_bus_; }
  Pic& pic() { return pic_; }
  Uart& uart() { return uart_; }
  VirtioDevices& virtio() { return virtio_; }
  CoprocessorError& coprocessor_error() { return coprocessor_error_; }
  LocalApic& apic(unsigned cpu) { return *apics_[cpu]; }

 private:
  void InitialisePics();

  ApicBus apic_bus_;
  Pic pic_;
  IoApic io_apic_;
  InterruptRouter lines_;
  Pit pit_;
  Hpet hpet_;
  Uart uart_;
  CoprocessorError coprocessor_error_;
  DebugExit debug_exit_;
  DebugConsole debug_console_;
  KeyboardController keyboard_;
  FwCfg fw_cfg_;
  SystemControlPort system_control_port_;
  PowerManagement power_;
  RealTimeClock rtc_;
  PciHost pci_;
  TestDevice test_device_;
  VirtioDevices virtio_;
  Bus bus_;
  std::vector<std::unique_ptr<LocalApic>> apics_;
};

}  // namespace pagesaw
