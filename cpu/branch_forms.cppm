// Near branches without shadow stacks and branch tracking, each as a handler: `branches` chooses
// among them.
module;
#include <atomic>
#include <cstdint>
export module pagesaw.cpu.branch_forms;

export import pagesaw.cpu.dispatch;
export import pagesaw.cpu.memory;

export namespace pagesaw::cpu {

// A target outside the code segment is a fault of the branch itself.
inline bool BranchTargetAllowed(Core& core, std::uint64_t rip) {
  if (core.code_64()) {
    return IsCanonical(Gva(rip), (core.cr4 & kCr4La57) != 0 ? 57 : 48) || core.Raise(kGp, 0);
  }
  return rip <= core.segments[kCs].limit || core.Raise(kGp, 0);
}

// The type of an instruction pointer by operand size.
template <class T>
constexpr std::uint64_t Truncate(std::uint64_t rip) {
  return static_cast<T>(rip);
}

// Takes the direct branch `op`, whose target is `rip`. Within the page the block at the target is
// remembered behind the op; it lives as long as the op does.
template <class T>
void TakeDirect(Core& core, const Op* op) [[clang::preserve_none]] {
  const auto* target = reinterpret_cast<const Block*>(op[1].immediate);
  if (target != nullptr) [[likely]] {
    core.budget += op->remaining - 1 - static_cast<std::int64_t>(target->instructions);
    if (core.budget >= 0 && !core.attention.load(std::memory_order_relaxed)) [[likely]] {
      Op* ops = target->ops;
      [[clang::musttail]] return ops->run(core, ops);
    }
    core.budget += target->instructions;
    core.rip = Truncate<T>(core.NextRip(op) + op->immediate);
    [[clang::musttail]] return Leave(core, op);
  }
  const std::uint64_t rip = Truncate<T>(core.NextRip(op) + op->immediate);
  if (!BranchTargetAllowed(core, rip)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  if ((op->ip + op->length + op->immediate) < 0x1000) core.link = const_cast<Op*>(op + 1);
  core.rip = rip;
  [[clang::musttail]] return JumpToRip(core, op);
}

template <class T, unsigned kCode>
void JumpIf(Core& core, const Op* op) [[clang::preserve_none]] {
  if (core.flags.Test<kCode>()) {
    [[clang::musttail]] return TakeDirect<T>(core, op);
  }
  [[clang::musttail]] return op[2].run(core, op + 2);
}

template <class T, bool kFlat>
void CallDirect(Core& core, const Op* op) [[clang::preserve_none]] {
  const std::uint64_t rip = Truncate<T>(core.NextRip(op) + op->immediate);
  if (!BranchTargetAllowed(core, rip) ||
      !PushFast<T, kFlat>(core, static_cast<T>(core.NextRip(op)))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return TakeDirect<T>(core, op);
}

// RET, RET imm16: `immediate` is what is taken from the stack besides.
template <class T, bool kFlat>
void Return(Core& core, const Op* op) [[clang::preserve_none]] {
  T target;
  if (!PeekFast<T, kFlat>(core, target) || !BranchTargetAllowed(core, target)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  MoveStack(core, static_cast<std::int64_t>(sizeof(T) + op->immediate));
  core.rip = target;
  [[clang::musttail]] return JumpToRip(core, op);
}

}  // namespace pagesaw::cpu
