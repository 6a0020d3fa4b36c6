module;
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>
module pagesaw.machine.virtio_mmio;

import pagesaw.machine.clock;

namespace pagesaw {
namespace {

// [virtio] "MMIO Device Register Layout"
constexpr std::uint64_t kMagic = 0x000, kVersion = 0x004, kDeviceId = 0x008, kVendorId = 0x00c,
                        kDeviceFeatures = 0x010, kDeviceFeaturesHalf = 0x014,
                        kDriverFeatures = 0x020, kDriverFeaturesHalf = 0x024, kQueueSelect = 0x030,
                        kQueueSizeMax = 0x034, kQueueSize = 0x038, kQueueReady = 0x044,
                        kQueueNotify = 0x050, kInterruptStatus = 0x060, kInterruptAck = 0x064,
                        kStatus = 0x070, kQueueDescriptors = 0x080, kQueueDriver = 0x090,
                        kQueueDevice = 0x0a0, kConfiguration = 0x100;
constexpr std::uint32_t kMagicValue = 0x7472'6976, kVersionValue = 2, kVendorValue = 0x5747'5350;
// [virtio] "Device Status Field"
constexpr std::uint32_t kFeaturesOk = 8, kDriverOk = 4, kNeedsReset = 64;
constexpr std::uint32_t kUsedBuffers = 1, kConfigurationChanged = 2;
constexpr std::uint64_t kFeatureVersion1 = std::uint64_t{1} << 32;

void SetHalf(std::uint64_t& whole, bool high, std::uint32_t value) {
  const unsigned shift = high ? 32 : 0;
  whole = (whole & ~(std::uint64_t{0xffff'ffff} << shift)) | std::uint64_t{value} << shift;
}

}  // namespace

VirtioMmio::VirtioMmio(std::uint64_t base, unsigned irq, InterruptSink& interrupts,
                       DeviceMemory& memory, std::function<void()> wake, VirtioFunction& function)
    : ranges_{BusRange{BusSpace::kMmio, base, kBytes}},
      irq_(irq),
      interrupts_(interrupts),
      memory_(memory),
      wake_(std::move(wake)),
      function_(function),
      queues_(function.queue_count()) {}

// -- registers

std::uint64_t VirtioMmio::Read(BusSpace, std::uint64_t address, unsigned bytes) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t offset = address - ranges_[0].first;
  if (offset < kConfiguration) return bytes == 4 && offset % 4 == 0 ? ReadRegister(offset) : 0;
  std::uint64_t value = 0;
  for (unsigned i = 0; i < bytes; ++i) {
    value |= std::uint64_t{function_.Configuration(offset - kConfiguration + i)} << (8 * i);
  }
  return value;
}

std::uint32_t VirtioMmio::ReadRegister(std::uint64_t offset) const {
  const std::uint64_t features = function_.features() | kFeatureVersion1;
  const bool queue = selected_queue_ < queues_.size();
  switch (offset) {
    case kMagic:
      return kMagicValue;
    case kVersion:
      return kVersionValue;
    case kDeviceId:
      return function_.id();
    case kVendorId:
      return kVendorValue;
    case kDeviceFeatures:
      return device_features_half_ < 2
                 ? static_cast<std::uint32_t>(features >> (32 * device_features_half_))
                 : 0;
    case kQueueSizeMax:
      return queue ? Virtqueue::kMaxSize : 0;
    case kQueueReady:
      return queue && queues_[selected_queue_].ready ? 1 : 0;
    case kInterruptStatus:
      return interrupt_status_;
    case kStatus:
      return status_;
    default:
      return 0;
  }
}

void VirtioMmio::Write(BusSpace, std::uint64_t address, unsigned bytes, std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t offset = address - ranges_[0].first;
  // The devices' configurations are read-only.
  if (bytes == 4 && offset % 4 == 0 && offset < kConfiguration) {
    WriteRegister(offset, static_cast<std::uint32_t>(value));
  }
}

void VirtioMmio::WriteRegister(std::uint64_t offset, std::uint32_t value) {
  switch (offset) {
    case kDeviceFeaturesHalf:
      device_features_half_ = value;
      break;
    case kDriverFeatures:
      if (driver_features_half_ < 2 && (status_ & kFeaturesOk) == 0) {
        SetHalf(driver_features_, driver_features_half_ == 1, value);
      }
      break;
    case kDriverFeaturesHalf:
      driver_features_half_ = value;
      break;
    case kQueueSelect:
      selected_queue_ = value;
      break;
    case kQueueNotify:
      if (value < queues_.size()) Process(value);
      break;
    case kInterruptAck:
      interrupt_status_ &= ~value;
      if (interrupt_status_ == 0) interrupts_.SetIrq(irq_, false);
      break;
    case kStatus:
      SetStatus(value);
      break;
    default:
      if (selected_queue_ < queues_.size()) {
        WriteQueueRegister(queues_[selected_queue_], offset, value);
      }
  }
}

void VirtioMmio::WriteQueueRegister(Virtqueue& queue, std::uint64_t offset, std::uint32_t value) {
  if (offset == kQueueReady) {
    // A queue is switched off by a reset alone. [virtio] "Virtqueue Reset" is a feature of its own.
    queue.ready = queue.ready || (value == 1 && queue.size != 0);
    return;
  }
  if (queue.ready) return;
  switch (offset) {
    case kQueueSize: {
      const bool power = value != 0 && (value & (value - 1)) == 0;
      queue.size = power && value <= Virtqueue::kMaxSize ? static_cast<std::uint16_t>(value) : 0;
      break;
    }
    case kQueueDescriptors:
    case kQueueDescriptors + 4:
      SetHalf(queue.descriptors, offset != kQueueDescriptors, value);
      break;
    case kQueueDriver:
    case kQueueDriver + 4:
      SetHalf(queue.driver_area, offset != kQueueDriver, value);
      break;
    case kQueueDevice:
    case kQueueDevice + 4:
      SetHalf(queue.device_area, offset != kQueueDevice, value);
      break;
    default:
      break;
  }
}

void VirtioMmio::SetStatus(std::uint32_t value) {
  if (value == 0) {
    Reset();
    return;
  }
  // A driver that asks for what is not offered, or does not know this version, finds its bit off.
  const std::uint64_t features = function_.features() | kFeatureVersion1;
  const bool acceptable =
      (driver_features_ & ~features) == 0 && (driver_features_ & kFeatureVersion1) != 0;
  if ((value & kFeaturesOk) != 0 && !acceptable) value &= ~kFeaturesOk;
  status_ = value | (status_ & kNeedsReset);
  in_use_ = (status_ & kDriverOk) != 0 && (status_ & kNeedsReset) == 0;
}

void VirtioMmio::Reset() {
  status_ = 0;
  interrupt_status_ = 0;
  driver_features_ = 0;
  device_features_half_ = driver_features_half_ = 0;
  selected_queue_ = 0;
  queues_.assign(queues_.size(), Virtqueue());
  in_use_ = false;
  interrupts_.SetIrq(irq_, false);
}

// -- queues

// At most one round of the queue, so that a guest that fills it while it is emptied does not keep
// this thread.
void VirtioMmio::Process(unsigned index) {
  if (!in_use_) return;
  Virtqueue& queue = queues_[index];
  bool completed = false;
  for (unsigned count = 0; count < queue.size; ++count) {
    const std::optional<DescriptorChain> chain = queue.Peek(memory_);
    if (!chain.has_value()) break;
    const std::optional<std::uint32_t> written = function_.Handle(index, *chain, memory_);
    if (!written.has_value()) break;
    queue.Complete(memory_, *chain, *written);
    completed = true;
  }
  if (completed) queue.Publish(memory_);
  if (queue.broken()) {
    status_ |= kNeedsReset;
    in_use_ = false;
    Raise(kConfigurationChanged);
  } else if (completed && queue.WantsInterrupt(memory_)) {
    Raise(kUsedBuffers);
  }
}

void VirtioMmio::Raise(std::uint32_t cause) {
  interrupt_status_ |= cause;
  interrupts_.SetIrq(irq_, true);
}

void VirtioMmio::LookAgain() {
  look_again_ = true;
  wake_();
}

std::uint64_t VirtioMmio::next_deadline_ns() const { return look_again_ ? 0 : kNever; }

void VirtioMmio::Poll() {
  look_again_ = false;
  const std::lock_guard lock(mutex_);
  for (unsigned i = 0; i < queues_.size(); ++i) Process(i);
}

}  // namespace pagesaw
