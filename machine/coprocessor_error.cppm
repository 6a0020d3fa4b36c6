// How a PC wires the x87 unit's error line: FERR# raises IRQ 13, and a write to port F0h takes the
// interrupt back and makes the unit ignore the error (IGNNE#) for as long as it lasts.
// [intel/vol1] "MS-DOS Compatibility Sub-mode"
module;
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>
export module pagesaw.machine.coprocessor_error;

import pagesaw.machine.device;

export namespace pagesaw {

// Safe on any thread.
class CoprocessorError final : public Device {
 public:
  static constexpr unsigned kIrq = 13;

  // `lines` outlives it.
  explicit CoprocessorError(InterruptSink& lines) : lines_(lines) {}

  // FERR#: the unit stands before an error, `is_new` if it was not told of before. Returns IGNNE#:
  // whether the unit is to go on.
  bool Report(bool is_new);

  std::string_view name() const override { return "coprocessor-error"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;

 private:
  InterruptSink& lines_;
  std::mutex mutex_;
  bool error_ = false;
  bool ignored_ = false;
};

}  // namespace pagesaw
