// Near transfers of control: jumps, conditional jumps, calls and returns.
module;
#include <cstdint>
export module pagesaw.cpu.branches;

export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

Selection SelectBranch(const Decoded& decoded, Op& op);

}  // namespace pagesaw::cpu

namespace pagesaw::cpu {

// Those that shadow stacks and branch tracking concern, of operand size `bytes`.
Selection SelectCheckedBranch(const Decoded& decoded, Op& op, unsigned bytes);

}  // namespace pagesaw::cpu
