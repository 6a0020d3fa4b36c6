module;
#include <cstdint>
#include <optional>
module pagesaw.mmu.cpu_walker;

import pagesaw.mmu.legacy_format;
import pagesaw.mmu.linear_walk;
import pagesaw.mmu.logged_tables;
import pagesaw.mmu.walk;

namespace pagesaw {
CpuWalker::CpuWalker(const GuestMemory& memory, const DirtyLogs* logs,
                     const MemoryAttributes* attributes)
    : CpuWalker(memory, PagingState()) {
  logs_ = logs;
  attributes_ = attributes;
}

CpuWalker::CpuWalker(const GuestMemory& memory, const PagingState& state)
    : memory_(&memory), state_(state), format_(MakeLegacyFormat(state)) {}

void CpuWalker::Reset(const PagingState& state) {
  if (state == state_) return;
  state_ = state;
  format_ = MakeLegacyFormat(state);
}

unsigned CpuWalker::root_level() const {
  switch (state_.mode()) {
    case PagingMode::kNone:
      return 0;
    case PagingMode::k32Bit:
      return 2;
    case PagingMode::kPae:
      return 3;
    case PagingMode::k4Level:
      return 4;
    case PagingMode::k5Level:
      return 5;
  }
  return 0;
}

WalkResult CpuWalker::Walk(InputAddress address, Access access) {
  LoggedTableSpace space(*memory_, logs_, attributes_);
  const WalkResult result = WalkLinear(state_, format_, address, access, space, nullptr);
  violation_ = space.violation();
  return result;
}

WalkResult CpuWalker::Inspect(InputAddress address, Access access, WalkTrace* trace) const {
  GuestTableSpace<false> space(*memory_);
  return WalkLinear(state_, format_, address, access, space, trace);
}

}  // namespace pagesaw
