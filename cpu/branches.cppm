// Near transfers of control: jumps, conditional jumps, calls and returns.
module;
#include <cstdint>
export module pagesaw.cpu.branches;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectBranch(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu

namespace pagesaw::cpu {

// A target outside the code segment is a fault of the branch itself.
inline bool BranchTargetAllowed(Core& core, std::uint64_t rip) {
  if (core.code_64()) {
    return IsCanonical(Gva(rip), (core.cr4 & kCr4La57) != 0 ? 57 : 48) || core.Raise(kGp, 0);
  }
  return rip <= core.segments[kCs].limit || core.Raise(kGp, 0);
}

// Those that shadow stacks and branch tracking concern, of operand size `bytes`.
Selection SelectCheckedBranch(const Decoded& decoded, Op& op, unsigned bytes);

}  // namespace pagesaw::cpu
