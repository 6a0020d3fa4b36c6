#include <gtest/gtest.h>

#include <cstdint>

import pagesaw.core.cpu_state;
import pagesaw.cpu.lazy_flags;

namespace pagesaw::cpu {
namespace {

// Flags of an 8-bit addition or subtraction bit by bit, as an adder makes them.
std::uint64_t AdderFlags(unsigned a, unsigned b, bool carry_in, bool subtract) {
  unsigned result = 0;
  bool carry = carry_in;
  bool adjust = false;
  bool before_last = false;
  for (unsigned bit = 0; bit < 8; ++bit) {
    const bool x = (a >> bit & 1) != 0;
    const bool y = (b >> bit & 1) != 0;
    if (bit == 7) before_last = carry;
    if (x != y ? !carry : carry) result |= 1u << bit;
    carry = subtract ? (!x && (y || carry)) || (y && carry) : (x && y) || (carry && (x || y));
    if (bit == 3) adjust = carry;
  }
  unsigned ones = 0;
  for (unsigned bit = 0; bit < 8; ++bit) ones += result >> bit & 1;
  return (carry ? kFlagCf : 0) | (ones % 2 == 0 ? kFlagPf : 0) | (adjust ? kFlagAf : 0) |
         (result == 0 ? kFlagZf : 0) | (result >= 128 ? kFlagSf : 0) |
         (carry != before_last ? kFlagOf : 0);
}

TEST(LazyFlags, AgreeWithABitwiseAdderForEveryPairOfBytes) {
  for (unsigned a = 0; a < 256; ++a) {
    for (unsigned b = 0; b < 256; ++b) {
      for (const bool carry : {false, true}) {
        SCOPED_TRACE(testing::Message() << a << " " << b << " " << carry);
        const auto first = static_cast<std::uint8_t>(a);
        LazyFlags flags;
        flags.Set<std::uint8_t>(carry ? FlagMaker::kAdc : FlagMaker::kAdd,
                                static_cast<std::uint8_t>(a + b + carry), first);
        ASSERT_EQ(flags.All(), AdderFlags(a, b, carry, false));
        flags.Set<std::uint8_t>(carry ? FlagMaker::kSbb : FlagMaker::kSub,
                                static_cast<std::uint8_t>(a - b - carry), first);
        ASSERT_EQ(flags.All(), AdderFlags(a, b, carry, true));
      }
    }
  }
}

TEST(LazyFlags, IncrementAndDecrementKeepCarry) {
  for (unsigned a = 0; a < 256; ++a) {
    for (const bool carry : {false, true}) {
      const auto first = static_cast<std::uint8_t>(a);
      const std::uint64_t kept = carry ? kFlagCf : 0;
      LazyFlags flags;
      flags.SetEager(kept);
      flags.SetKeepingCarry<std::uint8_t>(FlagMaker::kInc, static_cast<std::uint8_t>(a + 1), first);
      ASSERT_EQ(flags.All(), (AdderFlags(a, 1, false, false) & ~kFlagCf) | kept) << a;
      flags.SetEager(kept);
      flags.SetKeepingCarry<std::uint8_t>(FlagMaker::kDec, static_cast<std::uint8_t>(a - 1), first);
      ASSERT_EQ(flags.All(), (AdderFlags(a, 1, false, true) & ~kFlagCf) | kept) << a;
    }
  }
}

TEST(LazyFlags, ShiftsSayCarryAndOverflowThemselves) {
  constexpr std::uint64_t kOfResult = kFlagZf | kFlagSf | kFlagPf;
  for (unsigned result = 0; result < 256; ++result) {
    for (const std::uint64_t told : {std::uint64_t{0}, kFlagCf, kFlagOf, kFlagCf | kFlagOf}) {
      LazyFlags flags;
      flags.SetShift(static_cast<std::uint8_t>(result), (told & kFlagCf) != 0,
                     (told & kFlagOf) != 0);
      const std::uint64_t expected =
          (AdderFlags(result, 0, false, false) & kOfResult) | told | kFlagAf;
      ASSERT_EQ(flags.All(), expected) << result;
      ASSERT_EQ(flags.Test<6>(), ((told & kFlagCf) | (expected & kFlagZf)) != 0) << result;
    }
  }
}

TEST(LazyFlags, LogicClearsCarryAndOverflow) {
  LazyFlags flags;
  flags.SetEager(kArithmeticFlags);
  flags.SetLogic<std::uint32_t>(0x8000'0000);
  EXPECT_EQ(flags.All(), kFlagSf | kFlagPf);
  flags.SetLogic<std::uint64_t>(0);
  EXPECT_EQ(flags.All(), kFlagZf | kFlagPf);
}

TEST(LazyFlags, WideOperandsCompareAsUnsigned) {
  LazyFlags flags;
  const std::uint64_t a = 1;
  const std::uint64_t b = 0xffff'ffff'ffff'ffff;
  flags.Set<std::uint64_t>(FlagMaker::kSub, a - b, a);
  EXPECT_EQ(flags.All(), kFlagCf | kFlagAf);
  flags.Set<std::uint32_t>(FlagMaker::kSub, 0x8000'0000u - 1u, 0x8000'0000u);
  EXPECT_EQ(flags.All(), kFlagOf | kFlagPf | kFlagAf);
}

TEST(LazyFlags, EagerFlagsComeBackAsTheyWereStored) {
  for (std::uint64_t value = 0; value < 0x1000; ++value) {
    LazyFlags flags;
    flags.SetEager(value);
    ASSERT_EQ(flags.All(), value & kArithmeticFlags);
    ASSERT_EQ(flags.Test<4>(), (value & kFlagZf) != 0);
    ASSERT_EQ(flags.Test<15>(),
              (value & kFlagZf) == 0 && ((value & kFlagSf) != 0) == ((value & kFlagOf) != 0));
  }
}

}  // namespace
}  // namespace pagesaw::cpu
