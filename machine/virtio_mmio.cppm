// The MMIO transport of virtio devices: registers, feature negotiation, queues, interrupts. What
// the device does is a `VirtioFunction`. [virtio] "Virtio Over MMIO"
module;
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <vector>
export module pagesaw.machine.virtio_mmio;

import pagesaw.machine.device;
import pagesaw.machine.device_memory;
import pagesaw.machine.virtqueue;

export namespace pagesaw {

// What a device does with the chains of its queues. Called with its transport's lock held.
class VirtioFunction {
 public:
  virtual ~VirtioFunction() = default;

  virtual std::string_view name() const = 0;
  virtual std::uint32_t id() const = 0;  // [virtio] "Device Types"
  virtual unsigned queue_count() const = 0;
  virtual std::uint64_t features() const { return 0; }
  // The byte at `offset` of the device's configuration.
  virtual std::uint8_t Configuration(std::uint64_t) const { return 0; }

  // Does what `chain` of `queue` asks for; how many bytes were written into it, or nothing if it is
  // to wait in the queue.
  virtual std::optional<std::uint32_t> Handle(unsigned queue, const DescriptorChain& chain,
                                              DeviceMemory& memory) = 0;
};

class VirtioMmio final : public Device {
 public:
  static constexpr std::uint64_t kBytes = 0x200;

  // Answers from `base` on and raises `irq`. `wake` makes the first vCPU look at devices'
  // deadlines. All that is given outlives the device.
  VirtioMmio(std::uint64_t base, unsigned irq, InterruptSink& interrupts, DeviceMemory& memory,
             std::function<void()> wake, VirtioFunction& function);

  // Something happened outside that chains may have waited for. Any thread.
  void LookAgain();
  // Whether a driver has set it up. Any thread.
  bool in_use() const { return in_use_.load(); }

  std::string_view name() const override { return function_.name(); }
  std::span<const BusRange> ranges() const override { return ranges_; }
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;
  std::uint64_t next_deadline_ns() const override;
  void Poll() override;

 private:
  std::uint32_t ReadRegister(std::uint64_t offset) const;
  void WriteRegister(std::uint64_t offset, std::uint32_t value);
  void WriteQueueRegister(Virtqueue& queue, std::uint64_t offset, std::uint32_t value);
  void SetStatus(std::uint32_t value);
  void Reset();
  void Process(unsigned queue);
  void Raise(std::uint32_t cause);

  const std::array<BusRange, 1> ranges_;
  const unsigned irq_;
  InterruptSink& interrupts_;
  DeviceMemory& memory_;
  const std::function<void()> wake_;
  VirtioFunction& function_;

  std::mutex mutex_;
  std::vector<Virtqueue> queues_;
  std::uint32_t status_ = 0, interrupt_status_ = 0;
  std::uint32_t device_features_half_ = 0, driver_features_half_ = 0;
  std::uint64_t driver_features_ = 0;
  std::uint32_t selected_queue_ = 0;
  std::atomic<bool> in_use_{false};
  std::atomic<bool> look_again_{false};
};

}  // namespace pagesaw
