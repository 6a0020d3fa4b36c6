module;
#include <absl/status/status.h>
#include <absl/strings/str_format.h>
#include <algorithm>
#include <cstdint>
#include <vector>
module pagesaw.machine.bus;

import pagesaw.machine.clock;

namespace pagesaw {

absl::Status Bus::Attach(Device& device) {
  for (const BusRange& range : device.ranges()) {
    for (const Claim& claim : claims_) {
      if (claim.range.space != range.space) continue;
      if (claim.range.Contains(range.first) || range.Contains(claim.range.first)) {
        return absl::AlreadyExistsError(absl::StrFormat("device %s: address 0x%x belongs to %s",
                                                        device.name(), range.first,
                                                        claim.device->name()));
      }
    }
  }
  for (const BusRange& range : device.ranges()) claims_.push_back({range, &device});
  devices_.push_back(&device);
  return absl::OkStatus();
}

Device* Bus::Find(BusSpace space, std::uint64_t address) const {
  for (const Claim& claim : claims_) {
    if (claim.range.space == space && claim.range.Contains(address)) return claim.device;
  }
  return nullptr;
}

void Bus::Dispatch(BusAccess& access) const {
  using Kind = BusAccess::Kind;
  const bool port = access.kind == Kind::kPortIn || access.kind == Kind::kPortOut;
  const bool read = access.kind == Kind::kPortIn || access.kind == Kind::kMmioRead;
  const BusSpace space = port ? BusSpace::kPort : BusSpace::kMmio;
  Device* device = Find(space, access.address);
  const std::uint64_t mask = BytesMask(access.bytes);
  if (read) {
    access.value = (device == nullptr ? ~std::uint64_t{0}
                                      : device->Read(space, access.address, access.bytes)) &
                   mask;
  } else if (device != nullptr) {
    device->Write(space, access.address, access.bytes, access.value & mask);
  }
}

std::uint64_t Bus::next_deadline_ns() const {
  std::uint64_t earliest = kNever;
  for (const Device* device : devices_) earliest = std::min(earliest, device->next_deadline_ns());
  return earliest;
}

void Bus::Poll(std::uint64_t now_ns) const {
  for (Device* device : devices_) {
    if (device->next_deadline_ns() <= now_ns) device->Poll();
  }
}

}  // namespace pagesaw
