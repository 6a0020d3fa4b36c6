module;
#include <cstdint>
module pagesaw.mmu.linear_walk;

namespace pagesaw::detail {

WalkFault FaultAtRoot(WalkFault::Kind kind, Level level, InputAddress address, Access access,
                      const PageFormat& format) {
  std::uint32_t code = access.code_bits();
  if (!format.reports_fetch) code &= ~PageFaultCode::kFetch;
  if (kind == WalkFault::Kind::kMalformed) {
    code |= PageFaultCode::kPresent | PageFaultCode::kReserved;
  }
  return {.kind = kind, .level = level, .code = PageFaultCode(code), .address = address};
}

}  // namespace pagesaw::detail
