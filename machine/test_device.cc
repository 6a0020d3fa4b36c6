module;
#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <utility>
module pagesaw.machine.test_device;

namespace pagesaw {
namespace {

constexpr std::uint64_t kLatch = 0xe0, kForget = 0xe4, kLines = 0x2000;
constexpr std::array kRanges = {
    BusRange{BusSpace::kPort, kLatch, 4}, BusRange{BusSpace::kPort, kForget, 4},
    BusRange{BusSpace::kPort, kLines, 24},
    BusRange{BusSpace::kMmio, TestDevice::kMemoryBase, TestDevice::kMemoryBytes}};

}  // namespace

TestDevice::TestDevice(InterruptSink& interrupts, std::function<void(Gfn)> forget)
    : interrupts_(interrupts), forget_(std::move(forget)), memory_(kMemoryBytes) {}

std::span<const BusRange> TestDevice::ranges() const { return kRanges; }

std::uint64_t TestDevice::Read(BusSpace space, std::uint64_t address, unsigned bytes) {
  const std::lock_guard lock(mutex_);
  if (space == BusSpace::kPort) {
    return address >= kLatch && address < kForget ? latch_ >> (8 * (address - kLatch)) : ~0u;
  }
  std::uint64_t value = 0;
  for (unsigned i = 0; i < bytes; ++i) {
    const std::uint64_t at = address - kMemoryBase + i;
    if (at < memory_.size()) value |= std::uint64_t{memory_[at]} << (8 * i);
  }
  return value;
}

void TestDevice::Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) {
  if (space == BusSpace::kMmio) {
    const std::lock_guard lock(mutex_);
    for (unsigned i = 0; i < bytes; ++i) {
      const std::uint64_t at = address - kMemoryBase + i;
      if (at < memory_.size()) memory_[at] = static_cast<std::uint8_t>(value >> (8 * i));
    }
  } else if (address >= kLines) {
    interrupts_.SetIrq(static_cast<unsigned>(address - kLines), value != 0);
  } else if (address >= kForget) {
    forget_(GfnOf(Gpa(value)));
  } else {
    const std::lock_guard lock(mutex_);
    const auto shift = static_cast<unsigned>(8 * (address - kLatch));
    const auto mask = static_cast<std::uint32_t>(BytesMask(bytes) << shift);
    latch_ = (latch_ & ~mask) | (static_cast<std::uint32_t>(value << shift) & mask);
  }
}

}  // namespace pagesaw
