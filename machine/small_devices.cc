module;
#include <time.h>
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
module pagesaw.machine.small_devices;

namespace pagesaw {
namespace {

constexpr std::array kDebugExitRanges = {BusRange{BusSpace::kPort, 0xf4, 4}};
constexpr std::array kDebugConsoleRanges = {BusRange{BusSpace::kPort, 0xe9, 1}};
constexpr std::array kKeyboardRanges = {BusRange{BusSpace::kPort, 0x60, 1},
                                        BusRange{BusSpace::kPort, 0x64, 1}};
constexpr std::array kFwCfgRanges = {BusRange{BusSpace::kPort, 0x510, 2}};
constexpr std::array kRtcRanges = {BusRange{BusSpace::kPort, 0x70, 2}};

constexpr std::uint8_t kKeyboardReset = 0xfe;

std::string LittleEndian(std::uint64_t value, unsigned bytes) {
  std::string out;
  for (unsigned i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
  return out;
}

std::uint8_t Bcd(int value) { return static_cast<std::uint8_t>(value / 10 % 10 << 4 | value % 10); }

}  // namespace

// -- debug exit

std::span<const BusRange> DebugExit::ranges() const { return kDebugExitRanges; }

std::uint64_t DebugExit::Read(BusSpace, std::uint64_t, unsigned) { return 0; }

void DebugExit::Write(BusSpace, std::uint64_t, unsigned, std::uint64_t value) {
  system_.DebugExit(static_cast<std::uint32_t>(value));
}

// -- debug console

std::span<const BusRange> DebugConsole::ranges() const { return kDebugConsoleRanges; }

std::uint64_t DebugConsole::Read(BusSpace, std::uint64_t, unsigned) { return 0xe9; }

void DebugConsole::Write(BusSpace, std::uint64_t, unsigned, std::uint64_t value) {
  const char c = static_cast<char>(value);
  output_.Append(std::string_view(&c, 1));
}

// -- keyboard controller

std::span<const BusRange> KeyboardController::ranges() const { return kKeyboardRanges; }

std::uint64_t KeyboardController::Read(BusSpace, std::uint64_t, unsigned) { return 0; }

void KeyboardController::Write(BusSpace, std::uint64_t address, unsigned, std::uint64_t value) {
  if (address == 0x64 && (value & 0xff) == kKeyboardReset) system_.Reset();
}

// -- fw_cfg

FwCfg::FwCfg(std::uint64_t memory_bytes, unsigned cpu_count)
    : items_{
          {0x00, "QEMU"},              // signature, by which guests find the ports
          {0x01, LittleEndian(1, 4)},  // id: the traditional interface only
          {0x03, LittleEndian(memory_bytes, 8)},
          {0x05, LittleEndian(cpu_count, 2)},
          {0x0f, LittleEndian(cpu_count, 2)},  // the largest number of CPUs
          {0x11, LittleEndian(0, 8)},          // no limit on the RAM to use
      } {}

std::span<const BusRange> FwCfg::ranges() const { return kFwCfgRanges; }

const std::string& FwCfg::Selected() const {
  static const std::string kNothing;
  const auto item =
      std::find_if(items_.begin(), items_.end(), [this](const Item& i) { return i.key == key_; });
  return item == items_.end() ? kNothing : item->data;
}

std::uint64_t FwCfg::Read(BusSpace, std::uint64_t address, unsigned bytes) {
  const std::lock_guard lock(mutex_);
  if (address == 0x510) return key_;
  const std::string& data = Selected();
  std::uint64_t value = 0;
  for (unsigned i = 0; i < bytes && next_ < data.size(); ++i, ++next_) {
    value |= std::uint64_t{static_cast<std::uint8_t>(data[next_])} << (8 * i);
  }
  return value;
}

void FwCfg::Write(BusSpace, std::uint64_t address, unsigned bytes, std::uint64_t value) {
  if (address != 0x510 || bytes < 2) return;
  const std::lock_guard lock(mutex_);
  key_ = static_cast<std::uint16_t>(value);
  next_ = 0;
}

// -- real-time clock

RealTimeClock::RealTimeClock(const Clock& clock, std::uint64_t memory_bytes) : clock_(clock) {
  // Where firmware leaves the memory size: KiB above 1 MiB, 64 KiB units above 16 MiB.
  constexpr std::uint64_t kMib = std::uint64_t{1} << 20;
  const std::uint64_t low = std::min(memory_bytes, std::uint64_t{3} << 30);
  const std::uint64_t kib = low > kMib ? std::min<std::uint64_t>((low - kMib) >> 10, 0xfc00) : 0;
  const std::uint64_t units = low > 16 * kMib ? (low - 16 * kMib) >> 16 : 0;
  memory_[0x15] = 0x80, memory_[0x16] = 0x02;  // 640 KiB of base memory
  memory_[0x17] = memory_[0x30] = static_cast<std::uint8_t>(kib);
  memory_[0x18] = memory_[0x31] = static_cast<std::uint8_t>(kib >> 8);
  memory_[0x34] = static_cast<std::uint8_t>(units);
  memory_[0x35] = static_cast<std::uint8_t>(units >> 8);
  memory_[0x0a] = 0x26;  // the usual time base and rate
  memory_[0x0b] = 0x02;  // 24 hours, BCD
}

std::span<const BusRange> RealTimeClock::ranges() const { return kRtcRanges; }

std::uint8_t RealTimeClock::ReadByte(unsigned index) const {
  if (index >= 10 && index != 0x0d && index != 0x32) return memory_[index];
  if (index == 0x0d) return 0x80;  // the battery is good
  const time_t now = static_cast<time_t>(clock_.WallSeconds());
  tm utc = {};
  gmtime_r(&now, &utc);
  switch (index) {
    case 0:
      return Bcd(utc.tm_sec);
    case 2:
      return Bcd(utc.tm_min);
    case 4:
      return Bcd(utc.tm_hour);
    case 6:
      return static_cast<std::uint8_t>(utc.tm_wday + 1);
    case 7:
      return Bcd(utc.tm_mday);
    case 8:
      return Bcd(utc.tm_mon + 1);
    case 9:
      return Bcd(utc.tm_year % 100);
    case 0x32:
      return Bcd((utc.tm_year + 1900) / 100);
    default:
      return memory_[index];  // the alarm
  }
}

std::uint64_t RealTimeClock::Read(BusSpace, std::uint64_t address, unsigned) {
  const std::lock_guard lock(mutex_);
  return address == 0x70 ? index_ : ReadByte(index_);
}

void RealTimeClock::Write(BusSpace, std::uint64_t address, unsigned, std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  if (address == 0x70) {
    index_ = value & 0x7f;  // bit 7 masks NMIs, of which there are none
  } else {
    memory_[index_] = static_cast<std::uint8_t>(value);
  }
}

}  // namespace pagesaw
