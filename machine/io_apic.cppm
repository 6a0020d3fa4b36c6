// The I/O APIC: turns levels of interrupt lines into messages to local APICs.
// [intel/82093aa] "82093AA I/O Advanced Programmable Interrupt Controller"
module;
#include <array>
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>
export module pagesaw.machine.io_apic;

import pagesaw.machine.apic_bus;
import pagesaw.machine.device;

export namespace pagesaw {

class IoApic final : public Device, public EoiListener {
 public:
  static constexpr std::uint64_t kBase = 0xfec0'0000;
  static constexpr unsigned kPins = 24;

  explicit IoApic(const ApicBus& bus) : bus_(bus) { entries_.fill(kMasked); }

  // Pin `pin` is now at `level`.
  void SetPin(unsigned pin, bool level);
  // A local APIC is done with a level-triggered interrupt of `vector`.
  void EndOfInterrupt(std::uint8_t vector) override;

  std::string_view name() const override { return "io-apic"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  static constexpr std::uint64_t kMasked = 1u << 16;

  std::uint32_t ReadRegister() const;
  void WriteRegister(std::uint32_t value);
  void WriteEntry(unsigned pin, bool high_half, std::uint32_t value);
  // Sends what the pin asks for, if it may.
  void Service(unsigned pin);
  void EndLocked(std::uint8_t vector);

  const ApicBus& bus_;
  std::mutex mutex_;
  std::array<std::uint64_t, kPins> entries_;
  std::uint32_t levels_ = 0;    // as the pins are now
  std::uint32_t requests_ = 0;  // edges to be sent
  std::uint32_t id_ = 0;
  std::uint8_t selected_ = 0;
};

}  // namespace pagesaw
