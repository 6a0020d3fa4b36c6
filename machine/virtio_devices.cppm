// The virtio devices of one VM, each at its place in memory and at an interrupt of its own.
module;
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>
export module pagesaw.machine.virtio_devices;

import pagesaw.machine.acpi_tables;
import pagesaw.machine.console;
import pagesaw.machine.device;
import pagesaw.machine.device_memory;
import pagesaw.machine.disk;
import pagesaw.machine.virtio_functions;
import pagesaw.machine.virtio_mmio;

export namespace pagesaw {

struct VirtioOptions {
  std::unique_ptr<Disk> disk;  // null: none
  bool console = false;
  bool entropy = false;
  std::optional<std::uint64_t> seed;  // of the random numbers; none: the host's
};

class VirtioDevices {
 public:
  // Behind RAM below 4 GiB, and on pins of the I/O APIC that no PIC has.
  static constexpr std::uint64_t kBase = 0xd000'0000, kDistance = 0x1000;
  static constexpr unsigned kFirstIrq = 16;

  // `wake` makes the first vCPU look at devices' deadlines. All that is given outlives this.
  VirtioDevices(VirtioOptions options, InterruptSink& interrupts, DeviceMemory& memory,
                Console& output, const std::function<void()>& wake);

  const std::vector<std::unique_ptr<VirtioMmio>>& devices() const { return devices_; }
  // How a guest finds them.
  std::vector<AcpiDevice> AcpiDevices() const;

  // Types into the console: nothing if there is none or no driver uses it, else whether there was
  // room. Any thread.
  std::optional<bool> Type(std::string_view data);

 private:
  std::vector<std::unique_ptr<VirtioFunction>> functions_;
  std::vector<std::unique_ptr<VirtioMmio>> devices_;
  VirtioConsole* console_ = nullptr;
  VirtioMmio* console_transport_ = nullptr;
};

}  // namespace pagesaw
