module;
#include <absl/container/flat_hash_map.h>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
module pagesaw.cpu.fusion;

import pagesaw.cpu.branch_forms;
import pagesaw.cpu.integer_forms;
import pagesaw.cpu.stack_forms;

namespace pagesaw::cpu {
namespace {

// What comes first in a pair: how it is done where nothing stands in the way, and the handler that
// does it otherwise. `Do` is false if nothing was done.
template <class Operation, class T>
struct OnRegisters {
  static constexpr Handler kPlain = &RegisterRegister<Operation, T>;
  static inline bool Do(Core& core, const Op& op) {
    const T result =
        Operation::template Do<T>(core, core.Read<T>(op.first), core.Read<T>(op.second));
    if constexpr (Operation::kWrites) core.Write<T>(op.first, result);
    return true;
  }
};

template <class Operation, class T>
struct WithImmediate {
  static constexpr Handler kPlain = &RegisterImmediate<Operation, T>;
  static inline bool Do(Core& core, const Op& op) {
    const T result =
        Operation::template Do<T>(core, core.Read<T>(op.first), static_cast<T>(op.immediate));
    if constexpr (Operation::kWrites) core.Write<T>(op.first, result);
    return true;
  }
};

template <class T>
inline bool LoadOperandHit(Core& core, const Op& op, T& value) {
  return LoadHit(*core.bank, Flat::Address(core, op), value);
}

// CMP and TEST of memory with an immediate or a register.
template <class Operation, class T>
struct MemoryWithImmediate {
  static constexpr Handler kPlain = &MemoryImmediate<Operation, T, Flat>;
  static inline bool Do(Core& core, const Op& op) {
    T value;
    if (!LoadOperandHit(core, op, value)) return false;
    Operation::template Do<T>(core, value, static_cast<T>(op.immediate));
    return true;
  }
};
template <class Operation, class T>
struct MemoryWithRegister {
  static constexpr Handler kPlain = &MemoryRegister<Operation, T, Flat>;
  static inline bool Do(Core& core, const Op& op) {
    T value;
    if (!LoadOperandHit(core, op, value)) return false;
    Operation::template Do<T>(core, value, core.Read<T>(op.first));
    return true;
  }
};
template <class Operation, class T>
struct RegisterWithMemory {
  static constexpr Handler kPlain = &RegisterMemory<Operation, T, Flat>;
  static inline bool Do(Core& core, const Op& op) {
    T value;
    if (!LoadOperandHit(core, op, value)) return false;
    Operation::template Do<T>(core, core.Read<T>(op.first), value);
    return true;
  }
};

template <class T>
struct Move {
  static constexpr Handler kPlain = &MoveRegisterRegister<T>;
  static inline bool Do(Core& core, const Op& op) {
    core.Write<T>(op.first, core.Read<T>(op.second));
    return true;
  }
};
template <class T>
struct MoveImmediate {
  static constexpr Handler kPlain = &MoveRegisterImmediate<T>;
  static inline bool Do(Core& core, const Op& op) {
    core.Write<T>(op.first, static_cast<T>(op.immediate));
    return true;
  }
};
template <class T>
struct LoadRegister {
  static constexpr Handler kPlain = &MoveRegisterMemory<T, Flat>;
  static inline bool Do(Core& core, const Op& op) {
    T value;
    if (!LoadOperandHit(core, op, value)) return false;
    core.Write<T>(op.first, value);
    return true;
  }
};
// Only a page without code has a write tag: what follows is still what was decoded.
template <class T>
struct StoreRegister {
  static constexpr Handler kPlain = &MoveMemoryRegister<T, Flat>;
  static inline bool Do(Core& core, const Op& op) {
    return StoreHit(*core.bank, Flat::Address(core, op), core.Read<T>(op.first));
  }
};
struct Address {
  static constexpr Handler kPlain = &LoadAddressFlat;
  static inline bool Do(Core& core, const Op& op) {
    core.gpr[op.first / 8] = Flat::Address(core, op);
    return true;
  }
};
struct PushOne {
  static constexpr Handler kPlain = &PushRegister<std::uint64_t, true>;
  static inline bool Do(Core& core, const Op& op) {
    const std::uint64_t linear = core.gpr[kRsp] - sizeof(std::uint64_t);
    if (!StoreHit(*core.bank, linear, core.Read<std::uint64_t>(op.first))) return false;
    core.gpr[kRsp] = linear;
    return true;
  }
};
struct PopOne {
  static constexpr Handler kPlain = &PopRegister<std::uint64_t, true>;
  static inline bool Do(Core& core, const Op& op) {
    std::uint64_t value = 0;
    if (!LoadHit(*core.bank, core.gpr[kRsp], value)) return false;
    core.gpr[kRsp] += sizeof(value);
    core.Write<std::uint64_t>(op.first, value);  // POP RSP: what was popped wins
    return true;
  }
};

template <class First, Handler kSecond>
void Then(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!First::Do(core, *op)) [[unlikely]] {
    [[clang::musttail]] return First::kPlain(core, op);
  }
  [[clang::musttail]] return kSecond(core, op + 1);
}

// `First` and a conditional jump on the flags that it has just made.
template <class First, unsigned kCode>
void ThenJumpIf(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!First::Do(core, *op)) [[unlikely]] {
    [[clang::musttail]] return First::kPlain(core, op);
  }
  if (core.flags.Test<kCode>()) {
    [[clang::musttail]] return TakeDirect<std::uint64_t>(core, op + 1);
  }
  [[clang::musttail]] return op[3].run(core, op + 3);
}

