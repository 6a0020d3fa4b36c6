module;
#include <array>
#include <cstdint>
#include <mutex>
#include <span>
module pagesaw.machine.io_apic;

namespace pagesaw {
namespace {

constexpr std::array kRanges = {BusRange{BusSpace::kMmio, IoApic::kBase, 0x1000}};

// Registers of the page, and those behind the window. [intel/82093aa] "Register Description"
constexpr std::uint64_t kSelect = 0x00, kWindow = 0x10, kEoi = 0x40;
constexpr std::uint8_t kId = 0, kVersion = 1, kArbitration = 2, kFirstEntry = 0x10;
// With an EOI register, as later parts have it.
constexpr std::uint32_t kVersionValue = (IoApic::kPins - 1) << 16 | 0x20;
constexpr std::uint32_t kIdBits = 0x0f00'0000;

// Bits of a redirection entry.
constexpr std::uint64_t kLogical = 1u << 11, kStatus = 1u << 12, kRemoteIrr = 1u << 14,
                        kLevel = 1u << 15, kMask = 1u << 16;
constexpr std::uint64_t kReadOnly = kStatus | kRemoteIrr;
constexpr std::uint32_t kLowDefined = 0x0001'ffff, kHighDefined = 0xff00'0000;

}  // namespace

std::span<const BusRange> IoApic::ranges() const { return kRanges; }

void IoApic::SetPin(unsigned pin, bool level) {
  if (pin >= kPins) return;
  const std::lock_guard lock(mutex_);
  const std::uint32_t bit = 1u << pin;
  const bool rises = level && (levels_ & bit) == 0;
  levels_ = level ? levels_ | bit : levels_ & ~bit;
  // An edge while the pin is masked is lost. [intel/82093aa] "Interrupt Mask"
  if (rises && (entries_[pin] & (kLevel | kMask)) == 0) requests_ |= bit;
  Service(pin);
}

void IoApic::Service(unsigned pin) {
  std::uint64_t& entry = entries_[pin];
  const std::uint32_t bit = 1u << pin;
  if ((entry & kMask) != 0) return;
  const bool level = (entry & kLevel) != 0;
  if (level) {
    if ((levels_ & bit) == 0 || (entry & kRemoteIrr) != 0) return;
  } else if ((requests_ & bit) == 0) {
    return;
  }
  requests_ &= ~bit;
  const auto mode = static_cast<DeliveryMode>(entry >> 8 & 7);
  const bool fixed = mode == DeliveryMode::kFixed || mode == DeliveryMode::kLowestPriority;
  if (level && fixed) entry |= kRemoteIrr;
  bus_.Send({.mode = mode,
             .vector = static_cast<std::uint8_t>(entry),
             .logical = (entry & kLogical) != 0,
             .level = level,
             .destination = static_cast<std::uint32_t>(entry >> 56)},
            nullptr);
}

void IoApic::EndLocked(std::uint8_t vector) {
  for (unsigned pin = 0; pin < kPins; ++pin) {
    std::uint64_t& entry = entries_[pin];
    if ((entry & kRemoteIrr) == 0 || static_cast<std::uint8_t>(entry) != vector) continue;
    entry &= ~kRemoteIrr;
    Service(pin);
  }
}

void IoApic::EndOfInterrupt(std::uint8_t vector) {
  const std::lock_guard lock(mutex_);
  EndLocked(vector);
}

std::uint32_t IoApic::ReadRegister() const {
  if (selected_ >= kFirstEntry && selected_ < kFirstEntry + 2 * kPins) {
    const unsigned index = selected_ - kFirstEntry;
    return static_cast<std::uint32_t>(entries_[index / 2] >> (index % 2 * 32));
  }
  switch (selected_) {
    case kId:
    case kArbitration:
      return id_;
    case kVersion:
      return kVersionValue;
    default:
      return 0;
  }
}

void IoApic::WriteEntry(unsigned pin, bool high_half, std::uint32_t value) {
  std::uint64_t& entry = entries_[pin];
  if (high_half) {
    entry = (entry & 0xffff'ffff) | std::uint64_t{value & kHighDefined} << 32;
  } else {
    const std::uint64_t kept = entry & (std::uint64_t{0xffff'ffff} << 32 | kReadOnly);
    entry = kept | (value & kLowDefined & ~kReadOnly);
    // What waits for the end of a level-triggered interrupt waits no more once it is an edge.
    if ((entry & kLevel) == 0) entry &= ~kRemoteIrr;
  }
  Service(pin);
}

void IoApic::WriteRegister(std::uint32_t value) {
  if (selected_ == kId) id_ = value & kIdBits;
  if (selected_ < kFirstEntry || selected_ >= kFirstEntry + 2 * kPins) return;
  const unsigned index = selected_ - kFirstEntry;
  WriteEntry(index / 2, index % 2 != 0, value);
}

std::uint64_t IoApic::Read(BusSpace, std::uint64_t address, unsigned) {
  const std::lock_guard lock(mutex_);
  switch (address - kBase) {
    case kSelect:
      return selected_;
    case kWindow:
      return ReadRegister();
    default:
      return 0;
  }
}

void IoApic::Write(BusSpace, std::uint64_t address, unsigned, std::uint64_t value) {
  const std::lock_guard lock(mutex_);
  switch (address - kBase) {
    case kSelect:
      selected_ = static_cast<std::uint8_t>(value);
      break;
    case kWindow:
      WriteRegister(static_cast<std::uint32_t>(value));
      break;
    case kEoi:
      EndLocked(static_cast<std::uint8_t>(value));
      break;
    default:
      break;
  }
}

}  // namespace pagesaw
