// The 8254 interval timer of a PC: channel 0 drives IRQ 0, channel 2 the speaker gate at port 61h.
// [intel/8254] "8254 Programmable Interval Timer"
module;
#include <array>
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>
export module pagesaw.machine.pit;

import pagesaw.machine.clock;
import pagesaw.machine.device;

export namespace pagesaw {

inline constexpr std::uint64_t kPitHz = 1'193'182;

class PitChannel {
 public:
  void WriteControl(std::uint8_t control, std::uint64_t now_ns);
  void WriteCount(std::uint8_t value, std::uint64_t now_ns);
  std::uint8_t ReadCount(std::uint64_t now_ns);
  void LatchCount(std::uint64_t now_ns);
  void LatchStatus(std::uint64_t now_ns);
  void SetGate(bool gate, std::uint64_t now_ns);

  bool gate() const { return gate_; }
  bool Output(std::uint64_t now_ns) const;
  // When the output next rises after `after_ns`, or kNever.
  std::uint64_t NextRise(std::uint64_t after_ns) const;

 private:
  std::uint64_t Ticks(std::uint64_t now_ns) const;
  std::uint64_t Period() const { return reload_ == 0 ? 0x1'0000 : reload_; }
  std::uint16_t Count(std::uint64_t now_ns) const;
  bool periodic() const { return mode_ == 2 || mode_ == 3; }
  void Load(std::uint16_t count, std::uint64_t now_ns);

  std::uint8_t mode_ = 3;
  std::uint8_t access_ = 3;  // 1 low byte, 2 high byte, 3 low then high
  bool bcd_ = false;         // noted, and counted in binary all the same
  bool gate_ = true;
  bool loaded_ = false;
  std::uint16_t reload_ = 0;
  std::uint64_t start_ns_ = 0;
  bool write_high_next_ = false;
  bool read_high_next_ = false;
  std::uint8_t low_byte_ = 0;
  bool count_latched_ = false;
  std::uint16_t latched_count_ = 0;
  bool status_latched_ = false;
  std::uint8_t latched_status_ = 0;
};

class Pit final : public Device {
 public:
  Pit(const Clock& clock, InterruptSink& interrupts);

  std::string_view name() const override { return "pit"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;
  std::uint64_t next_deadline_ns() const override;
  // Raises IRQ 0 once, however many periods have passed: what is late is lost, as on hardware with
  // interrupts off.
  void Poll() override;

 private:
  void Restart(std::uint64_t now_ns);

  const Clock& clock_;
  InterruptSink& interrupts_;
  mutable std::mutex mutex_;
  std::array<PitChannel, 3> channels_;
  std::uint64_t next_tick_ns_ = kNever;
  bool speaker_ = false;
};

}  // namespace pagesaw
