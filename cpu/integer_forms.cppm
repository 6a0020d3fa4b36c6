// What the most frequent instructions do, each as a handler by operand size, form and kind of
// address: two-operand arithmetic, moves, LEA. `integer` chooses among them.
module;
#include <cstdint>
#include <type_traits>
export module pagesaw.cpu.integer_forms;

export import pagesaw.cpu.dispatch;
export import pagesaw.cpu.memory;

export namespace pagesaw::cpu {

// -- operations: flags and result

struct Add {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a + b);
    core.flags.Set<T>(FlagMaker::kAdd, result, a);
    return result;
  }
};
struct Adc {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const bool carry = core.flags.carry();
    const T result = static_cast<T>(a + b + (carry ? 1 : 0));
    core.flags.Set<T>(carry ? FlagMaker::kAdc : FlagMaker::kAdd, result, a);
    return result;
  }
};
struct Sub {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a - b);
    core.flags.Set<T>(FlagMaker::kSub, result, a);
    return result;
  }
};
struct Sbb {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const bool carry = core.flags.carry();
    const T result = static_cast<T>(a - b - (carry ? 1 : 0));
    core.flags.Set<T>(carry ? FlagMaker::kSbb : FlagMaker::kSub, result, a);
    return result;
  }
};
struct Cmp : Sub {
  static constexpr bool kWrites = false;
};
struct And {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a & b);
    core.flags.SetLogic<T>(result);
    return result;
  }
};
struct Test : And {
  static constexpr bool kWrites = false;
};
struct Or {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a | b);
    core.flags.SetLogic<T>(result);
    return result;
  }
};
struct Xor {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T b) {
    const T result = static_cast<T>(a ^ b);
    core.flags.SetLogic<T>(result);
    return result;
  }
};
// One-operand operations take the operand twice.
struct Inc {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T) {
    const T result = static_cast<T>(a + 1);
    core.flags.SetKeepingCarry<T>(FlagMaker::kInc, result, a);
    return result;
  }
};
struct Dec {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T) {
    const T result = static_cast<T>(a - 1);
    core.flags.SetKeepingCarry<T>(FlagMaker::kDec, result, a);
    return result;
  }
};
struct Neg {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core& core, T a, T) {
    const T result = static_cast<T>(0 - a);
    core.flags.Set<T>(FlagMaker::kSub, result, T{0});
    return result;
  }
};
struct Not {
  static constexpr bool kWrites = true;
  template <class T>
  static T Do(Core&, T a, T) {
    return static_cast<T>(~a);
  }
};

// -- addresses

template <class T>
[[gnu::noinline]] bool LoadChecked(Core& core, const Op& op, T& value) {
  return LoadOperand<T>(core, op, value);
}
template <class T>
[[gnu::noinline]] bool StoreChecked(Core& core, const Op& op, T value) {
  return StoreOperand<T>(core, op, value);
}

// 64-bit addresses without a segment base. They are checked only if they miss the TLB.
struct Flat {
  static inline bool IsFast(const Op&) { return true; }
  static inline std::uint64_t Address(const Core& core, const Op& op) {
    return OperandSum(core, op);
  }
};

// All others, of which 64-bit ones, through FS or GS, are looked up as fast.
struct Segmented {
  static inline bool IsFast(const Op& op) { return op.address_bytes == 8; }
  static inline std::uint64_t Address(const Core& core, const Op& op) {
    return UncheckedAddress(core, op);
  }
};

template <class T, class Where>
inline bool LoadAt(Core& core, const Op& op, T& value) {
  return (Where::IsFast(op) && LoadHit(*core.bank, Where::Address(core, op), value)) ||
         LoadChecked<T>(core, op, value);
}
template <class T, class Where>
inline bool StoreAt(Core& core, const Op& op, T value) {
  return (Where::IsFast(op) && StoreHit(*core.bank, Where::Address(core, op), value)) ||
         StoreChecked<T>(core, op, value);
}

// -- forms of two-operand arithmetic

