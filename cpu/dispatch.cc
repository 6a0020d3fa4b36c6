module;
#include <atomic>
#include <cstdint>
module pagesaw.cpu.dispatch;

namespace pagesaw::cpu {

void Abort(Core& core, const Op* op) [[clang::preserve_none]] {
  core.rip = core.RipOf(op);
  core.budget += op->remaining;
}

void Leave(Core&, const Op*) [[clang::preserve_none]] {}

void EndOfBlock(Core& core, const Op* op) [[clang::preserve_none]] { core.rip = core.RipOf(op); }

void JumpToRip(Core& core, const Op* op) [[clang::preserve_none]] {
  core.budget += op->remaining - 1;  // the rest of the block is not executed
  const std::uint64_t rip = core.rip;
  const JumpCacheEntry& entry = core.jump_cache[JumpCacheIndex(rip)];
  if (entry.rip != rip || entry.context != core.context ||
      core.budget < static_cast<std::int64_t>(entry.block->instructions) ||
      core.attention.load(std::memory_order_relaxed)) [[unlikely]] {
    [[clang::musttail]] return Leave(core, op);
  }
  core.budget -= entry.block->instructions;
  Op* ops = entry.block->ops;
  if (core.link != nullptr) {
    // The branch that led here wants its target; later transfers of control are not its own.
    if (rip - ops->ip == core.ip_base) {
      core.link->immediate = reinterpret_cast<std::uint64_t>(entry.block);
    }
    core.link = nullptr;
  }
  core.ip_base = rip - ops->ip;
  [[clang::musttail]] return ops->run(core, ops);
}

}  // namespace pagesaw::cpu
