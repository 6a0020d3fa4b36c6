// The arithmetic flags, kept as the operation that made them and computed only when something asks.
module;
#include <cstdint>
#include <type_traits>
export module pagesaw.cpu.lazy_flags;

import pagesaw.core.cpu_state;

export namespace pagesaw::cpu {

inline constexpr std::uint64_t kArithmeticFlags =
    kFlagCf | kFlagPf | kFlagAf | kFlagZf | kFlagSf | kFlagOf;

// What made the flags. kEager: they stand in `eager`. kShift: CF, OF and AF do. The others derive
// from `result` and `source`, the first operand, at the operand size.
enum class FlagMaker : std::uint8_t { kEager, kLogic, kAdd, kAdc, kSub, kSbb, kInc, kDec, kShift };

class LazyFlags {
 public:
  // Records an operation of type T (unsigned). kAdc and kSbb: with a carry in of 1; without, they
  // are kAdd and kSub. kInc and kDec keep CF.
  template <class T>
  inline void Set(FlagMaker maker, T result, T source) {
    result_ = static_cast<std::int64_t>(static_cast<std::make_signed_t<T>>(result));
    source_ = static_cast<std::int64_t>(static_cast<std::make_signed_t<T>>(source));
    tag_ = static_cast<std::uint16_t>(sizeof(T) << 8 | static_cast<unsigned>(maker));
  }
  template <class T>
  inline void SetLogic(T result) {
    result_ = static_cast<std::int64_t>(static_cast<std::make_signed_t<T>>(result));
    tag_ = static_cast<std::uint16_t>(sizeof(T) << 8 | static_cast<unsigned>(FlagMaker::kLogic));
  }
  // ZF, SF and PF of `result`; AF set.
  template <class T>
  inline void SetShift(T result, bool carry, bool overflow) {
    eager_ = kFlagAf | (carry ? kFlagCf : 0) | (overflow ? kFlagOf : 0);
    result_ = static_cast<std::int64_t>(static_cast<std::make_signed_t<T>>(result));
    tag_ = static_cast<std::uint16_t>(sizeof(T) << 8 | static_cast<unsigned>(FlagMaker::kShift));
  }
  // INC and DEC: CF stays what it was.
  template <class T>
  inline void SetKeepingCarry(FlagMaker maker, T result, T source) {
    eager_ = carry() ? kFlagCf : 0;
    Set(maker, result, source);
  }
  // Stores all six flags as they stand in `rflags`.
  inline void SetEager(std::uint64_t rflags) {
    eager_ = rflags & kArithmeticFlags;
    result_ = 0;
    tag_ = static_cast<std::uint16_t>(FlagMaker::kEager);
  }

  inline bool zero() const {
    return maker() == FlagMaker::kEager ? (eager_ & kFlagZf) != 0 : result_ == 0;
  }
  inline bool sign() const {
    return maker() == FlagMaker::kEager ? (eager_ & kFlagSf) != 0 : result_ < 0;
  }
  inline bool parity() const {
    return maker() == FlagMaker::kEager
               ? (eager_ & kFlagPf) != 0
               : (__builtin_popcount(static_cast<unsigned>(result_) & 0xff) & 1) == 0;
  }
  inline bool carry() const {
    // Operands are sign-extended alike, so that an unsigned comparison of the extended values is
    // that of the operands.
    const auto result = static_cast<std::uint64_t>(result_);
    const auto source = static_cast<std::uint64_t>(source_);
    switch (maker()) {
      case FlagMaker::kLogic:
        return false;
      case FlagMaker::kAdd:
        return result < source;
      case FlagMaker::kAdc:
        return result <= source;
      case FlagMaker::kSub:
        return result > source;
      case FlagMaker::kSbb:
        return result >= source;
      default:
        return (eager_ & kFlagCf) != 0;
    }
  }
  inline bool overflow() const {
    const std::int64_t second = Second();
    switch (maker()) {
      case FlagMaker::kLogic:
        return false;
      case FlagMaker::kAdd:
      case FlagMaker::kAdc:
      case FlagMaker::kInc:
        return ((source_ ^ result_) & (second ^ result_)) < 0;
      case FlagMaker::kSub:
      case FlagMaker::kSbb:
      case FlagMaker::kDec:
        return ((source_ ^ second) & (source_ ^ result_)) < 0;
      default:
        return (eager_ & kFlagOf) != 0;
    }
  }
  inline bool adjust() const {
    if (maker() == FlagMaker::kEager || maker() == FlagMaker::kShift) {
      return (eager_ & kFlagAf) != 0;
    }
    if (maker() == FlagMaker::kLogic) return false;
    return ((source_ ^ Second() ^ result_) & 0x10) != 0;
  }

  // All six flags as they stand in RFLAGS.
  inline std::uint64_t All() const {
    if (maker() == FlagMaker::kEager) return eager_;
    return (carry() ? kFlagCf : 0) | (parity() ? kFlagPf : 0) | (adjust() ? kFlagAf : 0) |
           (zero() ? kFlagZf : 0) | (sign() ? kFlagSf : 0) | (overflow() ? kFlagOf : 0);
  }

  // Condition code 0 to 15 of Jcc, SETcc and CMOVcc. [intel/vol1] "EFLAGS Condition Codes"
  template <unsigned kCode>
  inline bool Test() const {
    bool value = false;
    if constexpr ((kCode >> 1) == 0) value = overflow();
    if constexpr ((kCode >> 1) == 1) value = carry();
    if constexpr ((kCode >> 1) == 2) value = zero();
    if constexpr ((kCode >> 1) == 3) value = carry() || zero();
    if constexpr ((kCode >> 1) == 4) value = sign();
    if constexpr ((kCode >> 1) == 5) value = parity();
    if constexpr ((kCode >> 1) == 6) value = sign() != overflow();
    if constexpr ((kCode >> 1) == 7) value = zero() || sign() != overflow();
    return value != ((kCode & 1) != 0);
  }

 private:
  inline FlagMaker maker() const { return static_cast<FlagMaker>(tag_ & 0xff); }

  // The second operand, sign-extended from the operand size.
  inline std::int64_t Second() const {
    const auto result = static_cast<std::uint64_t>(result_);
    const auto source = static_cast<std::uint64_t>(source_);
    std::uint64_t second = 0;
    switch (maker()) {
      case FlagMaker::kAdd:
        second = result - source;
        break;
      case FlagMaker::kAdc:
        second = result - source - 1;
        break;
      case FlagMaker::kSub:
        second = source - result;
        break;
      case FlagMaker::kSbb:
        second = source - result - 1;
        break;
      default:
        second = 1;
        break;
    }
    const unsigned unused = 64 - (tag_ >> 8) * 8u;
    return static_cast<std::int64_t>(second << (unused & 63)) >> (unused & 63);
  }

  std::int64_t result_ = 0;  // sign-extended from the operand size
  std::int64_t source_ = 0;
  std::uint64_t eager_ = 0;
  std::uint16_t tag_ = 0;  // operand bytes << 8 | maker
};

}  // namespace pagesaw::cpu
