// The device by which test suites reach what a guest cannot do by itself: a latch, interrupt lines,
// memory that answers as a device does, and translations dropped behind the guest's back.
module;
#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>
export module pagesaw.machine.test_device;

import pagesaw.core.address;
import pagesaw.machine.device;

export namespace pagesaw {

class TestDevice final : public Device {
 public:
  static constexpr std::uint64_t kMemoryBase = 0xff00'0000;
  static constexpr std::uint64_t kMemoryBytes = 0x1'0000;

  // `forget(gfn)` drops what was built to map a frame; called with no lock held.
  TestDevice(InterruptSink& interrupts, std::function<void(Gfn)> forget);

  std::string_view name() const override { return "test-device"; }
  std::span<const BusRange> ranges() const override;
  // Ports E0h to E3h: a latch; E4h: forgets the page at the address written; 2000h + n: interrupt
  // line n is at the level written. FF000000h: 64 KiB of memory.
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  InterruptSink& interrupts_;
  const std::function<void(Gfn)> forget_;
  std::mutex mutex_;
  std::uint32_t latch_ = 0;
  std::vector<std::uint8_t> memory_;
};

}  // namespace pagesaw
