module;
#include <cstdint>
module pagesaw.mmu.cpu_walker;

import pagesaw.mmu.legacy_format;
import pagesaw.mmu.linear_walk;
import pagesaw.mmu.walk;

namespace pagesaw {

CpuWalker::CpuWalker(const GuestMemory& memory) : CpuWalker(memory, PagingState()) {}

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
  GuestTableSpace<true> space(*memory_);
  return WalkLinear(state_, format_, address, access, space, nullptr);
}

WalkResult CpuWalker::Inspect(InputAddress address, Access access, WalkTrace* trace) const {
  GuestTableSpace<false> space(*memory_);
  return WalkLinear(state_, format_, address, access, space, trace);
}

}  // namespace pagesaw
