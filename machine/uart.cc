module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string_view>
module pagesaw.machine.uart;

namespace pagesaw {
namespace {

// Register offsets.
constexpr unsigned kData = 0, kInterruptEnable = 1, kInterruptId = 2, kLineControl = 3,
                   kModemControl = 4, kLineStatus = 5, kModemStatus = 6, kScratch = 7;

constexpr std::uint8_t kLcrDlab = 0x80;
constexpr std::uint8_t kIerReceived = 0x01, kIerTransmitterEmpty = 0x02;
constexpr std::uint8_t kIirNone = 0x01, kIirTransmitterEmpty = 0x02, kIirReceived = 0x04,
                       kIirFifos = 0xc0;
constexpr std::uint8_t kFcrEnable = 0x01, kFcrClearReceiver = 0x02;
constexpr std::uint8_t kLsrReceived = 0x01, kLsrTransmitterEmpty = 0x60;
constexpr std::uint8_t kMcrRts = 0x02, kMcrOut2 = 0x08, kMcrLoop = 0x10;
constexpr std::uint8_t kMsrCarrierCtsDsr = 0xb0;

constexpr std::size_t kFifoBytes = 16;

}  // namespace

Uart::Uart(std::uint16_t first_port, unsigned irq, InterruptSink& interrupts, Console& output)
    : ranges_{BusRange{BusSpace::kPort, first_port, 8}},
      irq_(irq),
      interrupts_(interrupts),
      output_(output) {}

bool Uart::Receive(std::string_view data) {
  const std::lock_guard lock(mutex_);
  if (data.size() > kInputMaxBytes - line_.size()) return false;
  for (const char c : data) line_.push_back(static_cast<std::uint8_t>(c));
  UpdateInterrupt();
  return true;
}

std::uint64_t Uart::Read(BusSpace, std::uint64_t address, unsigned bytes) {
  const std::lock_guard lock(mutex_);
  const auto offset = static_cast<unsigned>(address - ranges_[0].first);
  std::uint64_t value = 0;
  for (unsigned i = 0; i < bytes; ++i) {
    const std::uint64_t byte = offset + i < 8 ? ReadRegister(offset + i) : 0xff;
    value |= byte << (8 * i);
  }
  UpdateInterrupt();
  return value;
}

void Uart::Write(BusSpace, std::uint64_t address, unsigned bytes, std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  const auto offset = static_cast<unsigned>(address - ranges_[0].first);
  for (unsigned i = 0; i < bytes && offset + i < 8; ++i) {
    WriteRegister(offset + i, static_cast<std::uint8_t>(value >> (8 * i)));
  }
  UpdateInterrupt();
}

std::uint8_t Uart::ReadRegister(unsigned offset) {
  const bool dlab = (line_control_ & kLcrDlab) != 0;
  switch (offset) {
    case kData:
      return dlab ? static_cast<std::uint8_t>(divisor_) : TakeInput();
    case kInterruptEnable:
      return dlab ? static_cast<std::uint8_t>(divisor_ >> 8) : interrupt_enable_;
    case kInterruptId: {
      const std::uint8_t pending = PendingInterrupt();
      if (pending == kIirTransmitterEmpty) transmitter_empty_pending_ = false;
      return pending | ((fifo_control_ & kFcrEnable) != 0 ? kIirFifos : 0);
    }
    case kLineControl:
      return line_control_;
    case kModemControl:
      return modem_control_;
    case kLineStatus:
      return kLsrTransmitterEmpty | (HasInput() ? kLsrReceived : 0);
    case kModemStatus:
      // In loopback the modem inputs are the outputs: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to
      // DCD.
      if ((modem_control_ & kMcrLoop) != 0) {
        return static_cast<std::uint8_t>((modem_control_ & 0x0c) << 4 |
                                         (modem_control_ & 0x01) << 5 |
                                         (modem_control_ & 0x02) << 3);
      }
      return kMsrCarrierCtsDsr;
    default:
      return scratch_;
  }
}

void Uart::WriteRegister(unsigned offset, std::uint8_t value) {
  const bool dlab = (line_control_ & kLcrDlab) != 0;
  switch (offset) {
    case kData:
      if (dlab) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0xff00) | value);
      } else {
        Transmit(value);
      }
      break;
    case kInterruptEnable:
      if (dlab) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0x00ff) | value << 8);
        break;
      }
      // Enabling the interrupt while the transmitter is empty raises it at once.
      if ((value & ~interrupt_enable_ & kIerTransmitterEmpty) != 0) {
        transmitter_empty_pending_ = true;
      }
      interrupt_enable_ = value & 0x0f;
      break;
    case kInterruptId:  // written: FIFO control
      fifo_control_ = value & 0xc9;
      if ((value & kFcrClearReceiver) != 0) ClearReceiver();
      break;
    case kLineControl:
      line_control_ = value;
      break;
    case kModemControl:
      modem_control_ = value & 0x1f;
      request_to_send_ = (value & kMcrRts) != 0;
      break;
    case kScratch:
      scratch_ = value;
      break;
    default:
      break;  // the status registers are read-only
  }
}

void Uart::Transmit(std::uint8_t value) {
  if ((modem_control_ & kMcrLoop) != 0) {
    if (loopback_.size() < kFifoBytes) loopback_.push_back(value);
  } else {
    const char c = static_cast<char>(value);
    output_.Append(std::string_view(&c, 1));
  }
  transmitter_empty_pending_ = true;
}

// In loopback the modem outputs are off. [ns/16550d] "Modem Control Register"
bool Uart::LineIsOpen() const { return request_to_send_ && (modem_control_ & kMcrLoop) == 0; }

bool Uart::HasInput() const { return !loopback_.empty() || (LineIsOpen() && !line_.empty()); }

std::uint8_t Uart::TakeInput() {
  if (!HasInput()) return 0;
  std::deque<std::uint8_t>& from = loopback_.empty() ? line_ : loopback_;
  const std::uint8_t value = from.front();
  from.pop_front();
  return value;
}

void Uart::ClearReceiver() {
  loopback_.clear();
  if (!LineIsOpen()) return;
  const std::size_t arrived = std::min(line_.size(), kFifoBytes);
  line_.erase(line_.begin(), line_.begin() + static_cast<std::ptrdiff_t>(arrived));
}

std::uint8_t Uart::PendingInterrupt() const {
  if ((interrupt_enable_ & kIerReceived) != 0 && HasInput()) return kIirReceived;
  if ((interrupt_enable_ & kIerTransmitterEmpty) != 0 && transmitter_empty_pending_) {
    return kIirTransmitterEmpty;
  }
  return kIirNone;
}

// OUT2 gates the interrupt line on PCs.
void Uart::UpdateInterrupt() {
  interrupts_.SetIrq(irq_, PendingInterrupt() != kIirNone && (modem_control_ & kMcrOut2) != 0);
}

}  // namespace pagesaw
