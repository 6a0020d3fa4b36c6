// BT, BTS, BTR, BTC. A bit offset in a register selects bits far from a memory operand.
module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <type_traits>
module pagesaw.cpu.bits;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

enum class Bit : std::uint8_t { kTest, kSet, kReset, kComplement };

// CF is the bit; the other flags stay.
void SetCarry(LazyFlags& flags, bool carry) {
  flags.SetEager((flags.All() & ~kFlagCf) | (carry ? kFlagCf : 0));
}

template <Bit kBit, class T>
T Change(T value, unsigned bit, LazyFlags& flags) {
  const T mask = static_cast<T>(T{1} << bit);
  SetCarry(flags, (value & mask) != 0);
  if constexpr (kBit == Bit::kSet) return static_cast<T>(value | mask);
  if constexpr (kBit == Bit::kReset) return static_cast<T>(value & static_cast<T>(~mask));
  if constexpr (kBit == Bit::kComplement) return static_cast<T>(value ^ mask);
  return value;
}

template <class T>
unsigned BitIn(std::uint64_t offset) {
  return static_cast<unsigned>(offset) & (sizeof(T) * 8 - 1);
}

enum class Offset : std::uint8_t { kImmediate, kRegister };

template <class T, Offset kOffset>
std::uint64_t OffsetOf(const Core& core, const Op& op) {
  return kOffset == Offset::kImmediate ? op.immediate : core.Read<T>(op.second);
}

template <Bit kBit, class T, Offset kOffset>
bool InRegister(Core& core, const Op& op) {
  const unsigned bit = BitIn<T>(OffsetOf<T, kOffset>(core, op));
  const T changed = Change<kBit, T>(core.Read<T>(op.first), bit, core.flags);
  if (kBit != Bit::kTest) core.Write<T>(op.first, changed);
  return true;
}

// The address of the unit that holds the bit. [intel/vol2] "BT", "Bit Base and Bit Offset"
template <class T, Offset kOffset>
std::uint64_t UnitAddress(const Core& core, const Op& op) {
  const std::uint64_t address = EffectiveAddress(core, op);
  if constexpr (kOffset == Offset::kImmediate) return address;
  const std::int64_t offset = static_cast<std::make_signed_t<T>>(core.Read<T>(op.second));
  constexpr unsigned kShift = sizeof(T) == 2 ? 4 : sizeof(T) == 4 ? 5 : 6;
  const std::uint64_t moved = address + static_cast<std::uint64_t>(offset >> kShift) * sizeof(T);
  const unsigned unused = 64 - 8u * op.address_bytes;
  return moved << unused >> unused;
}

template <Bit kBit, class T, Offset kOffset, bool kLocked>
bool InMemory(Core& core, const Op& op) {
  std::uint64_t linear = 0;
  if (!Linear(core, static_cast<SegmentName>(op.segment), UnitAddress<T, kOffset>(core, op),
              sizeof(T), kBit != Bit::kTest, linear)) {
    return false;
  }
  const unsigned bit = BitIn<T>(OffsetOf<T, kOffset>(core, op));
  if constexpr (kBit == Bit::kTest) {
    T value;
    if (!Load<T>(core, linear, value)) return false;
    Change<kBit, T>(value, bit, core.flags);
    return true;
  } else {
    const auto change = [bit](T value, LazyFlags& flags) {
      return Change<kBit, T>(value, bit, flags);
    };
    return kLocked ? ModifyMemoryLocked<T>(core, linear, change)
                   : ModifyMemory<T>(core, linear, change);
  }
}

template <Bit kBit, Offset kOffset>
Selection SelectFor(const Op& op) {
  return {ByWordSize(op.operand_bytes, [&op]<class T>() -> Handler {
    if (!op.memory) return &Plain<&InRegister<kBit, T, kOffset>>;
    return op.lock ? &Plain<&InMemory<kBit, T, kOffset, true>>
                   : &Plain<&InMemory<kBit, T, kOffset, false>>;
  })};
}

template <Bit kBit>
Selection SelectKind(const Decoded& decoded, Op& op) {
  PlaceRegisters(decoded, op);
  return decoded.operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER
             ? SelectFor<kBit, Offset::kRegister>(op)
             : SelectFor<kBit, Offset::kImmediate>(op);
}

}  // namespace

Selection SelectBitTest(const Decoded& decoded, Op& op) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_BT:
      return SelectKind<Bit::kTest>(decoded, op);
    case ZYDIS_MNEMONIC_BTS:
      return SelectKind<Bit::kSet>(decoded, op);
    case ZYDIS_MNEMONIC_BTR:
      return SelectKind<Bit::kReset>(decoded, op);
    case ZYDIS_MNEMONIC_BTC:
      return SelectKind<Bit::kComplement>(decoded, op);
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
