module;
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>
module pagesaw.machine.virtio_devices;

namespace pagesaw {

VirtioDevices::VirtioDevices(VirtioOptions options, InterruptSink& interrupts, DeviceMemory& memory,
                             Console& output, const std::function<void()>& wake) {
  const auto add = [&](std::unique_ptr<VirtioFunction> function) {
    const unsigned number = static_cast<unsigned>(devices_.size());
    devices_.push_back(std::make_unique<VirtioMmio>(kBase + number * kDistance, kFirstIrq + number,
                                                    interrupts, memory, wake, *function));
    functions_.push_back(std::move(function));
  };
  if (options.disk != nullptr) add(std::make_unique<VirtioBlock>(std::move(options.disk)));
  if (options.console) {
    auto console = std::make_unique<VirtioConsole>(output);
    console_ = console.get();
    add(std::move(console));
    console_transport_ = devices_.back().get();
  }
  if (options.entropy) add(std::make_unique<VirtioEntropy>(options.seed));
}

std::vector<AcpiDevice> VirtioDevices::AcpiDevices() const {
  std::vector<AcpiDevice> list;
  for (unsigned i = 0; i < devices_.size(); ++i) {
    list.push_back({.id = "LNRO0005",
                    .base = static_cast<std::uint32_t>(kBase + i * kDistance),
                    .bytes = static_cast<std::uint32_t>(VirtioMmio::kBytes),
                    .irq = kFirstIrq + i});
  }
  return list;
}

std::optional<bool> VirtioDevices::Type(std::string_view data) {
  if (console_ == nullptr || !console_transport_->in_use()) return std::nullopt;
  if (!console_->Receive(data)) return false;
  console_transport_->LookAgain();
  return true;
}

}  // namespace pagesaw
