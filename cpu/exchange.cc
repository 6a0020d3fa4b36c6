module;
#include <Zydis/Zydis.h>
#include <cstddef>
#include <cstdint>
module pagesaw.cpu.exchange;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

constexpr RegisterOffset kAx = kRax * 8, kCx = kRcx * 8, kDx = kRdx * 8, kBx = kRbx * 8;

template <class T>
bool XchgRegisters(Core& core, const Op& op) {
  const T first = core.Read<T>(op.first);
  core.Write<T>(op.first, core.Read<T>(op.second));
  core.Write<T>(op.second, first);
  return true;
}

// Always atomic. The register is in `second`.
template <class T>
bool XchgMemory(Core& core, const Op& op) {
  std::uint64_t linear = 0;
  std::byte* host = nullptr;
  const T value = core.Read<T>(op.second);
  if (!OperandAddress(core, op, sizeof(T), true, linear) ||
      !HostOfModified<T>(core, linear, host)) {
    return false;
  }
  T old;
  if (host != nullptr) {
    old = __atomic_exchange_n(reinterpret_cast<T*>(host), value, __ATOMIC_SEQ_CST);
  } else if (!LoadSlow(core, linear, &old, sizeof(T), By::kProgram) ||
             !StoreSlow(core, linear, &value, sizeof(T), By::kProgram)) {
    return false;
  }
  core.Write<T>(op.second, old);
  return true;
}

// `change` of the memory operand, atomic if the op is locked.
template <class T, class Change>
bool ModifyMaybeLocked(Core& core, const Op& op, Change change) {
  std::uint64_t linear = 0;
  if (!OperandAddress(core, op, sizeof(T), true, linear)) return false;
  return op.lock ? ModifyMemoryLocked<T>(core, linear, change)
                 : ModifyMemory<T>(core, linear, change);
}

template <class T>
T Add(T value, T addend, LazyFlags& flags) {
  const T sum = static_cast<T>(value + addend);
  flags.Set<T>(FlagMaker::kAdd, sum, value);
  return sum;
}

template <class T>
bool XaddRegisters(Core& core, const Op& op) {
  const T old = core.Read<T>(op.first);
  const T sum = Add<T>(old, core.Read<T>(op.second), core.flags);
  core.Write<T>(op.second, old);
  core.Write<T>(op.first, sum);  // stands if both are the same register
  return true;
}
template <class T>
bool XaddMemory(Core& core, const Op& op) {
  const T addend = core.Read<T>(op.second);
  T old = 0;
  const bool done = ModifyMaybeLocked<T>(core, op, [&old, addend](T value, LazyFlags& flags) -> T {
    old = value;
    return Add<T>(value, addend, flags);
  });
  if (!done) return false;
  core.Write<T>(op.second, old);
  return true;
}

// The destination is written even if it stays the same. [intel/vol2] "CMPXCHG"
template <class T>
T CompareAndPick(T value, T accumulator, T replacement, LazyFlags& flags) {
  flags.Set<T>(FlagMaker::kSub, static_cast<T>(accumulator - value), accumulator);
  return value == accumulator ? replacement : value;
}
template <class T>
bool CmpxchgRegisters(Core& core, const Op& op) {
  const T old = core.Read<T>(op.first);
  const T accumulator = core.Read<T>(kAx);
  const T picked = CompareAndPick<T>(old, accumulator, core.Read<T>(op.second), core.flags);
  if (old == accumulator) {
    core.Write<T>(op.first, picked);
  } else {
    core.Write<T>(kAx, old);
  }
  return true;
}
template <class T>
bool CmpxchgMemory(Core& core, const Op& op) {
  const T accumulator = core.Read<T>(kAx);
  const T replacement = core.Read<T>(op.second);
  T old = 0;
  const bool done = ModifyMaybeLocked<T>(core, op, [&](T value, LazyFlags& flags) -> T {
    old = value;
    return CompareAndPick<T>(value, accumulator, replacement, flags);
  });
  if (!done) return false;
  if (old != accumulator) core.Write<T>(kAx, old);
  return true;
}

template <class T>
T Joined(const Core& core, RegisterOffset low, RegisterOffset high) {
  constexpr unsigned kHalf = sizeof(T) * 4;
  const std::uint64_t mask = sizeof(T) == 8 ? 0xffff'ffffu : ~std::uint64_t{0};
  return static_cast<T>(core.Read<std::uint64_t>(high) & mask) << kHalf |
         static_cast<T>(core.Read<std::uint64_t>(low) & mask);
}

