module;
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>
module pagesaw.machine.virtqueue;

namespace pagesaw {
namespace {

constexpr std::uint64_t kDescriptorBytes = 16, kUsedElementBytes = 8;
// Of a descriptor. There are no indirect tables: the feature is not offered.
constexpr std::uint16_t kHasNext = 1, kWritable = 2, kIndirect = 4;
// Both rings: flags, index, elements.
constexpr std::uint64_t kIndex = 2, kElements = 4;
constexpr std::uint16_t kNoInterrupt = 1;

struct Descriptor {
  std::uint64_t base;
  std::uint32_t bytes;
  std::uint16_t flags;
  std::uint16_t next;
};
static_assert(sizeof(Descriptor) == kDescriptorBytes);

// Calls `copy(gpa, offset, count)` for each piece of the bytes from `offset` on, until it is false.
template <class Copy>
bool ForEachPiece(std::span<const VirtqueueBuffer> buffers, std::uint64_t offset,
                  std::uint64_t count, const Copy& copy) {
  std::uint64_t done = 0;
  for (const VirtqueueBuffer& buffer : buffers) {
    if (done == count) break;
    if (offset >= buffer.bytes) {
      offset -= buffer.bytes;
      continue;
    }
    const std::uint64_t piece = std::min(buffer.bytes - offset, count - done);
    if (!copy(Gpa(buffer.base.bits() + offset), done, piece)) return false;
    done += piece;
    offset = 0;
  }
  return done == count;
}

}  // namespace

// -- chains

std::uint64_t DescriptorChain::BytesOf(std::span<const VirtqueueBuffer> buffers) {
  std::uint64_t bytes = 0;
  for (const VirtqueueBuffer& buffer : buffers) bytes += buffer.bytes;
  return bytes;
}

bool DescriptorChain::Read(const DeviceMemory& memory, std::uint64_t offset,
                           std::span<std::byte> bytes) const {
  return ForEachPiece(readable, offset, bytes.size(),
                      [&](Gpa gpa, std::uint64_t at, std::uint64_t count) {
                        return memory.Read(gpa, bytes.subspan(at, count));
                      });
}

bool DescriptorChain::Write(DeviceMemory& memory, std::uint64_t offset,
                            std::span<const std::byte> bytes) const {
  return ForEachPiece(writable, offset, bytes.size(),
                      [&](Gpa gpa, std::uint64_t at, std::uint64_t count) {
                        return memory.Write(gpa, bytes.subspan(at, count));
                      });
}

// -- the queue

std::optional<std::uint16_t> Virtqueue::Load16(const DeviceMemory& memory, std::uint64_t at) const {
  std::uint16_t value = 0;
  if (!memory.Read(Gpa(at), std::as_writable_bytes(std::span(&value, 1)))) return std::nullopt;
  return value;
}

// Takes descriptor `index` into the chain, and says which follows it. False: it makes no sense.
bool Virtqueue::Append(const DeviceMemory& memory, std::uint16_t index, DescriptorChain& chain,
                       std::optional<std::uint16_t>& next) const {
  if (index >= size) return false;
  Descriptor descriptor = {};
  if (!memory.Read(Gpa(descriptors + index * kDescriptorBytes),
                   std::as_writable_bytes(std::span(&descriptor, 1)))) {
    return false;
  }
  if ((descriptor.flags & kIndirect) != 0) return false;
  // An address that wraps would be memory at both ends.
  if (descriptor.base + descriptor.bytes < descriptor.base) return false;
  const bool writable = (descriptor.flags & kWritable) != 0;
  if (!writable && !chain.writable.empty()) return false;
  (writable ? chain.writable : chain.readable)
      .push_back({.base = Gpa(descriptor.base), .bytes = descriptor.bytes});
  next.reset();
  if ((descriptor.flags & kHasNext) != 0) next = descriptor.next;
  return true;
}

std::optional<DescriptorChain> Virtqueue::Peek(const DeviceMemory& memory) {
  if (!ready || broken_) return std::nullopt;
  const auto broken = [this] {
    broken_ = true;
    return std::nullopt;
  };
  const auto available = Load16(memory, driver_area + kIndex);
  if (!available.has_value()) return broken();
  const auto waiting = static_cast<std::uint16_t>(*available - next_available_);
  if (waiting == 0) return std::nullopt;
  if (waiting > size) return broken();
  // The driver wrote what the index covers before the index.
  std::atomic_thread_fence(std::memory_order_acquire);
  const auto head = Load16(memory, driver_area + kElements + next_available_ % size * 2u);
  if (!head.has_value()) return broken();

  DescriptorChain chain;
  chain.head = *head;
  std::optional<std::uint16_t> next = *head;
  // More than all descriptors are a loop.
  for (unsigned count = 0; next.has_value(); ++count) {
    if (count == size || !Append(memory, *next, chain, next)) return broken();
  }
  return chain;
}

void Virtqueue::Complete(DeviceMemory& memory, const DescriptorChain& chain,
                         std::uint32_t written) {
  const std::uint32_t element[] = {chain.head, written};
  const std::uint64_t at = device_area + kElements + next_used_ % size * kUsedElementBytes;
  ++next_available_;
  ++next_used_;
  if (!memory.Write(Gpa(at), std::as_bytes(std::span(element)))) broken_ = true;
}

void Virtqueue::Publish(DeviceMemory& memory) {
  // The driver reads what the index covers behind the index.
  std::atomic_thread_fence(std::memory_order_release);
  if (!memory.Write(Gpa(device_area + kIndex), std::as_bytes(std::span(&next_used_, 1)))) {
    broken_ = true;
  }
}

bool Virtqueue::WantsInterrupt(const DeviceMemory& memory) const {
  // A driver asks for interrupts and then looks at the index once more. Were the flags read before
  // the index is written, it could miss both. [virtio] "Used Buffer Notification Suppression"
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return (Load16(memory, driver_area).value_or(0) & kNoInterrupt) == 0;
}

}  // namespace pagesaw
