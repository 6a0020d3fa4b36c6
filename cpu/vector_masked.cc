// Moves of the elements that a mask chooses: what is not chosen is not accessed.
module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <cstring>
module pagesaw.cpu.vector;

import pagesaw.cpu.vector_operand;

namespace pagesaw::cpu {
namespace {

constexpr unsigned kMaxBytes = 32;

// Element `index` of a register's lanes as a number.
template <class T>
T Element(const WideVector& from, unsigned index) {
  T value;
  std::memcpy(&value, reinterpret_cast<const char*>(from.lanes) + index * sizeof(T), sizeof(T));
  return value;
}
template <class T>
void SetElement(WideVector& to, unsigned index, T value) {
  std::memcpy(reinterpret_cast<char*>(to.lanes) + index * sizeof(T), &value, sizeof(T));
}
template <class T>
bool Chosen(const WideVector& mask, unsigned index) {
  return Element<T>(mask, index) >> (8 * sizeof(T) - 1) != 0;
}

// Stores the chosen elements at `offset` in the segment of `op`: all of them, or none.
template <class T>
bool StoreChosen(Core& core, const Op& op, std::uint64_t offset, unsigned bytes,
                 const WideVector& mask, const WideVector& value) {
  const auto segment = static_cast<SegmentName>(op.segment);
  const unsigned unused = 64 - 8u * op.address_bytes;
  std::uint64_t linear[kMaxBytes] = {};
  for (unsigned i = 0; i < bytes / sizeof(T); ++i) {
    if (!Chosen<T>(mask, i)) continue;
    const std::uint64_t at = (offset + i * sizeof(T)) << unused >> unused;
    if (!Linear(core, segment, at, sizeof(T), true, linear[i]) ||
        !ProbeWrite(core, linear[i], sizeof(T), By::kProgram)) {
      return false;
    }
  }
  for (unsigned i = 0; i < bytes / sizeof(T); ++i) {
    if (Chosen<T>(mask, i) && !Store<T>(core, linear[i], Element<T>(value, i))) return false;
  }
  return true;
}

// VMASKMOVPS, VPMASKMOVQ ...: `second` is the mask.
template <class T>
bool MaskedLoad(Core& core, const Op& op) {
  if (!AvxReady(core)) return false;
  const WideVector mask = ReadWide(core, op.second);
  const std::uint64_t offset = EffectiveAddress(core, op);
  const unsigned unused = 64 - 8u * op.address_bytes;
  WideVector result;
  for (unsigned i = 0; i < op.operand_bytes / sizeof(T); ++i) {
    if (!Chosen<T>(mask, i)) continue;
    std::uint64_t linear = 0;
    T value;
    if (!Linear(core, static_cast<SegmentName>(op.segment),
                (offset + i * sizeof(T)) << unused >> unused, sizeof(T), false, linear) ||
        !Load<T>(core, linear, value)) {
      return false;
    }
    SetElement<T>(result, i, value);
  }
  WriteVector(core, op.first, result.lanes, true);
  return true;
}
// `first` is the mask.
template <class T>
bool MaskedStore(Core& core, const Op& op) {
  if (!AvxReady(core)) return false;
  return StoreChosen<T>(core, op, EffectiveAddress(core, op), op.operand_bytes,
                        ReadWide(core, op.first), ReadWide(core, op.second));
}

// MASKMOVDQU and MASKMOVQ store the bytes of `first` that `second` chooses at (R)DI.
std::uint64_t DestinationIndex(const Core& core, const Op& op) {
  const unsigned unused = 64 - 8u * op.address_bytes;
  return core.gpr[kRdi] << unused >> unused;
}
template <bool kVex>
bool Maskmovdqu(Core& core, const Op& op) {
  if (!VectorReady<kVex>(core)) return false;
  return StoreChosen<std::uint8_t>(core, op, DestinationIndex(core, op), 16,
                                   ReadWide(core, op.second), ReadWide(core, op.first));
}
bool Maskmovq(Core& core, const Op& op) {
  if (!MmxReady(core)) return false;
  WideVector mask, value;
  mask.lanes[0] = ReadMmx(core, op.second);
  value.lanes[0] = ReadMmx(core, op.first);
  if (!StoreChosen<std::uint8_t>(core, op, DestinationIndex(core, op), 8, mask, value)) {
    return false;
  }
  EnterMmx(core);
  return true;
}

// Gathers elements of type T by indices of type Index. What has been gathered when one faults
// stays, and its mask is gone. [intel/vol2] "VGATHERDPS/VGATHERDPD"
template <class T, class Index>
bool Gather(Core& core, const Op& op) {
  if (!AvxReady(core)) return false;
  const auto index_register = static_cast<unsigned>(op.index);
  const WideVector indices = ReadWide(core, index_register);
  const auto mask_register = static_cast<unsigned>(op.second);
  WideVector mask = ReadWide(core, mask_register);
  WideVector result = ReadWide(core, op.first);
  constexpr unsigned kWidest = sizeof(T) > sizeof(Index) ? sizeof(T) : sizeof(Index);
  const unsigned elements = op.operand_bytes / kWidest;
  const unsigned unused = 64 - 8u * op.address_bytes;
  const bool waits = !core.replay.empty();
  bool done = true;
  for (unsigned i = 0; i < elements && done; ++i) {
    if (Chosen<T>(mask, i)) {
      const auto index = static_cast<std::uint64_t>(std::int64_t{Element<Index>(indices, i)});
      const std::uint64_t offset = core.Read<std::uint64_t>(op.base) + (index << op.scale) +
                                   static_cast<std::uint64_t>(std::int64_t{op.displacement});
      std::uint64_t linear = 0;
      T value;
      done = Linear(core, static_cast<SegmentName>(op.segment), offset << unused >> unused,
                    sizeof(T), false, linear) &&
             Load<T>(core, linear, value);
      if (!done) break;
      SetElement<T>(result, i, value);
    }
    SetElement<T>(mask, i, 0);
  }
  // While answers of devices wait to be taken, the instruction starts again as it was.
  if (!done && waits && core.stop == Stop::kExit) return false;
  if (done) {
    for (unsigned i = elements; i < kMaxBytes / sizeof(T); ++i) SetElement<T>(result, i, 0);
    mask = WideVector();
  }
  WriteVector(core, op.first, result.lanes, true);
  WriteVector(core, mask_register, mask.lanes, true);
  return done;
}

std::uint8_t Number(ZydisRegister reg) {
  return static_cast<std::uint8_t>(ZydisRegisterGetId(reg) & 15);
}

Handler ChooseGather(const Decoded& decoded, Op& op) {
  Handler run = nullptr;
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_VGATHERDPS:
    case ZYDIS_MNEMONIC_VPGATHERDD:
      run = &Plain<&Gather<std::uint32_t, std::int32_t>>;
      break;
    case ZYDIS_MNEMONIC_VGATHERDPD:
    case ZYDIS_MNEMONIC_VPGATHERDQ:
      run = &Plain<&Gather<std::uint64_t, std::int32_t>>;
      break;
    case ZYDIS_MNEMONIC_VGATHERQPS:
    case ZYDIS_MNEMONIC_VPGATHERQD:
      run = &Plain<&Gather<std::uint32_t, std::int64_t>>;
      break;
    case ZYDIS_MNEMONIC_VGATHERQPD:
    case ZYDIS_MNEMONIC_VPGATHERQQ:
      run = &Plain<&Gather<std::uint64_t, std::int64_t>>;
      break;
    default:
      return nullptr;
  }
  op.first = Number(decoded.operands[0].reg.value);
  op.second = Number(decoded.operands[2].reg.value);
  op.index = Number(decoded.operands[1].mem.index);
  op.operand_bytes = decoded.instruction.raw.vex.L != 0 ? 32 : 16;
  return run;
}

Handler ChooseMasked(const Decoded& decoded, Op& op) {
  const bool store = decoded.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
  Handler run = nullptr;
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
      run = store ? &Plain<&MaskedStore<std::uint32_t>> : &Plain<&MaskedLoad<std::uint32_t>>;
      break;
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
      run = store ? &Plain<&MaskedStore<std::uint64_t>> : &Plain<&MaskedLoad<std::uint64_t>>;
      break;
    case ZYDIS_MNEMONIC_MASKMOVDQU:
      run = &Plain<&Maskmovdqu<false>>;
      break;
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
      run = &Plain<&Maskmovdqu<true>>;
      break;
    case ZYDIS_MNEMONIC_MASKMOVQ:
      run = &Plain<&Maskmovq>;
      break;
    default:
      return nullptr;
  }
  if (op.memory == 0) {  // the visible operands are two registers
    op.segment = SegmentOfImplicit(decoded, kRdi);
    op.first = Number(decoded.operands[0].reg.value);
    op.second = Number(decoded.operands[1].reg.value);
    return run;
  }
  op.first = Number(decoded.operands[store ? 1 : 0].reg.value);
  op.second = Number(decoded.operands[store ? 2 : 1].reg.value);
  op.operand_bytes = decoded.instruction.raw.vex.L != 0 ? 32 : 16;
  return run;
}

}  // namespace

Selection SelectMaskedMove(const Decoded& decoded, Op& op) {
  if (!IsVectorInstruction(decoded)) return {};
  Op chosen = op;
  Handler run = ChooseGather(decoded, chosen);
  if (run == nullptr) run = ChooseMasked(decoded, chosen);
  if (run == nullptr) return {};
  if (!HasVectorFeature(decoded) || op.lock != 0) return UndefinedInstruction();
  op = chosen;
  return {run};
}

}  // namespace pagesaw::cpu
