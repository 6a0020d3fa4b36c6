module;
#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
module pagesaw.machine.pic;

namespace pagesaw {
namespace {

constexpr unsigned kCascadeLine = 2;
constexpr std::array kRanges = {BusRange{BusSpace::kPort, 0x20, 2},
                                BusRange{BusSpace::kPort, 0xa0, 2},
                                BusRange{BusSpace::kPort, 0x4d0, 2}};

constexpr std::uint8_t Bit(unsigned line) { return static_cast<std::uint8_t>(1u << line); }

}  // namespace

void PicChip::SetLine(unsigned line, bool level) {
  const std::uint8_t bit = Bit(line);
  if (level) {
    if ((level_mask_ & bit) != 0 || (levels_ & bit) == 0) requests_ |= bit;
    levels_ |= bit;
  } else {
    // A level that falls before it is acknowledged is withdrawn; an edge stays latched, as it does
    // in chipsets.
    if ((level_mask_ & bit) != 0 || IsCascade(line)) requests_ &= static_cast<std::uint8_t>(~bit);
    levels_ &= static_cast<std::uint8_t>(~bit);
  }
}

std::optional<unsigned> PicChip::Highest(std::uint8_t lines) const {
  for (unsigned priority = 0; priority < 8; ++priority) {
    const unsigned line = (priority + lowest_priority_ + 1) & 7;
    if ((lines & Bit(line)) != 0) return line;
  }
  return std::nullopt;
}

std::optional<unsigned> PicChip::Pending() const {
  const std::optional<unsigned> line = Highest(
      static_cast<std::uint8_t>(requests_ & ~mask_ & (special_mask_ ? ~in_service_ : 0xff)));
  if (!line.has_value() || special_mask_) return line;
  std::uint8_t blocking = in_service_;
  if (special_fully_nested_ && master_) blocking &= static_cast<std::uint8_t>(~Bit(kCascadeLine));
  const std::optional<unsigned> serviced = Highest(blocking);
  if (serviced.has_value() && PriorityOf(*serviced) <= PriorityOf(*line)) return std::nullopt;
  return line;
}

std::uint8_t PicChip::Acknowledge(unsigned line) {
  if (auto_eoi_) {
    if (rotate_on_auto_eoi_) lowest_priority_ = static_cast<std::uint8_t>(line);
  } else {
    in_service_ |= Bit(line);
  }
  if ((level_mask_ & Bit(line)) == 0) requests_ &= static_cast<std::uint8_t>(~Bit(line));
  return static_cast<std::uint8_t>(vector_base_ | line);
}

std::uint8_t PicChip::ReadCommand() {
  if (poll_) {
    poll_ = false;
    const std::optional<unsigned> line = Pending();
    if (!line.has_value()) return 0;
    (void)Acknowledge(*line);
    return static_cast<std::uint8_t>(0x80 | *line);
  }
  return read_in_service_ ? in_service_ : requests_;
}

std::uint8_t PicChip::ReadData() { return mask_; }

void PicChip::WriteCommand(std::uint8_t value) {
  if ((value & 0x10) != 0) {  // ICW1
    requests_ = level_mask_ & levels_;
    in_service_ = 0;
    mask_ = 0;
    lowest_priority_ = 7;
    auto_eoi_ = special_mask_ = special_fully_nested_ = false;
    rotate_on_auto_eoi_ = read_in_service_ = poll_ = false;
    needs_fourth_word_ = (value & 0x01) != 0;
    single_ = (value & 0x02) != 0;
    next_init_word_ = 2;
  } else if ((value & 0x08) != 0) {  // OCW3
    if ((value & 0x02) != 0) read_in_service_ = (value & 0x01) != 0;
    if ((value & 0x40) != 0) special_mask_ = (value & 0x20) != 0;
    poll_ = (value & 0x04) != 0;
  } else {  // OCW2
    EndOfInterrupt(value);
  }
}

void PicChip::EndOfInterrupt(std::uint8_t command) {
  const bool rotate = (command & 0x80) != 0;
  const bool specific = (command & 0x40) != 0;
  const bool end = (command & 0x20) != 0;
  if (!end && !specific) {
    rotate_on_auto_eoi_ = rotate;
    return;
  }
  const std::optional<unsigned> line =
      specific ? std::optional<unsigned>(command & 7u) : Highest(in_service_);
  if (!line.has_value()) return;
  if (end) in_service_ &= static_cast<std::uint8_t>(~Bit(*line));
  if (rotate) lowest_priority_ = static_cast<std::uint8_t>(*line);
}

void PicChip::WriteData(std::uint8_t value) {
  switch (next_init_word_) {
    case 2:
      vector_base_ = value & 0xf8;
      next_init_word_ = single_ ? (needs_fourth_word_ ? 4 : 0) : 3;
      break;
    case 3:  // the wiring of the cascade is fixed on a PC
      next_init_word_ = needs_fourth_word_ ? 4 : 0;
      break;
    case 4:
      special_fully_nested_ = (value & 0x10) != 0;
      auto_eoi_ = (value & 0x02) != 0;
      next_init_word_ = 0;
      break;
    default:
      mask_ = value;
  }
}

Pic::Pic(std::function<void(bool)> output) : output_(std::move(output)) {}

std::span<const BusRange> Pic::ranges() const { return kRanges; }

void Pic::SetIrq(unsigned irq, bool level) {
  if (irq >= 16 || irq == kCascadeLine) return;
  const std::lock_guard lock(mutex_);
  (irq < 8 ? master_ : slave_).SetLine(irq & 7, level);
  Update();
}

void Pic::Update() {
  master_.SetLine(kCascadeLine, slave_.Pending().has_value());
  const bool level = master_.Pending().has_value();
  if (level == level_) return;
  level_ = level;
  output_(level);
}

bool Pic::HasInterrupt() const {
  const std::lock_guard lock(mutex_);
  return level_;
}

std::uint8_t Pic::Acknowledge() {
  const std::lock_guard lock(mutex_);
  const std::optional<unsigned> line = master_.Pending();
  std::uint8_t vector = 0;
  if (!line.has_value()) {
    vector = master_.SpuriousVector();
  } else if (*line != kCascadeLine) {
    vector = master_.Acknowledge(*line);
  } else {
    (void)master_.Acknowledge(kCascadeLine);
    const std::optional<unsigned> slave_line = slave_.Pending();
    vector = slave_line.has_value() ? slave_.Acknowledge(*slave_line) : slave_.SpuriousVector();
    // The slave drops its output; another request of its raises it again.
    master_.SetLine(kCascadeLine, false);
  }
  Update();
  return vector;
}

std::uint64_t Pic::Read(BusSpace, std::uint64_t address, unsigned) {
  const std::lock_guard lock(mutex_);
  std::uint8_t value = 0;
  switch (address) {
    case 0x20:
      value = master_.ReadCommand();
      break;
    case 0x21:
      value = master_.ReadData();
      break;
    case 0xa0:
      value = slave_.ReadCommand();
      break;
    case 0xa1:
      value = slave_.ReadData();
      break;
    case 0x4d0:
      value = master_.level_mask();
      break;
    default:
      value = slave_.level_mask();
  }
  Update();
  return value;
}

void Pic::Write(BusSpace, std::uint64_t address, unsigned, std::uint64_t value) {
  const auto byte = static_cast<std::uint8_t>(value);
  const std::lock_guard lock(mutex_);
  switch (address) {
    case 0x20:
      master_.WriteCommand(byte);
      break;
    case 0x21:
      master_.WriteData(byte);
      break;
    case 0xa0:
      slave_.WriteCommand(byte);
      break;
    case 0xa1:
      slave_.WriteData(byte);
      break;
    case 0x4d0:
      master_.set_level_mask(byte & 0xf8);
      break;  // IRQ 0 to 2 are always edges
    default:
      slave_.set_level_mask(byte & 0xde);  // and IRQ 8 and 13
  }
  Update();
}

}  // namespace pagesaw