// -- which

using Pairs = absl::flat_hash_map<std::pair<Handler, Handler>, Handler>;

template <class First, unsigned kCode>
void AddJump(Pairs& pairs) {
  if constexpr ((kCode >> 1) != 0 && (kCode >> 1) != 5) {  // neither overflow nor parity
    pairs[{First::kPlain, &JumpIf<std::uint64_t, kCode>}] = &ThenJumpIf<First, kCode>;
  }
}
template <class First, unsigned... kCodes>
void AddJumps(Pairs& pairs, std::integer_sequence<unsigned, kCodes...>) {
  (AddJump<First, kCodes>(pairs), ...);
}
template <class... First>
void AddTests(Pairs& pairs) {
  (AddJumps<First>(pairs, std::make_integer_sequence<unsigned, 16>()), ...);
}
template <class Operation, class T>
void AddComparison(Pairs& pairs) {
  AddTests<OnRegisters<Operation, T>, WithImmediate<Operation, T>,
           MemoryWithImmediate<Operation, T>, MemoryWithRegister<Operation, T>,
           RegisterWithMemory<Operation, T>>(pairs);
}
template <class T>
void AddTestsOf(Pairs& pairs) {
  AddComparison<Cmp, T>(pairs);
  AddComparison<Test, T>(pairs);
  AddTests<OnRegisters<And, T>, WithImmediate<And, T>, OnRegisters<Sub, T>, WithImmediate<Sub, T>,
           WithImmediate<Add, T>, OnRegisters<Or, T>, WithImmediate<Dec, T>>(pairs);
}

template <class First, class... Second>
void AddEach(Pairs& pairs) {
  ((pairs[{First::kPlain, Second::kPlain}] = &Then<First, Second::kPlain>), ...);
  // What leaves the block comes behind everything.
  using T = std::uint64_t;
  pairs[{First::kPlain, &Return<T, true>}] = &Then<First, &Return<T, true>>;
  pairs[{First::kPlain, &CallDirect<T, true>}] = &Then<First, &CallDirect<T, true>>;
  pairs[{First::kPlain, &TakeDirect<T>}] = &Then<First, &TakeDirect<T>>;
}
template <class... Step>
void AddAll(Pairs& pairs) {
  (AddEach<Step, Step...>(pairs), ...);
}

Pairs MakePairs() {
  using U32 = std::uint32_t;
  using U64 = std::uint64_t;
  Pairs pairs;
  AddAll<Move<U32>, Move<U64>, MoveImmediate<U32>, LoadRegister<U32>, LoadRegister<U64>,
         StoreRegister<U32>, StoreRegister<U64>, Address, PushOne, PopOne, WithImmediate<Add, U64>,
         WithImmediate<Sub, U64>, WithImmediate<And, U32>, WithImmediate<Add, U32>,
         OnRegisters<And, U32>, OnRegisters<Xor, U32>, OnRegisters<Add, U64>>(pairs);
  AddTestsOf<std::uint8_t>(pairs);
  AddTestsOf<U32>(pairs);
  AddTestsOf<U64>(pairs);
  return pairs;
}

}  // namespace

void Fuse(std::span<Op> ops) {
  static const auto* const pairs = new Pairs(MakePairs());
  for (std::size_t i = 0; i + 1 < ops.size(); ++i) {
    const auto found = pairs->find({ops[i].run, ops[i + 1].run});
    if (found == pairs->end()) continue;
    ops[i].run = found->second;
    ++i;  // the second one is done with
  }
}

}  // namespace pagesaw::cpu
