// The fixed hardware of ACPI: event and control registers, by which a guest switches the machine
// off or lets it sleep (S3), and the power-management timer. [acpi] "ACPI Hardware Specification"
module;
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>
export module pagesaw.machine.power_management;

import pagesaw.machine.clock;
import pagesaw.machine.device;

export namespace pagesaw {

class PowerManagement final : public Device {
 public:
  // Ports, as the FADT names them.
  static constexpr std::uint16_t kEvents = 0x600, kControl = 0x604, kTimer = 0x608;
  static constexpr std::uint64_t kTimerHz = 3'579'545;
  // The types of sleep, as the DSDT's \_S3 and \_S5 say.
  static constexpr std::uint8_t kSuspendToRam = 1, kSoftOff = 5;
  static constexpr unsigned kSciIrq = 9;

  PowerManagement(const Clock& clock, SystemControl& system, InterruptSink& interrupts)
      : clock_(clock), system_(system), interrupts_(interrupts) {}

  // The alarm of the real-time clock: the one event there is. It wakes the machine, or interrupts
  // it, if the guest enabled that.
  void RtcAlarm();

  std::string_view name() const override { return "power-management"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  void UpdateSci();

  const Clock& clock_;
  SystemControl& system_;
  InterruptSink& interrupts_;
  std::mutex mutex_;
  std::uint16_t status_ = 0;
  std::uint16_t enabled_ = 0;
  bool asleep_ = false;
  std::uint16_t control_ = 1;  // SCI_EN: there is no legacy mode
};

}  // namespace pagesaw
