module;
#include <absl/status/status.h>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <utility>
module pagesaw.machine.board;

namespace pagesaw {
namespace {

constexpr std::uint16_t kUartPort = 0x3f8;
constexpr unsigned kUartIrq = 4;

}  // namespace

Board::Board(BoardOptions options, const Clock& clock, Console& console, SystemControl& system,
             DeviceMemory& memory, const std::function<void(unsigned)>& wake,
             std::function<void(Gfn)> forget)
    : pic_([this](bool level) {
        for (const auto& apic : apics_) apic->SetLint(0, level);
      }),
      io_apic_(apic_bus_),
      lines_(pic_, io_apic_),
      pit_(clock, lines_),
      hpet_(clock, lines_),
      uart_(kUartPort, kUartIrq, lines_, console),
      coprocessor_error_(lines_),
      debug_exit_(system),
      debug_console_(console),
      keyboard_(system),
      fw_cfg_(options.memory_bytes, options.cpu_count),
      system_control_port_(system),
      power_(clock, system, lines_),
      rtc_(clock, lines_, options.memory_bytes, [this] { power_.RtcAlarm(); }),
      test_device_(lines_, std::move(forget)),
      virtio_(std::move(options.virtio), lines_, memory, console, [wake] { wake(0); }) {
  const std::initializer_list<Device*> devices = {
      &pic_,        &io_apic_,       &pit_,      &hpet_,        &uart_,
      &debug_exit_, &debug_console_, &keyboard_, &fw_cfg_,      &system_control_port_,
      &power_,      &rtc_,           &pci_,      &test_device_, &coprocessor_error_};
  for (Device* device : devices) {
    if (!bus_.Attach(*device).ok()) std::abort();  // two of our own devices at one address
  }
  for (const auto& device : virtio_.devices()) {
    if (!bus_.Attach(*device).ok()) std::abort();
  }
  apic_bus_.Listen(io_apic_);
  InitialisePics();
  for (unsigned i = 0; i < options.cpu_count; ++i) {
    apics_.push_back(std::make_unique<LocalApic>(
        LocalApicOptions{.id = i, .bootstrap = i == 0, .physical_bits = options.physical_bits},
        clock, apic_bus_, [wake, i] { wake(i); }));
    apic_bus_.Attach(*apics_.back());
  }
}

// As firmware leaves them: vectors 08h to 0Fh and 70h to 77h, nothing masked, the slave at line 2.
void Board::InitialisePics() {
  struct Write {
    std::uint16_t port;
    std::uint8_t value;
  };
  constexpr Write kWrites[] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x08}, {0xa1, 0x70},
                               {0x21, 0x04}, {0xa1, 0x02}, {0x21, 0x01}, {0xa1, 0x01},
                               {0x21, 0x00}, {0xa1, 0x00}};
  for (const Write& write : kWrites) pic_.Write(BusSpace::kPort, write.port, 1, write.value);
}

}  // namespace pagesaw
