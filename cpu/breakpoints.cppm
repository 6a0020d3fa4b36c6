// Hardware breakpoints: what DR0 to DR3 and DR7 ask for, in a form that is quick to ask.
// [intel/vol3] "Debug Registers"; [amd/vol2] "Hardware-Breakpoint Debug Features"
module;
#include <array>
#include <cstdint>
export module pagesaw.cpu.breakpoints;

export namespace pagesaw::cpu {

// A bit for each of the four breakpoints, as in DR6.
using BreakpointSet = std::uint8_t;

// The breakpoints that are enabled, by what they watch.
class Breakpoints {
 public:
  constexpr Breakpoints() = default;
  // `debug_extensions` is CR4.DE, without which nothing watches ports.
  Breakpoints(const std::array<std::uint64_t, 4>& addresses, std::uint64_t dr7,
              bool debug_extensions);

  inline bool any() const { return (execute_ | write_ | access_ | port_) != 0; }
  inline bool any_execute() const { return execute_ != 0; }
  inline bool any_data() const { return (write_ | access_) != 0; }
  inline bool any_port() const { return port_ != 0; }

  // Those that an instruction whose first byte is at `linear` meets.
  BreakpointSet Execute(std::uint64_t linear) const;
  // Those that an access of `bytes` bytes at `linear` meets, wherever they overlap.
  BreakpointSet Data(std::uint64_t linear, unsigned bytes, bool write) const;
  BreakpointSet Port(std::uint16_t port, unsigned bytes) const;

  // Whether the page that holds `linear` has some watched data, or watched code.
  bool WatchesDataIn(std::uint64_t linear) const;
  bool WatchesCodeIn(std::uint64_t linear) const;

 private:
  BreakpointSet Overlapping(BreakpointSet among, std::uint64_t first, std::uint64_t bytes) const;

  BreakpointSet execute_ = 0, write_ = 0, access_ = 0, port_ = 0;
  std::array<std::uint64_t, 4> first_ = {};  // aligned to the length
  std::array<std::uint8_t, 4> bytes_ = {};
};

}  // namespace pagesaw::cpu
