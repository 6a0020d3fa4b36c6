// A split virtqueue, from the device's side. Whatever the driver puts into it, a chain has at most
// as many buffers as the queue has descriptors. [virtio] "Split Virtqueues"
module;
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>
export module pagesaw.machine.virtqueue;

import pagesaw.core.address;
import pagesaw.machine.device_memory;

export namespace pagesaw {

struct VirtqueueBuffer {
  Gpa base;
  std::uint32_t bytes = 0;
};

// What a driver gives to a device in one piece: buffers to be read, then buffers to be written.
class DescriptorChain {
 public:
  std::uint16_t head = 0;
  std::vector<VirtqueueBuffer> readable, writable;

  std::uint64_t readable_bytes() const { return BytesOf(readable); }
  std::uint64_t writable_bytes() const { return BytesOf(writable); }

  // Copies from the readable bytes from `offset` on, or to the writable ones. False if there are
  // not as many, or they are not memory.
  [[nodiscard]] bool Read(const DeviceMemory& memory, std::uint64_t offset,
                          std::span<std::byte> bytes) const;
  [[nodiscard]] bool Write(DeviceMemory& memory, std::uint64_t offset,
                           std::span<const std::byte> bytes) const;

 private:
  static std::uint64_t BytesOf(std::span<const VirtqueueBuffer> buffers);
};

class Virtqueue {
 public:
  static constexpr std::uint16_t kMaxSize = 256;

  // As the driver sets it up. Addresses and sizes may be anything.
  std::uint16_t size = 0;
  std::uint64_t descriptors = 0, driver_area = 0, device_area = 0;
  bool ready = false;

  // The next chain, which stays the next until it is completed. Nothing if there is none. Sets
  // `broken` if the queue makes no sense.
  std::optional<DescriptorChain> Peek(const DeviceMemory& memory);
  // Gives the chain that was peeked back, with `written` bytes in it. The driver sees it once it is
  // published.
  void Complete(DeviceMemory& memory, const DescriptorChain& chain, std::uint32_t written);
  void Publish(DeviceMemory& memory);
  // Whether the driver wants an interrupt for what was completed.
  bool WantsInterrupt(const DeviceMemory& memory) const;

  bool broken() const { return broken_; }

 private:
  std::optional<std::uint16_t> Load16(const DeviceMemory& memory, std::uint64_t at) const;
  bool Append(const DeviceMemory& memory, std::uint16_t index, DescriptorChain& chain,
              std::optional<std::uint16_t>& next) const;

  std::uint16_t next_available_ = 0, next_used_ = 0;
  bool broken_ = false;
};

}  // namespace pagesaw
