// The two 8259A interrupt controllers of a PC. [intel/8259a] "8259A Programmable Interrupt
// Controller"
module;
#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
export module pagesaw.machine.pic;

import pagesaw.machine.device;

export namespace pagesaw {

// One chip. Input lines are edge triggered unless `set_level_mask` says otherwise.
class PicChip {
 public:
  explicit PicChip(bool master) : master_(master) {}

  void SetLine(unsigned line, bool level);
  // The line that asks for service above everything in service, if any.
  std::optional<unsigned> Pending() const;
  // Takes `line` into service (unless automatic EOI) and gives its vector.
  std::uint8_t Acknowledge(unsigned line);
  // The vector given when a request vanished before it was acknowledged.
  std::uint8_t SpuriousVector() const { return static_cast<std::uint8_t>(vector_base_ | 7); }

  std::uint8_t ReadCommand();
  std::uint8_t ReadData();
  void WriteCommand(std::uint8_t value);
  void WriteData(std::uint8_t value);

  std::uint8_t level_mask() const { return level_mask_; }
  void set_level_mask(std::uint8_t mask) { level_mask_ = mask; }

 private:
  // The slave's output comes and goes with its requests.
  bool IsCascade(unsigned line) const { return master_ && line == 2; }
  unsigned PriorityOf(unsigned line) const { return (line - lowest_priority_ - 1) & 7; }
  std::optional<unsigned> Highest(std::uint8_t lines) const;
  void EndOfInterrupt(std::uint8_t command);

  const bool master_;
  std::uint8_t levels_ = 0;      // as the lines are now
  std::uint8_t requests_ = 0;    // IRR
  std::uint8_t in_service_ = 0;  // ISR
  std::uint8_t mask_ = 0;        // IMR
  std::uint8_t level_mask_ = 0;  // ELCR
  std::uint8_t vector_base_ = 0;
  std::uint8_t lowest_priority_ = 7;
  std::uint8_t next_init_word_ = 0;  // 2 to 4 while being initialised
  bool needs_fourth_word_ = false;
  bool single_ = false;
  bool auto_eoi_ = false;
  bool special_mask_ = false;
  bool special_fully_nested_ = false;
  bool rotate_on_auto_eoi_ = false;
  bool read_in_service_ = false;
  bool poll_ = false;
};

class Pic final : public Device, public InterruptSink {
 public:
  // `output` is told the level of the INTR line whenever it changes; called with a lock held.
  explicit Pic(std::function<void(bool)> output);

  void SetIrq(unsigned irq, bool level) override;
  // INTA: the vector of the request with the highest priority, or the spurious one. Any thread.
  std::uint8_t Acknowledge();
  bool HasInterrupt() const;

  std::string_view name() const override { return "pic"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  void Update();

  const std::function<void(bool)> output_;
  mutable std::mutex mutex_;
  PicChip master_{true};
  PicChip slave_{false};
  bool level_ = false;
};

}  // namespace pagesaw
