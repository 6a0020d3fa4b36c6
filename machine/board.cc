module;
#include <absl/status/status.h>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
module pagesaw.machine.board;

namespace pagesaw {
namespace {

constexpr std::uint16_t kUartPort = 0x3f8;
constexpr unsigned kUartIrq = 4;

}  // namespace

Board::Board(const BoardOptions& options, const Clock& clock, Console& console,
             SystemControl& system, std::function<void(unsigned)> wake)
    : pic_([wake](bool level) {
        if (level) wake(0);
      }),
      pit_(clock, pic_),
      uart_(kUartPort, kUartIrq, pic_, console),
      debug_exit_(system),
      debug_console_(console),
      keyboard_(system),
      fw_cfg_(options.memory_bytes, options.cpu_count),
      rtc_(clock, options.memory_bytes) {
  const std::initializer_list<Device*> devices = {
      &pic_, &pit_, &uart_, &debug_exit_, &debug_console_, &keyboard_, &fw_cfg_, &rtc_};
  for (Device* device : devices) {
    if (!bus_.Attach(*device).ok()) std::abort();  // two of our own devices at one address
  }
  for (unsigned i = 0; i < options.cpu_count; ++i) {
    apics_.push_back(std::make_unique<LocalApic>(
        LocalApicOptions{.id = i, .bootstrap = i == 0, .physical_bits = options.physical_bits},
        clock, apic_bus_, [wake, i] { wake(i); }));
    apic_bus_.Attach(*apics_.back());
  }
}

}  // namespace pagesaw
