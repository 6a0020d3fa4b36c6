// Decimal arithmetic. [intel/vol2] each by its name, with undefined flags clear
module;
#include <Zydis/Zydis.h>
#include <cstdint>
module pagesaw.cpu.legacy;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

constexpr RegisterOffset kAl = kRax * 8, kAx = kRax * 8;

std::uint8_t Al(const Core& core) { return core.Read<std::uint8_t>(kAl); }

template <bool kAdd>
bool AsciiAdjust(Core& core, const Op&) {
  const bool adjust = (Al(core) & 15) > 9 || core.flags.adjust();
  std::uint16_t ax = core.Read<std::uint16_t>(kAx);
  if (adjust) ax = static_cast<std::uint16_t>(kAdd ? ax + 0x106 : ax - 0x106);
  core.Write<std::uint16_t>(kAx, ax & 0xff0f);
  core.flags.SetEager((adjust ? kFlagAf | kFlagCf : 0) |
                      ResultFlags(static_cast<std::uint8_t>(ax & 15)));
  return true;
}

template <bool kAdd>
bool DecimalAdjust(Core& core, const Op&) {
  const std::uint8_t old = Al(core);
  std::uint8_t al = old;
  bool carry = core.flags.carry();
  const bool low = (old & 15) > 9 || core.flags.adjust();
  const bool high = old > 0x99 || carry;
  if (low) {
    // A borrow of the lower digit is a carry of the whole.
    if (!kAdd && old < 6) carry = true;
    al = static_cast<std::uint8_t>(kAdd ? al + 6 : al - 6);
  }
  if (high) {
    al = static_cast<std::uint8_t>(kAdd ? al + 0x60 : al - 0x60);
    carry = true;
  }
  core.Write<std::uint8_t>(kAl, al);
  core.flags.SetEager((low ? kFlagAf : 0) | (carry ? kFlagCf : 0) | ResultFlags(al));
  return true;
}

bool Aam(Core& core, const Op& op) {
  const auto base = static_cast<std::uint8_t>(op.immediate);
  if (base == 0) return core.Raise(kDe);
  const unsigned al = Al(core);
  core.Write<std::uint16_t>(kAx, static_cast<std::uint16_t>(al / base << 8 | al % base));
  core.flags.SetEager(ResultFlags(static_cast<std::uint8_t>(al % base)));
  return true;
}

bool Aad(Core& core, const Op& op) {
  const unsigned ax = core.Read<std::uint16_t>(kAx);
  const auto al = static_cast<std::uint8_t>(ax + (ax >> 8) * op.immediate);
  core.Write<std::uint16_t>(kAx, al);
  core.flags.SetEager(ResultFlags(al));
  return true;
}

bool Salc(Core& core, const Op&) {
  core.Write<std::uint8_t>(kAl, core.flags.carry() ? 0xff : 0);
  return true;
}

}  // namespace

Selection SelectDecimal(const Decoded& decoded, Op&) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_AAA:
      return {&Plain<&AsciiAdjust<true>>};
    case ZYDIS_MNEMONIC_AAS:
      return {&Plain<&AsciiAdjust<false>>};
    case ZYDIS_MNEMONIC_AAM:
      return {&Plain<&Aam>};
    case ZYDIS_MNEMONIC_AAD:
      return {&Plain<&Aad>};
    case ZYDIS_MNEMONIC_DAA:
      return {&Plain<&DecimalAdjust<true>>};
    case ZYDIS_MNEMONIC_DAS:
      return {&Plain<&DecimalAdjust<false>>};
    case ZYDIS_MNEMONIC_SALC:
      return {&Plain<&Salc>};
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