template <class Operation, class T>
void RegisterRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  const T result =
      Operation::template Do<T>(core, core.Read<T>(op->first), core.Read<T>(op->second));
  if constexpr (Operation::kWrites) core.Write<T>(op->first, result);
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class Operation, class T>
void RegisterImmediate(Core& core, const Op* op) [[clang::preserve_none]] {
  const T result =
      Operation::template Do<T>(core, core.Read<T>(op->first), static_cast<T>(op->immediate));
  if constexpr (Operation::kWrites) core.Write<T>(op->first, result);
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class Operation, class T, class Where>
void RegisterMemory(Core& core, const Op* op) [[clang::preserve_none]] {
  T value;
  if (!LoadAt<T, Where>(core, *op, value)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  const T result = Operation::template Do<T>(core, core.Read<T>(op->first), value);
  if constexpr (Operation::kWrites) core.Write<T>(op->first, result);
  [[clang::musttail]] return op[1].run(core, op + 1);
}

// The memory operand is the destination, in the slow way: everything is checked before it is read.
template <class Operation, class T>
[[gnu::noinline]] bool ModifyChecked(Core& core, const Op& op, T operand) {
  std::uint64_t linear = 0;
  T value;
  if (!OperandAddress(core, op, sizeof(T), true, linear) ||
      !ProbeWrite(core, linear, sizeof(T), By::kProgram) || !Load<T>(core, linear, value)) {
    return false;
  }
  const LazyFlags before = core.flags;
  const T result = Operation::template Do<T>(core, value, operand);
  if (Store<T>(core, linear, result)) return true;
  core.flags = before;
  return false;
}

template <class Operation, class T, class Where>
inline bool Modify(Core& core, const Op& op, T operand) {
  if constexpr (!Operation::kWrites) {
    T value;
    if (!LoadAt<T, Where>(core, op, value)) return false;
    Operation::template Do<T>(core, value, operand);
    return true;
  } else {
    if (Where::IsFast(op)) {
      const std::uint64_t linear = Where::Address(core, op);
      const TlbEntry& entry = core.bank->At(linear);
      if (Hits<T>(entry.write_tag, linear) && Hits<T>(entry.read_tag, linear)) [[likely]] {
        auto* host = reinterpret_cast<void*>(linear + entry.addend);
        StoreHost<T>(host, Operation::template Do<T>(core, LoadHost<T>(host), operand));
        return true;
      }
    }
    return ModifyChecked<Operation, T>(core, op, operand);
  }
}

template <class Operation, class T, class Where>
void MemoryRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!Modify<Operation, T, Where>(core, *op, core.Read<T>(op->first))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class Operation, class T, class Where>
void MemoryImmediate(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!Modify<Operation, T, Where>(core, *op, static_cast<T>(op->immediate))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}

// -- moves

template <class T>
void MoveRegisterRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  core.Write<T>(op->first, core.Read<T>(op->second));
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class T>
void MoveRegisterImmediate(Core& core, const Op* op) [[clang::preserve_none]] {
  core.Write<T>(op->first, static_cast<T>(op->immediate));
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class T, class Where>
void MoveRegisterMemory(Core& core, const Op* op) [[clang::preserve_none]] {
  T value;
  if (!LoadAt<T, Where>(core, *op, value)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  core.Write<T>(op->first, value);
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class T, class Where>
void MoveMemoryRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!StoreAt<T, Where>(core, *op, core.Read<T>(op->first))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class T, class Where>
void MoveMemoryImmediate(Core& core, const Op* op) [[clang::preserve_none]] {
  if (!StoreAt<T, Where>(core, *op, static_cast<T>(op->immediate))) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  [[clang::musttail]] return op[1].run(core, op + 1);
}

// MOVZX, MOVSX, MOVSXD: From is unsigned or signed.
template <class To, class From>
void ExtendRegister(Core& core, const Op* op) [[clang::preserve_none]] {
  core.Write<To>(
      op->first,
      static_cast<To>(static_cast<From>(core.Read<std::make_unsigned_t<From>>(op->second))));
  [[clang::musttail]] return op[1].run(core, op + 1);
}
template <class To, class From, class Where>
void ExtendMemory(Core& core, const Op* op) [[clang::preserve_none]] {
  std::make_unsigned_t<From> value;
  if (!LoadAt<std::make_unsigned_t<From>, Where>(core, *op, value)) [[unlikely]] {
    [[clang::musttail]] return Abort(core, op);
  }
  core.Write<To>(op->first, static_cast<To>(static_cast<From>(value)));
  [[clang::musttail]] return op[1].run(core, op + 1);
}

template <class T>
void LoadAddress(Core& core, const Op* op) [[clang::preserve_none]] {
  core.Write<T>(op->first, static_cast<T>(EffectiveAddress(core, *op)));
  [[clang::musttail]] return op[1].run(core, op + 1);
}
inline void LoadAddressFlat(Core& core, const Op* op) [[clang::preserve_none]] {
  core.gpr[op->first / 8] = Flat::Address(core, *op);
  [[clang::musttail]] return op[1].run(core, op + 1);
}

}  // namespace pagesaw::cpu
