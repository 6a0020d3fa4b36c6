module;
#include <array>
#include <cstdint>
module pagesaw.cpu.breakpoints;

namespace pagesaw::cpu {
namespace {

// R/Wn and LENn of DR7.
enum Watch : std::uint8_t { kExecute, kWrite, kPort, kAccess };
constexpr std::array<std::uint8_t, 4> kLengths = {1, 2, 8, 4};

constexpr std::uint64_t kPageBytes = 0x1000;

}  // namespace

Breakpoints::Breakpoints(const std::array<std::uint64_t, 4>& addresses, std::uint64_t dr7,
                         bool debug_extensions) {
  for (unsigned i = 0; i < 4; ++i) {
    if ((dr7 >> (2 * i) & 3) == 0) continue;
    const auto bit = static_cast<BreakpointSet>(1u << i);
    const auto watch = static_cast<Watch>(dr7 >> (16 + 4 * i) & 3);
    // An instruction is met at its first byte, whatever LEN says.
    bytes_[i] = watch == kExecute ? std::uint8_t{1} : kLengths[dr7 >> (18 + 4 * i) & 3];
    first_[i] = addresses[i] & ~(std::uint64_t{bytes_[i]} - 1);
    switch (watch) {
      case kExecute:
        execute_ |= bit;
        break;
      case kWrite:
        write_ |= bit;
        break;
      case kPort:
        if (debug_extensions) port_ |= bit;
        break;
      case kAccess:
        access_ |= bit;
        break;
    }
  }
}

BreakpointSet Breakpoints::Overlapping(BreakpointSet among, std::uint64_t first,
                                       std::uint64_t bytes) const {
  BreakpointSet met = 0;
  for (unsigned i = 0; i < 4; ++i) {
    if ((among >> i & 1) == 0) continue;
    // Differences that wrap: each range is asked whether the other begins in it.
    const bool overlap = first_[i] - first < bytes || first - first_[i] < bytes_[i];
    if (overlap) met |= static_cast<BreakpointSet>(1u << i);
  }
  return met;
}

BreakpointSet Breakpoints::Execute(std::uint64_t linear) const {
  return Overlapping(execute_, linear, 1);
}

BreakpointSet Breakpoints::Data(std::uint64_t linear, unsigned bytes, bool write) const {
  const auto among = static_cast<BreakpointSet>(access_ | (write ? write_ : 0));
  return Overlapping(among, linear, bytes);
}

BreakpointSet Breakpoints::Port(std::uint16_t port, unsigned bytes) const {
  return Overlapping(port_, port, bytes);
}

bool Breakpoints::WatchesDataIn(std::uint64_t linear) const {
  return Overlapping(write_ | access_, linear & ~(kPageBytes - 1), kPageBytes) != 0;
}

bool Breakpoints::WatchesCodeIn(std::uint64_t linear) const {
  return Overlapping(execute_, linear & ~(kPageBytes - 1), kPageBytes) != 0;
}

}  // namespace pagesaw::cpu
