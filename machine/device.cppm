// What a device is to the rest of the machine: where it answers, how it raises interrupts, when it
// wants to be looked at again. Devices lock themselves; each is called on any vCPU's thread.
module;
#include <cstdint>
#include <span>
#include <string_view>
export module pagesaw.machine.device;

import pagesaw.machine.clock;

export namespace pagesaw {

enum class BusSpace : std::uint8_t { kPort, kMmio };

// The addresses first to first + count - 1 of a space.
struct BusRange {
  BusSpace space = BusSpace::kPort;
  std::uint64_t first = 0;
  std::uint64_t count = 0;

  constexpr bool Contains(std::uint64_t address) const { return address - first < count; }
};

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string_view name() const = 0;
  // Where it answers; does not change.
  virtual std::span<const BusRange> ranges() const = 0;

  // An access whose first byte lies in one of the ranges; `bytes` is 1, 2, 4 or 8. Bits of an
  // answer beyond `bytes` are ignored.
  virtual std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) = 0;
  virtual void Write(BusSpace space, std::uint64_t address, unsigned bytes,
                     std::uint64_t value) = 0;

  // When `Poll` is wanted next, as Clock::NowNs, and what happens then.
  virtual std::uint64_t next_deadline_ns() const { return kNever; }
  virtual void Poll() {}
};

// Where devices raise interrupts.
class InterruptSink {
 public:
  virtual ~InterruptSink() = default;
  // Input `irq` is now at `level`: 0 to 15 as on the two PICs, above as on the I/O APIC.
  virtual void SetIrq(unsigned irq, bool level) = 0;
};

// What a guest can do to the machine as a whole.
class SystemControl {
 public:
  virtual ~SystemControl() = default;
  virtual void DebugExit(std::uint32_t value) = 0;
  virtual void Reset() = 0;
  virtual void PowerOff() = 0;
  // Suspend to RAM, and its end. They may come on any vCPU's thread, with locks of devices held.
  virtual void Suspend() = 0;
  virtual void WakeUp() = 0;
};

// The bits of a value of `bytes` bytes.
constexpr std::uint64_t BytesMask(unsigned bytes) {
  return bytes >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * bytes)) - 1;
}

}  // namespace pagesaw
