// The high-precision event timer: one counter and three comparators.
// [intel/hpet] "IA-PC HPET Specification"
module;
#include <array>
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>
export module pagesaw.machine.hpet;

import pagesaw.machine.clock;
import pagesaw.machine.device;

export namespace pagesaw {

class Hpet final : public Device {
 public:
  static constexpr std::uint64_t kBase = 0xfed0'0000;
  static constexpr unsigned kTimers = 3;
  // A tick lasts 10 ns. 64 bits, legacy routing, three timers, revision 1.
  static constexpr std::uint64_t kTickNs = 10;
  static constexpr std::uint64_t kCapabilities =
      kTickNs * 1'000'000 << 32 | 0x8086ull << 16 | 1u << 15 | 1u << 13 | (kTimers - 1) << 8 | 1;
  // Comparators that follow one another faster than this do so as fast as this.
  static constexpr std::uint64_t kShortestNs = 20'000;

  Hpet(const Clock& clock, InterruptSink& interrupts);

  std::string_view name() const override { return "hpet"; }
  std::span<const BusRange> ranges() const override;
  std::uint64_t Read(BusSpace space, std::uint64_t address, unsigned bytes) override;
  void Write(BusSpace space, std::uint64_t address, unsigned bytes, std::uint64_t value) override;
  std::uint64_t next_deadline_ns() const override;
  void Poll() override;

 private:
  struct Timer {
    std::uint64_t configuration = 0;  // the bits that software writes
    std::uint64_t comparator = ~std::uint64_t{0};
    std::uint64_t period = 0;
    std::uint64_t deadline_ns = kNever;
  };

  bool enabled() const { return (configuration_ & 1) != 0; }
  bool legacy() const { return (configuration_ & 2) != 0; }
  std::uint64_t Counter(std::uint64_t now_ns) const;
  std::uint64_t ReadRegister(std::uint64_t offset) const;
  void WriteRegister(std::uint64_t offset, std::uint64_t value);
  void WriteTimer(unsigned index, unsigned field, std::uint64_t value);
  void Arm(Timer& timer, std::uint64_t now_ns) const;
  void ArmAll();
  unsigned LineOf(unsigned index) const;
  void Fire(unsigned index, std::uint64_t now_ns);

  const Clock& clock_;
  InterruptSink& interrupts_;
  mutable std::mutex mutex_;
  std::uint64_t configuration_ = 0;
  std::uint64_t status_ = 0;
  std::uint64_t counter_ = 0;  // at `since_ns_`, or while it stands still
  std::uint64_t since_ns_ = 0;
  std::array<Timer, kTimers> timers_;
};

}  // namespace pagesaw
