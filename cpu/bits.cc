module;
#include <Zydis/Zydis.h>
#include <cstdint>
module pagesaw.cpu.bits;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

template <class T>
constexpr unsigned kBits = sizeof(T) * 8;

unsigned TrailingZeros(std::uint64_t value) {
  return static_cast<unsigned>(__builtin_ctzll(value));
}
unsigned HighestBit(std::uint64_t value) {
  return 63 - static_cast<unsigned>(__builtin_clzll(value));
}

// ZF says that the source is 0; the register then keeps its value, upper half included. The other
// flags are undefined: PF is of the result, the rest clear. [amd/vol3] "BSF", "BSR"
template <bool kForward, class T, Place kPlace>
bool Scan(Core& core, const Op& op) {
  T source;
  if (!ReadOperand<T, kPlace>(core, op, op.second, source)) return false;
  if (source == 0) {
    core.flags.SetEager(kFlagZf | kFlagPf);
    return true;
  }
  const unsigned found = kForward ? TrailingZeros(source) : HighestBit(source);
  core.Write<T>(op.first, static_cast<T>(found));
  core.flags.SetEager(EvenParity(found) ? kFlagPf : 0);
  return true;
}

// LZCNT and TZCNT: CF says that the source is 0, ZF that the result is. Of the others, which are
// undefined, OF stays.
template <bool kTrailing, class T, Place kPlace>
bool CountZeros(Core& core, const Op& op) {
  T source;
  if (!ReadOperand<T, kPlace>(core, op, op.second, source)) return false;
  T result = kBits<T>;
  if (source != 0) {
    result = static_cast<T>(kTrailing ? TrailingZeros(source) : kBits<T> - 1 - HighestBit(source));
  }
  core.Write<T>(op.first, result);
  core.flags.SetEager((core.flags.overflow() ? kFlagOf : 0) | (source == 0 ? kFlagCf : 0) |
                      (result == 0 ? kFlagZf : 0));
  return true;
}

template <class T, Place kPlace>
bool Popcnt(Core& core, const Op& op) {
  T source;
  if (!ReadOperand<T, kPlace>(core, op, op.second, source)) return false;
  core.Write<T>(op.first, static_cast<T>(__builtin_popcountll(source)));
  core.flags.SetEager(source == 0 ? kFlagZf : 0);
  return true;
}

template <class T>
T Swapped(T value) {
  if constexpr (sizeof(T) == 2) return __builtin_bswap16(value);
  if constexpr (sizeof(T) == 4) return __builtin_bswap32(value);
  return static_cast<T>(__builtin_bswap64(value));
}

// Of a 16-bit register, undefined by the manuals, becomes 0.
template <class T>
bool Bswap(Core& core, const Op& op) {
  core.Write<T>(op.first, sizeof(T) == 2 ? T{0} : Swapped<T>(core.Read<T>(op.first)));
  return true;
}

template <class T>
bool MovbeLoad(Core& core, const Op& op) {
  T value;
  if (!LoadOperand<T>(core, op, value)) return false;
  core.Write<T>(op.first, Swapped<T>(value));
  return true;
}
template <class T>
bool MovbeStore(Core& core, const Op& op) {
  return StoreOperand<T>(core, op, Swapped<T>(core.Read<T>(op.second)));
}

