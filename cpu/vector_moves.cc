// Moves of whole vector registers and of halves; what has no form without memory.
module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <cstring>
module pagesaw.cpu.vector;

import pagesaw.cpu.vector_operand;

namespace pagesaw::cpu {
namespace {

template <unsigned kBytes, bool kVex, bool kAligned, Place kPlace>
bool Load(Core& core, const Op& op) {
  if (!VectorReady<kVex>(core)) return false;
  WideVector value;
  if (!LoadVectorFast<kBytes, kAligned, kPlace>(core, op, value.lanes)) return false;
  WriteVector(core, op.first, value.lanes, kVex);
  return true;
}
template <unsigned kBytes, bool kVex, bool kAligned, Place kPlace>
bool Store(Core& core, const Op& op) {
  if (!VectorReady<kVex>(core)) return false;
  const WideVector value = ReadWide(core, op.first);
  return StoreVectorFast<kBytes, kAligned, kPlace>(core, op, value.lanes);
}
template <unsigned kBytes, bool kVex>
bool CopyRegister(Core& core, const Op& op) {
  if (!VectorReady<kVex>(core)) return false;
  WideVector value = ReadWide(core, op.second);
  if constexpr (kBytes == 16) value.lanes[2] = value.lanes[3] = 0;
  WriteVector(core, op.first, value.lanes, kVex);
  return true;
}

// MOVSS, MOVSD, MOVLPS, MOVHPS ... with memory: an element of a register. `kFrom`: the quadword.
template <unsigned kBytes, bool kVex, unsigned kFrom>
bool StoreElement(Core& core, const Op& op) {
  if (!VectorReady<kVex>(core)) return false;
  return StoreVector(core, op, kBytes, false, &core.extended.xmm[op.first][kFrom]);
}
// The rest of the register becomes 0.
template <unsigned kBytes, bool kVex>
bool LoadElement(Core& core, const Op& op) {
  if (!VectorReady<kVex>(core)) return false;
  WideVector value;
  if (!LoadVector(core, op, kBytes, false, value.lanes)) return false;
  WriteVector(core, op.first, value.lanes, kVex);
  return true;
}
// The other quadword comes from register `second`.
template <bool kVex, unsigned kTo>
bool LoadHalf(Core& core, const Op& op) {
  if (!VectorReady<kVex>(core)) return false;
  WideVector value;
  std::memcpy(value.lanes, &core.extended.xmm[op.second], 16);
  if (!LoadVector(core, op, 8, false, &value.lanes[kTo])) return false;
  WriteVector(core, op.first, value.lanes, kVex);
  return true;
}

bool Movntq(Core& core, const Op& op) {
  if (!MmxReady(core)) return false;
  const std::uint64_t value = ReadMmx(core, op.first);
  if (!StoreVector(core, op, 8, false, &value)) return false;
  EnterMmx(core);
  return true;
}

bool BroadcastHalf(Core& core, const Op& op) {
  if (!AvxReady(core)) return false;
  WideVector value;
  if (!LoadVector(core, op, 16, false, value.lanes)) return false;
  std::memcpy(&value.lanes[2], &value.lanes[0], 16);
  WriteVector(core, op.first, value.lanes, true);
  return true;
}

// PSRLDQ and PSLLDQ: each half on its own, by bytes.
template <bool kVex, bool kLeft>
bool ShiftBytes(Core& core, const Op& op) {
  if (!VectorReady<kVex>(core)) return false;
  const WideVector value = ReadWide(core, op.second);
  WideVector result;
  const auto* const from = reinterpret_cast<const std::uint8_t*>(value.lanes);
  auto* const to = reinterpret_cast<std::uint8_t*>(result.lanes);
  const auto count = static_cast<unsigned>(op.immediate & 0xff);
  for (unsigned half = 0; half < op.operand_bytes; half += 16) {
    for (unsigned i = count; i < 16; ++i) {
      if constexpr (kLeft) {
        to[half + i] = from[half + i - count];
      } else {
        to[half + i - count] = from[half + i];
      }
    }
  }
  WriteVector(core, op.first, result.lanes, kVex);
  return true;
}

bool Emms(Core& core, const Op&) {
  if (!MmxReady(core)) return false;
  EnterMmx(core);
  core.extended.ftw = 0;
  return true;
}

// VZEROUPPER and VZEROALL. Outside 64-bit mode the upper eight registers stay.
template <bool kAll>
bool Vzero(Core& core, const Op&) {
  if (!AvxReady(core)) return false;
  const unsigned count = core.code_64() ? 16 : 8;
  for (unsigned i = 0; i < count; ++i) {
    core.extended.ymm_high[i] = {};
    if constexpr (kAll) core.extended.xmm[i] = {};
  }
  return true;
}

// -- selection

template <bool kLoad, unsigned kBytes, bool kVex, bool kAligned>
Handler ByAddress(const Decoded& decoded) {
  const auto choose = []<Place kPlace>() -> Handler {
    if constexpr (kLoad) {
      return &Plain<&Load<kBytes, kVex, kAligned, kPlace>>;
    } else {
      return &Plain<&Store<kBytes, kVex, kAligned, kPlace>>;
    }
  };
  return decoded.address_kind == AddressKind::kFlat
             ? choose.template operator()<Place::kFlat>()
             : choose.template operator()<Place::kSegmented>();
}

template <bool kLoad, bool kAligned>
Handler ByWidth(const Decoded& decoded, bool vex, bool wide) {
  if (!vex) return ByAddress<kLoad, 16, false, kAligned>(decoded);
  return wide ? ByAddress<kLoad, 32, true, kAligned>(decoded)
              : ByAddress<kLoad, 16, true, kAligned>(decoded);
}

Handler WholeMove(const Decoded& decoded, const Op& op, bool vex, bool aligned) {
  const bool wide = vex && decoded.instruction.raw.vex.L != 0;
  if (op.memory == 0) {
    if (!vex) return &Plain<&CopyRegister<16, false>>;
    return wide ? &Plain<&CopyRegister<32, true>> : &Plain<&CopyRegister<16, true>>;
  }
  const bool load = decoded.operands[0].type != ZYDIS_OPERAND_TYPE_MEMORY;
  if (load) {
    return aligned ? ByWidth<true, true>(decoded, vex, wide)
                   : ByWidth<true, false>(decoded, vex, wide);
  }
  return aligned ? ByWidth<false, true>(decoded, vex, wide)
                 : ByWidth<false, false>(decoded, vex, wide);
}

// The form of an instruction on halves or elements: null if it is on registers only.
template <unsigned kBytes>
Handler ElementMove(const Decoded& decoded, const Op& op, bool vex) {
  if (op.memory == 0) return nullptr;
  if (decoded.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
    return vex ? &Plain<&StoreElement<kBytes, true, 0>> : &Plain<&StoreElement<kBytes, false, 0>>;
  }
  return vex ? &Plain<&LoadElement<kBytes, true>> : &Plain<&LoadElement<kBytes, false>>;
}
template <unsigned kHalf>
Handler HalfMove(const Decoded& decoded, Op& op, bool vex) {
  if (op.memory == 0) return nullptr;
  if (decoded.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
    return vex ? &Plain<&StoreElement<8, true, kHalf>> : &Plain<&StoreElement<8, false, kHalf>>;
  }
  if (!vex) op.second = op.first;
  return vex ? &Plain<&LoadHalf<true, kHalf>> : &Plain<&LoadHalf<false, kHalf>>;
}

template <bool kLeft>
Handler ByteShift(const Decoded& decoded, Op& op, bool vex) {
  if (!vex) op.second = op.first;
  op.operand_bytes = static_cast<std::uint8_t>(decoded.operands[0].size / 8);
  return vex ? &Plain<&ShiftBytes<true, kLeft>> : &Plain<&ShiftBytes<false, kLeft>>;
}

Handler Choose(const Decoded& decoded, Op& op, bool vex) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_MOVAPS:
    case ZYDIS_MNEMONIC_MOVAPD:
    case ZYDIS_MNEMONIC_MOVDQA:
    case ZYDIS_MNEMONIC_MOVNTPS:
    case ZYDIS_MNEMONIC_MOVNTPD:
    case ZYDIS_MNEMONIC_MOVNTDQ:
    case ZYDIS_MNEMONIC_MOVNTDQA:
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA:
      return WholeMove(decoded, op, vex, true);
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_VMOVUPS:
    case ZYDIS_MNEMONIC_VMOVUPD:
    case ZYDIS_MNEMONIC_VMOVDQU:
    case ZYDIS_MNEMONIC_VLDDQU:
      return WholeMove(decoded, op, vex, false);
    case ZYDIS_MNEMONIC_MOVSS:
    case ZYDIS_MNEMONIC_VMOVSS:
      return ElementMove<4>(decoded, op, vex);
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_VMOVSD:
      return ElementMove<8>(decoded, op, vex);
    case ZYDIS_MNEMONIC_MOVLPS:
    case ZYDIS_MNEMONIC_MOVLPD:
    case ZYDIS_MNEMONIC_VMOVLPS:
    case ZYDIS_MNEMONIC_VMOVLPD:
      return HalfMove<0>(decoded, op, vex);
    case ZYDIS_MNEMONIC_MOVHPS:
    case ZYDIS_MNEMONIC_MOVHPD:
    case ZYDIS_MNEMONIC_VMOVHPS:
    case ZYDIS_MNEMONIC_VMOVHPD:
      return HalfMove<1>(decoded, op, vex);
    case ZYDIS_MNEMONIC_MOVNTQ:
      return &Plain<&Movntq>;
    case ZYDIS_MNEMONIC_VBROADCASTF128:
    case ZYDIS_MNEMONIC_VBROADCASTI128:
      return &Plain<&BroadcastHalf>;
    case ZYDIS_MNEMONIC_PSRLDQ:
    case ZYDIS_MNEMONIC_VPSRLDQ:
      return ByteShift<false>(decoded, op, vex);
    case ZYDIS_MNEMONIC_PSLLDQ:
    case ZYDIS_MNEMONIC_VPSLLDQ:
      return ByteShift<true>(decoded, op, vex);
    case ZYDIS_MNEMONIC_EMMS:
      return &Plain<&Emms>;
    case ZYDIS_MNEMONIC_VZEROUPPER:
      return &Plain<&Vzero<false>>;
    case ZYDIS_MNEMONIC_VZEROALL:
      return &Plain<&Vzero<true>>;
    default:
      return nullptr;
  }
}

}  // namespace

Selection SelectVectorMove(const Decoded& decoded, Op& op) {
  if (!IsVectorInstruction(decoded)) return {};
  // first: the register that is not in memory's place; second: the other one.
  std::uint8_t numbers[2] = {0, 0};
  unsigned count = 0;
  for (unsigned i = 0; i < decoded.instruction.operand_count_visible; ++i) {
    if (decoded.operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER || count == 2) continue;
    numbers[count++] =
        static_cast<std::uint8_t>(ZydisRegisterGetId(decoded.operands[i].reg.value) & 15);
  }
  const bool vex = decoded.instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
  Op moved = op;
  moved.first = numbers[0];
  moved.second = numbers[1];
  const Handler run = Choose(decoded, moved, vex);
  if (run == nullptr) return {};
  if (!HasVectorFeature(decoded) || op.lock != 0) return UndefinedInstruction();
  op = moved;
  return {run};
}

}  // namespace pagesaw::cpu
