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
// Of the status and enable registers.
constexpr std::uint16_t kRtcEvent = 1u << 10, kWoke = 1u << 15;

}  // namespace

std::span<const BusRange> PowerManagement::ranges() const { return kRanges; }

std::uint64_t PowerManagement::Read(BusSpace, std::uint64_t address, unsigned) {
  if (address >= kTimer) {
    const std::uint64_t ticks = Scale(clock_.NowNs(), kTimerHz, 1'000'000'000) & 0xff'ffff;
    return ticks >> (8 * (address - kTimer));
  }
  const std::lock_guard lock(mutex_);
  if (address >= kControl) return std::uint64_t{control_} >> (8 * (address - kControl));
  return (std::uint64_t{enabled_} << 16 | status_) >> (8 * (address - kEvents));
}

void PowerManagement::UpdateSci() {
  interrupts_.SetIrq(kSciIrq, (status_ & enabled_ & kRtcEvent) != 0);
}

void PowerManagement::RtcAlarm() {
  bool wakes = false;
  {
    const std::lock_guard lock(mutex_);
    status_ |= kRtcEvent;
    wakes = asleep_ && (enabled_ & kRtcEvent) != 0;
    if (wakes) {
      asleep_ = false;
      status_ |= kWoke;
    }
    UpdateSci();
  }
  if (wakes) system_.WakeUp();
}

void PowerManagement::Write(BusSpace, std::uint64_t address, unsigned bytes, std::uint64_t value) {
  std::uint64_t sleep = 0;
  {
    const std::lock_guard lock(mutex_);
    if (address == kControl && bytes >= 2) {
      control_ = static_cast<std::uint16_t>((value & ~std::uint64_t{kSleepEnable}) | kSciEnable);
      sleep = (value & kSleepEnable) != 0 ? value >> 10 & 7 : 0;
      asleep_ = sleep == kSuspendToRam;
    } else if (address == kEvents + 2 && bytes >= 2) {
      enabled_ = static_cast<std::uint16_t>(value);
    } else if (address == kEvents && bytes >= 2) {
      status_ &= static_cast<std::uint16_t>(~value);  // ones clear
      if (bytes == 4) enabled_ = static_cast<std::uint16_t>(value >> 16);
    }
    UpdateSci();
  }
  if (sleep == kSoftOff) system_.PowerOff();
  if (sleep == kSuspendToRam) system_.Suspend();
}

}  // namespace pagesaw