// CRC-32C, bit by bit of the reflected polynomial. [intel/vol2] "CRC32"
template <class T, Place kPlace>
bool Crc32(Core& core, const Op& op) {
  T data;
  if (!ReadOperand<T, kPlace>(core, op, op.second, data)) return false;
  std::uint64_t value = core.Read<std::uint32_t>(op.first);
  for (unsigned byte = 0; byte < sizeof(T); ++byte) {
    value ^= static_cast<std::uint64_t>(data) >> (8 * byte) & 0xff;
    for (unsigned bit = 0; bit < 8; ++bit) {
      value = value >> 1 ^ ((value & 1) != 0 ? 0x82f6'3b78u : 0);
    }
  }
  core.Write<std::uint32_t>(op.first, static_cast<std::uint32_t>(value));
  return true;
}

// ADCX adds through CF alone, ADOX through OF alone.
template <std::uint64_t kFlag, class T, Place kPlace>
bool AddThrough(Core& core, const Op& op) {
  T addend;
  if (!ReadOperand<T, kPlace>(core, op, op.second, addend)) return false;
  const std::uint64_t flags = core.flags.All();
  const unsigned __int128 sum = static_cast<unsigned __int128>(core.Read<T>(op.first)) + addend +
                                ((flags & kFlag) != 0 ? 1 : 0);
  core.Write<T>(op.first, static_cast<T>(sum));
  core.flags.SetEager((flags & ~kFlag) | ((sum >> kBits<T>) != 0 ? kFlag : 0));
  return true;
}

template <bool kForward>
Selection SelectScan(const Decoded& decoded, Op& op) {
  return {ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
    return &Plain<&Scan<kForward, T, kPlace>>;
  })};
}
template <bool kTrailing>
Selection SelectZeros(const Decoded& decoded, Op& op) {
  return {ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
    return &Plain<&CountZeros<kTrailing, T, kPlace>>;
  })};
}
template <std::uint64_t kFlag>
Selection SelectAddThrough(const Decoded& decoded, Op& op) {
  if (!decoded.model->Has(Feature::kAdx)) return UndefinedInstruction();
  return {ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
    return &Plain<&AddThrough<kFlag, T, kPlace>>;
  })};
}

Selection SelectMovbe(const Decoded& decoded, Op& op) {
  if (!decoded.model->Has(Feature::kMovbe)) return UndefinedInstruction();
  const bool load = decoded.operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
  return {ByWordSize(op.operand_bytes, [load]<class T>() -> Handler {
    return load ? &Plain<&MovbeLoad<T>> : &Plain<&MovbeStore<T>>;
  })};
}

Selection SelectPlaced(const Decoded& decoded, Op& op) {
  const auto has = [&](Feature feature) { return decoded.model->Has(feature); };
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_BSF:
      return SelectScan<true>(decoded, op);
    case ZYDIS_MNEMONIC_BSR:
      return SelectScan<false>(decoded, op);
    case ZYDIS_MNEMONIC_TZCNT:  // without the feature, the prefix means nothing
      return has(Feature::kBmi1) ? SelectZeros<true>(decoded, op) : SelectScan<true>(decoded, op);
    case ZYDIS_MNEMONIC_LZCNT:
      return has(Feature::kLzcnt) ? SelectZeros<false>(decoded, op)
                                  : SelectScan<false>(decoded, op);
    case ZYDIS_MNEMONIC_POPCNT:
      if (!has(Feature::kPopcnt)) return UndefinedInstruction();
      return {ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
        return &Plain<&Popcnt<T, kPlace>>;
      })};
    case ZYDIS_MNEMONIC_BSWAP:
      return {ByWordSize(op.operand_bytes, []<class T>() -> Handler { return &Plain<&Bswap<T>>; })};
    case ZYDIS_MNEMONIC_MOVBE:
      return SelectMovbe(decoded, op);
    case ZYDIS_MNEMONIC_CRC32:
      if (!has(Feature::kSse42)) return UndefinedInstruction();
      op.operand_bytes = static_cast<std::uint8_t>(decoded.operands[1].size / 8);
      return {BySizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
        return &Plain<&Crc32<T, kPlace>>;
      })};
    case ZYDIS_MNEMONIC_ADCX:
      return SelectAddThrough<kFlagCf>(decoded, op);
    case ZYDIS_MNEMONIC_ADOX:
      return SelectAddThrough<kFlagOf>(decoded, op);
    default:
      return {};
  }
}

}  // namespace

Selection SelectBits(const Decoded& decoded, Op& op) {
  Op placed = op;
  PlaceRegisters(decoded, placed);
  const Selection selection = SelectPlaced(decoded, placed);
  if (selection.run != nullptr) op = placed;
  return selection;
}

}  // namespace pagesaw::cpu
