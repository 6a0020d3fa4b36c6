// Operand forms that most instructions share: a value read from, or changed in, a register or
// memory; and the choice of a handler by operand size and place.
module;
#include <Zydis/Zydis.h>
#include <cstddef>
#include <cstdint>
#include <mutex>
export module pagesaw.cpu.operand;

export import pagesaw.cpu.dispatch;
export import pagesaw.cpu.memory;
export import pagesaw.cpu.selection;

export namespace pagesaw::cpu {

// Where an operand is. kFlat: memory in 64-bit mode without a segment base.
enum class Place : std::uint8_t { kRegister, kFlat, kSegmented };

// The offset of general-purpose register `reg` in Core::gpr.
RegisterOffset GprOffset(ZydisRegister reg);
// Stores the registers that the first two operands of the manual's syntax are in `first` and
// `second`, each in the place of its operand, whatever else is memory or immediate.
void PlaceRegisters(const Decoded& decoded, Op& op);
// The segment of the first memory operand, visible or not, that is addressed through `base` at any
// address size; kDs if there is none.
SegmentName SegmentOfImplicit(const Decoded& decoded, Gpr base);

Selection UndefinedInstruction();

// Whether VEX encodings exist in the current mode; raises #UD. Outside 64-bit code only, where the
// bytes do not say. [intel/vol2] "VEX-Encoded GPR Instructions", exceptions of type 13
bool VexIsLegal(Core& core);

// The linear address of the memory operand; fast if it is in the TLB bank. `host` is null if the
// access must take a slow path.
template <class T, Place kPlace>
inline bool LocateForRead(Core& core, const Op& op, std::uint64_t& linear, const std::byte*& host) {
  static_assert(kPlace != Place::kRegister);
  if constexpr (kPlace == Place::kFlat) {
    linear = OperandSum(core, op);
  } else if (!OperandAddress(core, op, sizeof(T), false, linear)) {
    return false;
  }
  const TlbEntry& entry = core.bank->At(linear);
  if (Hits<T>(entry.read_tag, linear)) [[likely]] {
    host = reinterpret_cast<const std::byte*>(linear + entry.addend);
    return true;
  }
  host = nullptr;
  // What the flat form left unchecked: canonical form.
  return kPlace == Place::kSegmented || OperandAddress(core, op, sizeof(T), false, linear);
}

// The same for memory that is read and written at once. With null in `host`, the access is done by
// LoadSlow and then StoreSlow.
template <class T>
inline bool HostOfModified(Core& core, std::uint64_t linear, std::byte*& host) {
  const TlbEntry& entry = core.bank->At(linear);
  if (Hits<T>(entry.write_tag, linear)) [[likely]] {
    host = reinterpret_cast<std::byte*>(linear + entry.addend);
    return true;
  }
  host = nullptr;
  return HostForModify(core, linear, sizeof(T), host);
}

// Reads the operand: register `reg`, or memory.
template <class T, Place kPlace>
inline bool ReadOperand(Core& core, const Op& op, RegisterOffset reg, T& value) {
  if constexpr (kPlace == Place::kRegister) {
    value = core.Read<T>(reg);
    return true;
  } else {
    std::uint64_t linear = 0;
    const std::byte* host = nullptr;
    if (!LocateForRead<T, kPlace>(core, op, linear, host)) [[unlikely]]
      return false;
    if (host != nullptr) [[likely]] {
      value = LoadHost<T>(host);
      return true;
    }
    return LoadSlow(core, linear, &value, sizeof(T), By::kProgram);
  }
}

// Writes it without reading.
template <class T, Place kPlace>
inline bool WriteOperand(Core& core, const Op& op, RegisterOffset reg, T value) {
  if constexpr (kPlace == Place::kRegister) {
    core.Write<T>(reg, value);
    return true;
  } else {
    return StoreOperand<T>(core, op, value);
  }
}

// Replaces the value at `linear` by `change(value, flags)`. Flags change only if the store is made.
template <class T, class Change>
inline bool ModifyMemory(Core& core, std::uint64_t linear, Change change) {
  std::byte* host = nullptr;
  if (!HostOfModified<T>(core, linear, host)) [[unlikely]]
    return false;
  if (host != nullptr) [[likely]] {
    StoreHost<T>(host, change(LoadHost<T>(host), core.flags));
    return true;
  }
  T value;
  if (!LoadSlow(core, linear, &value, sizeof(T), By::kProgram)) return false;
  LazyFlags flags = core.flags;
  value = change(value, flags);
  if (!StoreSlow(core, linear, &value, sizeof(T), By::kProgram)) return false;
  core.flags = flags;
  return true;
}

// The same as one atomic access. `change` may be called several times, and must depend on and
// change nothing but its arguments.
template <class T, class Change>
inline bool ModifyMemoryLocked(Core& core, std::uint64_t linear, Change change) {
  std::byte* host = nullptr;
  if (!HostOfModified<T>(core, linear, host)) [[unlikely]]
    return false;
  if (host == nullptr) {
    const std::unique_lock lock = core.split_lock == nullptr ? std::unique_lock<std::mutex>()
                                                             : std::unique_lock(*core.split_lock);
    return ModifyMemory<T>(core, linear, change);
  }
  T* const target = reinterpret_cast<T*>(host);
  T old = LoadHost<T>(host);
  LazyFlags flags = core.flags;
  while (!__atomic_compare_exchange_n(target, &old, change(old, flags), true, __ATOMIC_SEQ_CST,
                                      __ATOMIC_RELAXED)) {
    flags = core.flags;
  }
  core.flags = flags;
  return true;
}

// Replaces the operand, register `reg` or memory, by `change(value, flags)`.
template <class T, Place kPlace, class Change>
inline bool ModifyOperand(Core& core, const Op& op, RegisterOffset reg, Change change) {
  if constexpr (kPlace == Place::kRegister) {
    core.Write<T>(reg, change(core.Read<T>(reg), core.flags));
    return true;
  } else {
    std::uint64_t linear = 0;
    if (!OperandAddress(core, op, sizeof(T), true, linear)) return false;
    return ModifyMemory<T>(core, linear, change);
  }
}

// `choose.operator()<T>()` for the unsigned T of `bytes` bytes; null for other sizes.
template <class Choose>
inline Handler BySize(unsigned bytes, Choose choose) {
  switch (bytes) {
    case 1:
      return choose.template operator()<std::uint8_t>();
    case 2:
      return choose.template operator()<std::uint16_t>();
    case 4:
      return choose.template operator()<std::uint32_t>();
    case 8:
      return choose.template operator()<std::uint64_t>();
    default:
      return nullptr;
  }
}
// The same for instructions that have no byte form.
template <class Choose>
inline Handler ByWordSize(unsigned bytes, Choose choose) {
  return bytes == 1 ? nullptr : BySize(bytes, [choose]<class T>() -> Handler {
    if constexpr (sizeof(T) == 1) {
      return nullptr;
    } else {
      return choose.template operator()<T>();
    }
  });
}
// `choose.operator()<kPlace>()` for the place of the operand that may be memory.
template <class Choose>
inline Handler ByPlace(const Decoded& decoded, const Op& op, Choose choose) {
  if (!op.memory) return choose.template operator()<Place::kRegister>();
  if (decoded.address_kind == AddressKind::kFlat) return choose.template operator()<Place::kFlat>();
  return choose.template operator()<Place::kSegmented>();
}
// `choose.operator()<T, kPlace>()`.
template <class Choose>
inline Handler BySizeAndPlace(const Decoded& decoded, const Op& op, Choose choose) {
  return BySize(op.operand_bytes, [&]<class T>() -> Handler {
    return ByPlace(decoded, op, [choose]<Place kPlace>() -> Handler {
      return choose.template operator()<T, kPlace>();
    });
  });
}
template <class Choose>
inline Handler ByWordSizeAndPlace(const Decoded& decoded, const Op& op, Choose choose) {
  return ByWordSize(op.operand_bytes, [&]<class T>() -> Handler {
    return ByPlace(decoded, op, [choose]<Place kPlace>() -> Handler {
      return choose.template operator()<T, kPlace>();
    });
  });
}

inline bool EvenParity(std::uint64_t value) {
  return !__builtin_parity(static_cast<unsigned>(value) & 0xff);
}
// ZF, SF and PF of `result`.
template <class T>
inline std::uint64_t ResultFlags(T result) {
  return (result == 0 ? kFlagZf : 0) | ((result >> (sizeof(T) * 8 - 1)) != 0 ? kFlagSf : 0) |
         (EvenParity(result) ? kFlagPf : 0);
}

}  // namespace pagesaw::cpu
