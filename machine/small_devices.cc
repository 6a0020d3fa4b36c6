module;
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
constexpr std::array kKeyboardRanges = {
    BusRange{BusSpace::kPort, 0x60, 1},
    BusRange{BusSpace::kPort, KeyboardController::kCommandPort, 1}};
constexpr std::array kFwCfgRanges = {BusRange{BusSpace::kPort, 0x510, 2}};
constexpr std::array kSystemControlRanges = {BusRange{BusSpace::kPort, 0x92, 1}};

constexpr std::uint8_t kFastReset = 1, kA20Open = 2;  // of port 92h

std::string LittleEndian(std::uint64_t value, unsigned bytes) {
  std::string out;
  for (unsigned i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
  return out;
}

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
  if (address == kCommandPort && (value & 0xff) == kReset) system_.Reset();
}

// -- system control port

std::span<const BusRange> SystemControlPort::ranges() const { return kSystemControlRanges; }

std::uint64_t SystemControlPort::Read(BusSpace, std::uint64_t, unsigned) { return kA20Open; }

void SystemControlPort::Write(BusSpace, std::uint64_t, unsigned, std::uint64_t value) {
  if ((value & kFastReset) != 0) system_.Reset();
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

}  // namespace pagesaw