// Replaces 16 bytes at `host` by `desired` if they are `expected`; `expected` becomes what was
// there.
bool CompareExchange16(std::byte* host, unsigned __int128& expected, unsigned __int128 desired) {
#if defined(__x86_64__)
  std::uint64_t low = static_cast<std::uint64_t>(expected);
  std::uint64_t high = static_cast<std::uint64_t>(expected >> 64);
  bool equal = false;
  asm volatile("lock cmpxchg16b %[at]"
               : "+a"(low), "+d"(high),
                 "=@ccz"(equal), [at] "+m"(*reinterpret_cast<unsigned __int128*>(host))
               : "b"(static_cast<std::uint64_t>(desired)),
                 "c"(static_cast<std::uint64_t>(desired >> 64))
               : "memory");
  expected = static_cast<unsigned __int128>(high) << 64 | low;
  return equal;
#else
  return __atomic_compare_exchange(reinterpret_cast<unsigned __int128*>(host), &expected, &desired,
                                   false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
#endif
}

void FinishPair(Core& core, bool equal, std::uint64_t low, std::uint64_t high, bool wide) {
  core.flags.SetEager((core.flags.All() & ~kFlagZf) | (equal ? kFlagZf : 0));
  if (equal) return;
  if (wide) {
    core.Write<std::uint64_t>(kAx, low);
    core.Write<std::uint64_t>(kDx, high);
  } else {
    core.Write<std::uint32_t>(kAx, static_cast<std::uint32_t>(low));
    core.Write<std::uint32_t>(kDx, static_cast<std::uint32_t>(high));
  }
}

bool Cmpxchg8b(Core& core, const Op& op) {
  const auto expected = Joined<std::uint64_t>(core, kAx, kDx);
  const auto desired = Joined<std::uint64_t>(core, kBx, kCx);
  std::uint64_t old = 0;
  const bool done =
      ModifyMaybeLocked<std::uint64_t>(core, op, [&](std::uint64_t value, LazyFlags&) {
        old = value;
        return value == expected ? desired : value;
      });
  if (!done) return false;
  FinishPair(core, old == expected, old, old >> 32, false);
  return true;
}

bool Cmpxchg16b(Core& core, const Op& op) {
  std::uint64_t linear = 0;
  std::byte* host = nullptr;
  if (!OperandAddress(core, op, 16, true, linear)) return false;
  if (linear % 16 != 0) return core.Raise(kGp, 0);
  if (!HostForModify(core, linear, 16, host)) return false;
  auto found = Joined<unsigned __int128>(core, kAx, kDx);
  const auto expected = found;
  const auto desired = Joined<unsigned __int128>(core, kBx, kCx);
  if (host != nullptr) {
    CompareExchange16(host, found, desired);
  } else {
    if (!LoadSlow(core, linear, &found, 16, By::kProgram)) return false;
    const auto picked = found == expected ? desired : found;
    if (!StoreSlow(core, linear, &picked, 16, By::kProgram)) return false;
  }
  FinishPair(core, found == expected, static_cast<std::uint64_t>(found),
             static_cast<std::uint64_t>(found >> 64), true);
  return true;
}

// XCHG with memory takes its operands in either order.
Selection SelectXchg(const Decoded& decoded, Op& op) {
  PlaceRegisters(decoded, op);
  if (!op.memory) {
    return {
        BySize(op.operand_bytes, []<class T>() -> Handler { return &Plain<&XchgRegisters<T>>; })};
  }
  if (decoded.operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER) op.second = op.first;
  return {BySize(op.operand_bytes, []<class T>() -> Handler { return &Plain<&XchgMemory<T>>; })};
}

}  // namespace

Selection SelectExchange(const Decoded& decoded, Op& op) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_XCHG:
      return SelectXchg(decoded, op);
    case ZYDIS_MNEMONIC_XADD:
      PlaceRegisters(decoded, op);
      return {BySize(op.operand_bytes, [&op]<class T>() -> Handler {
        return op.memory ? &Plain<&XaddMemory<T>> : &Plain<&XaddRegisters<T>>;
      })};
    case ZYDIS_MNEMONIC_CMPXCHG:
      PlaceRegisters(decoded, op);
      return {BySize(op.operand_bytes, [&op]<class T>() -> Handler {
        return op.memory ? &Plain<&CmpxchgMemory<T>> : &Plain<&CmpxchgRegisters<T>>;
      })};
    case ZYDIS_MNEMONIC_CMPXCHG8B:
      if (!decoded.model->Has(Feature::kCx8)) return UndefinedInstruction();
      return {&Plain<&Cmpxchg8b>};
    case ZYDIS_MNEMONIC_CMPXCHG16B:
      if (!decoded.model->Has(Feature::kCx16)) return UndefinedInstruction();
      return {&Plain<&Cmpxchg16b>};
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
