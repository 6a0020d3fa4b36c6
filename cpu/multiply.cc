module;
#include <Zydis/Zydis.h>
#include <cstdint>
#include <type_traits>
module pagesaw.cpu.multiply;

import pagesaw.cpu.operand;

namespace pagesaw::cpu {
namespace {

constexpr RegisterOffset kAl = kRax * 8, kAh = kRax * 8 + 1, kDx = kRdx * 8;

// The type twice as wide.
template <class T>
struct Double {
  using Type = std::conditional_t<
      sizeof(T) == 1, std::uint16_t,
      std::conditional_t<sizeof(T) == 2, std::uint32_t,
                         std::conditional_t<sizeof(T) == 4, std::uint64_t, unsigned __int128>>>;
};
template <class T>
using Wide = typename Double<T>::Type;
// std::make_signed does not know __int128 everywhere.
template <class T>
using Signed = typename std::conditional_t<sizeof(T) == 16, std::type_identity<__int128>,
                                           std::make_signed<T>>::type;

// CF and OF say that the upper half is needed; the others are undefined, and stay.
void SetProductFlags(LazyFlags& flags, bool wide) {
  flags.SetEager((flags.All() & ~(kFlagCf | kFlagOf)) | (wide ? kFlagCf | kFlagOf : 0));
}

// The accumulator twice as wide as T: AX, or DX:AX and its wider kin.
template <class T>
Wide<T> WideAccumulator(const Core& core) {
  const T low = core.Read<T>(kAl);
  const T high = core.Read<T>(sizeof(T) == 1 ? kAh : kDx);
  return static_cast<Wide<T>>(static_cast<Wide<T>>(high) << (sizeof(T) * 8) | low);
}
template <class T>
void SetHalves(Core& core, T low, T high) {
  core.Write<T>(kAl, low);
  core.Write<T>(sizeof(T) == 1 ? kAh : kDx, high);
}

template <class T>
Wide<T> UnsignedProduct(T a, T b) {
  return static_cast<Wide<T>>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b));
}
template <class T>
Wide<T> SignedProduct(T a, T b) {
  using SignedWide = Signed<Wide<T>>;
  return static_cast<Wide<T>>(static_cast<SignedWide>(static_cast<Signed<T>>(a)) *
                              static_cast<SignedWide>(static_cast<Signed<T>>(b)));
}
template <class T>
T Upper(Wide<T> value) {
  return static_cast<T>(value >> (sizeof(T) * 8));
}
// Whether a signed product does not fit T.
template <class T>
bool NeedsUpper(Wide<T> product) {
  const Signed<T> low = static_cast<Signed<T>>(static_cast<T>(product));
  return static_cast<Wide<T>>(static_cast<Signed<Wide<T>>>(low)) != product;
}

template <class T, Place kPlace>
bool Mul(Core& core, const Op& op) {
  T factor;
  if (!ReadOperand<T, kPlace>(core, op, op.first, factor)) return false;
  const Wide<T> product = UnsignedProduct<T>(core.Read<T>(kAl), factor);
  SetHalves<T>(core, static_cast<T>(product), Upper<T>(product));
  SetProductFlags(core.flags, Upper<T>(product) != 0);
  return true;
}

template <class T, Place kPlace>
bool ImulWide(Core& core, const Op& op) {
  T factor;
  if (!ReadOperand<T, kPlace>(core, op, op.first, factor)) return false;
  const Wide<T> product = SignedProduct<T>(core.Read<T>(kAl), factor);
  SetHalves<T>(core, static_cast<T>(product), Upper<T>(product));
  SetProductFlags(core.flags, NeedsUpper<T>(product));
  return true;
}

// register = register * r/m
template <class T, Place kPlace>
bool ImulTwo(Core& core, const Op& op) {
  T factor;
  if (!ReadOperand<T, kPlace>(core, op, op.second, factor)) return false;
  const Wide<T> product = SignedProduct<T>(core.Read<T>(op.first), factor);
  core.Write<T>(op.first, static_cast<T>(product));
  SetProductFlags(core.flags, NeedsUpper<T>(product));
  return true;
}

// register = r/m * immediate
template <class T, Place kPlace>
bool ImulThree(Core& core, const Op& op) {
  T factor;
  if (!ReadOperand<T, kPlace>(core, op, op.second, factor)) return false;
  const Wide<T> product = SignedProduct<T>(factor, static_cast<T>(op.immediate));
  core.Write<T>(op.first, static_cast<T>(product));
  SetProductFlags(core.flags, NeedsUpper<T>(product));
  return true;
}

// All flags are undefined: AF is set, CF and OF stay.
void SetQuotientFlags(LazyFlags& flags) {
  flags.SetEager((flags.All() & (kFlagCf | kFlagOf)) | kFlagAf);
}

