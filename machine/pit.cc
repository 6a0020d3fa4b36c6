module;
#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>
#include <span>
module pagesaw.machine.pit;

namespace pagesaw {
namespace {

constexpr std::uint64_t kNsPerSecond = 1'000'000'000;
constexpr std::array kRanges = {BusRange{BusSpace::kPort, 0x40, 4},
                                BusRange{BusSpace::kPort, 0x61, 1}};

// A period of a count or two would ask for more polls than a host can give.
constexpr std::uint64_t kShortestTickNs = 100'000;

std::uint64_t TicksToNs(std::uint64_t ticks) { return Scale(ticks, kNsPerSecond, kPitHz); }

}  // namespace

std::uint64_t PitChannel::Ticks(std::uint64_t now_ns) const {
  return now_ns <= start_ns_ ? 0 : Scale(now_ns - start_ns_, kPitHz, kNsPerSecond);
}

std::uint16_t PitChannel::Count(std::uint64_t now_ns) const {
  if (!loaded_) return 0;
  const std::uint64_t ticks = Ticks(now_ns);
  const std::uint64_t period = Period();
  if (!periodic()) return static_cast<std::uint16_t>(reload_ - ticks);
  // Mode 3 counts by twos.
  const std::uint64_t down = mode_ == 3 ? ticks * 2 % period & ~std::uint64_t{1} : ticks % period;
  return static_cast<std::uint16_t>(period - down);
}

bool PitChannel::Output(std::uint64_t now_ns) const {
  if (!loaded_) return mode_ != 0;
  const std::uint64_t ticks = Ticks(now_ns);
  switch (mode_) {
    case 2:
      return ticks % Period() != Period() - 1;
    case 3:
      return ticks % Period() < (Period() + 1) / 2;
    case 4:
    case 5:
      return ticks != Period();
    default:
      return ticks >= Period();
  }
}

std::uint64_t PitChannel::NextRise(std::uint64_t after_ns) const {
  if (!loaded_ || !gate_) return kNever;
  const std::uint64_t period = Period();
  if (!periodic()) {
    const std::uint64_t rise = DeadlineAfter(start_ns_, TicksToNs(period + (mode_ >= 4 ? 1 : 0)));
    return rise > after_ns ? rise : kNever;
  }
  const std::uint64_t next = Ticks(after_ns) / period + 1;
  return DeadlineAfter(start_ns_, TicksToNs(next * period) + 1);
}

void PitChannel::Load(std::uint16_t count, std::uint64_t now_ns) {
  reload_ = count;
  loaded_ = true;
  start_ns_ = now_ns;
}

void PitChannel::WriteControl(std::uint8_t control, std::uint64_t) {
  const std::uint8_t mode = control >> 1 & 7;
  mode_ = mode > 5 ? static_cast<std::uint8_t>(mode - 4) : mode;
  access_ = control >> 4 & 3;
  bcd_ = (control & 1) != 0;
  loaded_ = false;
  write_high_next_ = read_high_next_ = false;
  count_latched_ = status_latched_ = false;
}

void PitChannel::WriteCount(std::uint8_t value, std::uint64_t now_ns) {
  switch (access_) {
    case 1:
      Load(value, now_ns);
      break;
    case 2:
      Load(static_cast<std::uint16_t>(value << 8), now_ns);
      break;
    default:
      if (write_high_next_) {
        Load(static_cast<std::uint16_t>(value << 8 | low_byte_), now_ns);
      } else {
        low_byte_ = value;
      }
      write_high_next_ = !write_high_next_;
  }
}

std::uint8_t PitChannel::ReadCount(std::uint64_t now_ns) {
  if (status_latched_) {
    status_latched_ = false;
    return latched_status_;
  }
  const std::uint16_t count = count_latched_ ? latched_count_ : Count(now_ns);
  if (access_ != 3) {
    count_latched_ = false;
    return static_cast<std::uint8_t>(access_ == 2 ? count >> 8 : count);
  }
  const bool high = read_high_next_;
  if (high) count_latched_ = false;
  read_high_next_ = !read_high_next_;
  return static_cast<std::uint8_t>(high ? count >> 8 : count);
}

void PitChannel::LatchCount(std::uint64_t now_ns) {
  if (count_latched_) return;
  count_latched_ = true;
  latched_count_ = Count(now_ns);
}

void PitChannel::LatchStatus(std::uint64_t now_ns) {
  if (status_latched_) return;
  status_latched_ = true;
  latched_status_ = static_cast<std::uint8_t>((Output(now_ns) ? 0x80 : 0) | (loaded_ ? 0 : 0x40) |
                                              access_ << 4 | mode_ << 1 | (bcd_ ? 1 : 0));
}

void PitChannel::SetGate(bool gate, std::uint64_t now_ns) {
  if (gate && !gate_ && mode_ != 0 && mode_ != 4) start_ns_ = now_ns;  // a rising gate restarts
  gate_ = gate;
}

Pit::Pit(const Clock& clock, InterruptSink& interrupts) : clock_(clock), interrupts_(interrupts) {
  channels_[2].SetGate(false, 0);
}

std::span<const BusRange> Pit::ranges() const { return kRanges; }

void Pit::Restart(std::uint64_t now_ns) {
  const std::uint64_t rise = channels_[0].NextRise(now_ns);
  next_tick_ns_ = rise == kNever ? kNever : std::max(rise, now_ns + kShortestTickNs);
}

std::uint64_t Pit::next_deadline_ns() const {
  const std::lock_guard lock(mutex_);
  return next_tick_ns_;
}

void Pit::Poll() {
  const std::lock_guard lock(mutex_);
  const std::uint64_t now = clock_.NowNs();
  if (now < next_tick_ns_) return;
  interrupts_.SetIrq(0, false);
  interrupts_.SetIrq(0, true);
  Restart(now);
}

std::uint64_t Pit::Read(BusSpace, std::uint64_t address, unsigned) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t now = clock_.NowNs();
  if (address < 0x43) return channels_[address - 0x40].ReadCount(now);
  if (address == 0x43) return 0xff;  // the control word cannot be read
  const PitChannel& speaker = channels_[2];
  const bool refresh = (now / 15'000 & 1) != 0;  // toggles with each refresh of DRAM
  return (speaker.gate() ? 0x01u : 0) | (speaker_ ? 0x02u : 0) | (refresh ? 0x10u : 0) |
         (speaker.Output(now) ? 0x20u : 0);
}

void Pit::Write(BusSpace, std::uint64_t address, unsigned, std::uint64_t value) {
  const auto byte = static_cast<std::uint8_t>(value);
  const std::lock_guard lock(mutex_);
  const std::uint64_t now = clock_.NowNs();
  if (address == 0x61) {
    channels_[2].SetGate((byte & 1) != 0, now);
    speaker_ = (byte & 2) != 0;
    return;
  }
  if (address < 0x43) {
    channels_[address - 0x40].WriteCount(byte, now);
    if (address == 0x40) Restart(now);
    return;
  }
  const unsigned selected = byte >> 6;
  if (selected == 3) {  // read-back
    for (unsigned i = 0; i < channels_.size(); ++i) {
      if ((byte >> (i + 1) & 1) == 0) continue;
      if ((byte & 0x20) == 0) channels_[i].LatchCount(now);
      if ((byte & 0x10) == 0) channels_[i].LatchStatus(now);
    }
  } else if ((byte >> 4 & 3) == 0) {
    channels_[selected].LatchCount(now);
  } else {
    channels_[selected].WriteControl(byte, now);
    if (selected == 0) next_tick_ns_ = kNever;
  }
}

}  // namespace pagesaw
