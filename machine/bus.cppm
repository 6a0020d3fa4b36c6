// Finds the device that an access is for. Nobody there: reads give all ones, writes vanish.
module;
#include <absl/status/status.h>
#include <cstdint>
#include <vector>
export module pagesaw.machine.bus;

import pagesaw.core.processor;
import pagesaw.machine.device;

export namespace pagesaw {

// Devices are attached before the first access; then safe on any thread.
class Bus {
 public:
  // `device` outlives the bus. AlreadyExists if another device has one of its addresses.
  absl::Status Attach(Device& device);

  // Carries out `access`, of ports or MMIO, and fills in the answer to a read.
  void Dispatch(BusAccess& access) const;

  // The earliest deadline of a device, and polls each device whose deadline is past at `now_ns`.
  std::uint64_t next_deadline_ns() const;
  void Poll(std::uint64_t now_ns) const;

 private:
  struct Claim {
    BusRange range;
    Device* device;
  };
  Device* Find(BusSpace space, std::uint64_t address) const;

  std::vector<Claim> claims_;
  std::vector<Device*> devices_;
};

}  // namespace pagesaw
