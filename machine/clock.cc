module;
#include <time.h>
#include <cstdint>
module pagesaw.machine.clock;

namespace pagesaw {

std::uint64_t HostClock::NowNs() const {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

std::int64_t HostClock::WallSeconds() const { return static_cast<std::int64_t>(time(nullptr)); }

}  // namespace pagesaw
