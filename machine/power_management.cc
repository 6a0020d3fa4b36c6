module;
#include <array>
#include <cstdint>
#include <mutex>
#include <span>
module pagesaw.machine.power_management;

namespace pagesaw {
namespace {

using Pm = PowerManagement;
constexpr std::array kRanges = {BusRange{BusSpace::kPort, Pm::kEvents, 4},
                                BusRange{BusSpace::kPort, Pm::kControl, 2},
                                BusRange{BusSpace::kPort, Pm::kTimer, 4}};
constexpr std::uint16_t kSleepEnable = 1u << 13, kSciEnable = 1;

}  // namespace

std::span<const BusRange> PowerManagement::ranges() const { return kRanges; }

std::uint64_t PowerManagement::Read(BusSpace, std::uint64_t address, unsigned) {
  if (address >= kTimer) {
    const std::uint64_t ticks = Scale(clock_.NowNs(), kTimerHz, 1'000'000'000) & 0xff'ffff;
    return ticks >> (8 * (address - kTimer));
  }
  const std::lock_guard lock(mutex_);
  if (address >= kControl) return std::uint64_t{control_} >> (8 * (address - kControl));
  // Status: nothing ever happens.
  return std::uint64_t{enabled_} << 16 >> (8 * (address - kEvents));
}

void PowerManagement::Write(BusSpace, std::uint64_t address, unsigned bytes, std::uint64_t value) {
  bool off = false;
  {
    const std::lock_guard lock(mutex_);
    if (address == kControl && bytes >= 2) {
      control_ = static_cast<std::uint16_t>((value & ~std::uint64_t{kSleepEnable}) | kSciEnable);
      off = (value & kSleepEnable) != 0 && (value >> 10 & 7) == kSoftOff;
    } else if (address == kEvents + 2 && bytes >= 2) {
      enabled_ = static_cast<std::uint16_t>(value);
    } else if (address == kEvents && bytes == 4) {
      enabled_ = static_cast<std::uint16_t>(value >> 16);
    }
  }
  if (off) system_.PowerOff();
}

}  // namespace pagesaw
