// The virtio devices that there are: a block device, a source of random numbers and a console.
// [virtio] "Block Device", "Entropy Device", "Console Device"
module;
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string_view>
export module pagesaw.machine.virtio_functions;

import pagesaw.machine.console;
import pagesaw.machine.device_memory;
import pagesaw.machine.disk;
import pagesaw.machine.virtio_mmio;
import pagesaw.machine.virtqueue;

export namespace pagesaw {

class VirtioBlock final : public VirtioFunction {
 public:
  // A request with more data than this fails.
  static constexpr std::uint64_t kRequestMaxBytes = std::uint64_t{2} << 20;

  explicit VirtioBlock(std::unique_ptr<Disk> disk) : disk_(std::move(disk)) {}

  std::string_view name() const override { return "virtio-block"; }
  std::uint32_t id() const override { return 2; }
  unsigned queue_count() const override { return 1; }
  std::uint64_t features() const override;
  std::uint8_t Configuration(std::uint64_t offset) const override;
  std::optional<std::uint32_t> Handle(unsigned queue, const DescriptorChain& chain,
                                      DeviceMemory& memory) override;

 private:
  bool ReadDisk(std::uint64_t offset, const DescriptorChain& chain, std::uint64_t count,
                DeviceMemory& memory) const;
  bool WriteDisk(std::uint64_t offset, const DescriptorChain& chain, std::uint64_t count,
                 const DeviceMemory& memory);

  const std::unique_ptr<Disk> disk_;
};

// Fills with random bytes, at most kFillMaxBytes of a chain.
class VirtioEntropy final : public VirtioFunction {
 public:
  static constexpr std::uint64_t kFillMaxBytes = 64 << 10;

  // The host's random numbers, or those that follow from `seed`.
  explicit VirtioEntropy(std::optional<std::uint64_t> seed) {
    if (seed.has_value()) generator_.emplace(*seed);
  }

  std::string_view name() const override { return "virtio-entropy"; }
  std::uint32_t id() const override { return 4; }
  unsigned queue_count() const override { return 1; }
  std::optional<std::uint32_t> Handle(unsigned queue, const DescriptorChain& chain,
                                      DeviceMemory& memory) override;

 private:
  void Fill(std::span<std::byte> bytes);

  std::optional<std::mt19937_64> generator_;
};

// One port, which is the VM's console.
class VirtioConsole final : public VirtioFunction {
 public:
  static constexpr std::size_t kInputMaxBytes = 4096;
  // What a chain has beyond this is not printed.
  static constexpr std::uint64_t kPrintMaxBytes = 64 << 10;

  explicit VirtioConsole(Console& output) : output_(output) {}

  // Queues what is typed. False, and nothing queued, if there is no room for all of it. Any thread;
  // the transport looks again afterwards.
  bool Receive(std::string_view data);

  std::string_view name() const override { return "virtio-console"; }
  std::uint32_t id() const override { return 3; }
  unsigned queue_count() const override { return 2; }
  std::optional<std::uint32_t> Handle(unsigned queue, const DescriptorChain& chain,
                                      DeviceMemory& memory) override;

 private:
  std::optional<std::uint32_t> GiveInput(const DescriptorChain& chain, DeviceMemory& memory);

  Console& output_;
  std::mutex mutex_;
  std::deque<char> input_;
};

}  // namespace pagesaw