template <class T, Place kPlace>
bool Div(Core& core, const Op& op) {
  T divisor;
  if (!ReadOperand<T, kPlace>(core, op, op.first, divisor)) return false;
  const Wide<T> dividend = WideAccumulator<T>(core);
  // The quotient fits exactly if the divisor exceeds the upper half.
  if (Upper<T>(dividend) >= divisor) return core.Raise(kDe);
  SetHalves<T>(core, static_cast<T>(dividend / divisor), static_cast<T>(dividend % divisor));
  SetQuotientFlags(core.flags);
  return true;
}

template <class T, Place kPlace>
bool Idiv(Core& core, const Op& op) {
  T divisor;
  if (!ReadOperand<T, kPlace>(core, op, op.first, divisor)) return false;
  const Wide<T> dividend = WideAccumulator<T>(core);
  constexpr Wide<T> kTop = static_cast<Wide<T>>(Wide<T>{1} << (sizeof(T) * 16 - 1));
  const bool negative = (dividend & kTop) != 0;
  const bool divisor_negative = static_cast<Signed<T>>(divisor) < 0;
  const Wide<T> magnitude = static_cast<Wide<T>>(negative ? Wide<T>{0} - dividend : dividend);
  const T by = static_cast<T>(divisor_negative ? T{0} - divisor : divisor);
  if (Upper<T>(magnitude) >= by) return core.Raise(kDe);
  const T quotient = static_cast<T>(magnitude / by);
  const T remainder = static_cast<T>(magnitude % by);
  const bool below_zero = negative != divisor_negative;
  constexpr T kMinimum = static_cast<T>(T{1} << (sizeof(T) * 8 - 1));
  if (below_zero ? quotient > kMinimum : quotient >= kMinimum) return core.Raise(kDe);
  SetHalves<T>(core, static_cast<T>(below_zero ? T{0} - quotient : quotient),
               static_cast<T>(negative ? T{0} - remainder : remainder));
  SetQuotientFlags(core.flags);
  return true;
}

// `first` receives the upper half, `immediate` names the register of the lower one. If they are the
// same, the upper half stands. [intel/vol2] "MULX"
template <class T, Place kPlace>
bool Mulx(Core& core, const Op& op) {
  T factor;
  if (!ReadOperand<T, kPlace>(core, op, op.second, factor)) return false;
  const Wide<T> product = UnsignedProduct<T>(core.Read<T>(kDx), factor);
  core.Write<T>(static_cast<RegisterOffset>(op.immediate), static_cast<T>(product));
  core.Write<T>(op.first, Upper<T>(product));
  return true;
}
template <class T, Place kPlace>
bool MulxLegacy(Core& core, const Op& op) {
  return VexIsLegal(core) && Mulx<T, kPlace>(core, op);
}

Selection SelectImul(const Decoded& decoded, Op& op) {
  PlaceRegisters(decoded, op);
  switch (decoded.instruction.operand_count_visible) {
    case 1:
      return {BySizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
        return &Plain<&ImulWide<T, kPlace>>;
      })};
    case 2:
      return {ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
        return &Plain<&ImulTwo<T, kPlace>>;
      })};
    default:
      return {ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
        return &Plain<&ImulThree<T, kPlace>>;
      })};
  }
}

Selection SelectMulx(const Decoded& decoded, Op& op) {
  if (!decoded.model->Has(Feature::kBmi2)) return UndefinedInstruction();
  op.first = GprOffset(decoded.operands[0].reg.value);
  op.immediate = GprOffset(decoded.operands[1].reg.value);
  if (!op.memory) op.second = GprOffset(decoded.operands[2].reg.value);
  if (decoded.code_size == CodeSize::k64) {
    return {ByWordSizeAndPlace(
        decoded, op, []<class T, Place kPlace>() -> Handler { return &Plain<&Mulx<T, kPlace>>; })};
  }
  return {ByWordSizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
    return &Plain<&MulxLegacy<T, kPlace>>;
  })};
}

}  // namespace

Selection SelectMultiply(const Decoded& decoded, Op& op) {
  switch (decoded.instruction.mnemonic) {
    case ZYDIS_MNEMONIC_MUL:
      PlaceRegisters(decoded, op);
      return {BySizeAndPlace(
          decoded, op, []<class T, Place kPlace>() -> Handler { return &Plain<&Mul<T, kPlace>>; })};
    case ZYDIS_MNEMONIC_IMUL:
      return SelectImul(decoded, op);
    case ZYDIS_MNEMONIC_DIV:
      PlaceRegisters(decoded, op);
      return {BySizeAndPlace(
          decoded, op, []<class T, Place kPlace>() -> Handler { return &Plain<&Div<T, kPlace>>; })};
    case ZYDIS_MNEMONIC_IDIV:
      PlaceRegisters(decoded, op);
      return {BySizeAndPlace(decoded, op, []<class T, Place kPlace>() -> Handler {
        return &Plain<&Idiv<T, kPlace>>;
      })};
    case ZYDIS_MNEMONIC_MULX:
      return SelectMulx(decoded, op);
    default:
      return {};
  }
}

}  // namespace pagesaw::cpu
