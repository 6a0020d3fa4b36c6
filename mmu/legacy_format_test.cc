#include <gtest/gtest.h>

#include <cstdint>
#include <string>

import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.mmu.legacy_format;

namespace pagesaw {
namespace {

// A description of one bit of one present entry, and what the manuals' figures say of it.
struct Question {
  PagingMode mode = PagingMode::kNone;
  unsigned level = 1;
  bool ps = false;
  unsigned bit = 0;
  unsigned physical_bits = 0;
  bool nxe = false, gib_pages = false, pse = false, root_bit8 = false;
  unsigned pse36_bits = 0;
};

// Is `bit` reserved? Written bit by bit from the figures "Formats of CR3 and Paging-Structure
// Entries", sharing nothing with the masks.
bool OracleReserved(const Question& q) {
  const auto in = [&q](unsigned high, unsigned low) { return q.bit >= low && q.bit <= high; };
  if (q.mode == PagingMode::k32Bit) {
    if (q.level == 1 || !q.pse || !q.ps) return false;
    if (q.bit == 21) return true;
    // Bit 13 is address bit 32, and so on up to bit 20.
    return in(20, 13) && q.bit - 13 + 32 >= q.pse36_bits;
  }
  const bool above_physical = q.bit >= q.physical_bits;
  if (q.mode == PagingMode::kPae) {
    if (q.level == 3) return above_physical || in(2, 1) || in(8, 5);
    if (q.bit == 63) return !q.nxe;
    if (above_physical) return true;
    return q.level == 2 && q.ps && in(20, 13);
  }
  if (q.bit == 63) return !q.nxe;
  if (q.bit >= 52) return false;
  if (above_physical) return true;
  switch (q.level) {
    case 5:
    case 4:
      return q.bit == 7 || (q.bit == 8 && q.root_bit8);
    case 3:
      if (!q.ps) return false;
      return q.gib_pages ? in(29, 13) : q.bit == 7;
    case 2:
      return q.ps && in(20, 13);
    default:
      return false;
  }
}

PageFormat FormatFor(const Question& q) {
  PagingState state;
  state.cr0 = kCr0Pg | kCr0Pe;
  if (q.pse) state.cr4 |= kCr4Pse;
  if (q.mode != PagingMode::k32Bit) state.cr4 |= kCr4Pae;
  if (q.mode == PagingMode::k5Level) state.cr4 |= kCr4La57;
  if (q.mode == PagingMode::k4Level || q.mode == PagingMode::k5Level) state.efer |= kEferLma;
  if (q.nxe) state.efer |= kEferNxe;
  state.features.physical_bits = static_cast<std::uint8_t>(q.physical_bits);
  state.features.gib_pages = q.gib_pages;
  state.features.root_bit8_reserved = q.root_bit8;
  state.features.pse36_bits = static_cast<std::uint8_t>(q.pse36_bits);
  return MakeLegacyFormat(state);
}

class LegacyReservedBits : public testing::TestWithParam<PagingMode> {};

TEST_P(LegacyReservedBits, AgreeWithOracleForEveryBitLevelAndFeature) {
  const PagingMode mode = GetParam();
  const unsigned levels = mode == PagingMode::k32Bit    ? 2
                          : mode == PagingMode::kPae    ? 3
                          : mode == PagingMode::k4Level ? 4
                                                        : 5;
  const unsigned entry_bits = mode == PagingMode::k32Bit ? 32 : 64;
  for (unsigned physical_bits : {32u, 36u, 39u, 40u, 46u, 48u, 51u, 52u}) {
    for (unsigned features = 0; features < 16; ++features) {
      for (unsigned pse36_bits : {32u, 36u, 39u, 40u}) {
        Question q = {.mode = mode,
                      .physical_bits = physical_bits,
                      .nxe = (features & 1) != 0,
                      .gib_pages = (features & 2) != 0,
                      .pse = (features & 4) != 0,
                      .root_bit8 = (features & 8) != 0,
                      .pse36_bits = pse36_bits};
        const PageFormat format = FormatFor(q);
        for (q.level = 1; q.level <= levels; ++q.level) {
          for (bool ps : {false, true}) {
            for (q.bit = 1; q.bit < entry_bits; ++q.bit) {
              q.ps = ps || q.bit == 7;
              const std::uint64_t entry =
                  1 | std::uint64_t{1} << q.bit | (q.ps ? std::uint64_t{1} << 7 : 0);
              // Bit 7 itself may be what is reserved, whichever bit is asked about.
              Question seven = q;
              seven.bit = 7;
              const bool want = OracleReserved(q) || (q.ps && OracleReserved(seven));
              ASSERT_EQ(format.IsMalformed(entry, static_cast<Level>(q.level)), want)
                  << "level " << q.level << " bit " << q.bit << " ps " << q.ps << " M "
                  << physical_bits << " features " << features << " pse36 " << pse36_bits;
            }
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, LegacyReservedBits,
                         testing::Values(PagingMode::k32Bit, PagingMode::kPae, PagingMode::k4Level,
                                         PagingMode::k5Level));

TEST(LegacyFormat, HasKnownMasks) {
  PagingState state;
  state.cr0 = kCr0Pg | kCr0Pe;
  state.cr4 = kCr4Pae;
  state.efer = kEferLma;
  state.features.physical_bits = 46;
  const PageFormat format = MakeLegacyFormat(state);
  EXPECT_EQ(format.reserved[1][3], 0x800f'c000'0000'0080u);
  EXPECT_EQ(format.reserved[0][2], 0x800f'c000'0000'0000u);
  EXPECT_EQ(format.reserved[1][2], 0x800f'c000'3fff'e000u);
  EXPECT_EQ(format.reserved[1][1], 0x800f'c000'001f'e000u);
}

TEST(LegacyFormat, FourMegabytePagesNeedPse) {
  PagingState state;
  state.cr0 = kCr0Pg | kCr0Pe;
  EXPECT_FALSE(MakeLegacyFormat(state).IsLarge(0x81, Level::kPd));
  state.cr4 = kCr4Pse;
  EXPECT_TRUE(MakeLegacyFormat(state).IsLarge(0x81, Level::kPd));
}

TEST(LegacyFormat, FetchIsReportedWithSmepOrWithNoExecute) {
  PagingState state;
  state.cr0 = kCr0Pg | kCr0Pe;
  EXPECT_FALSE(MakeLegacyFormat(state).reports_fetch);
  state.efer = kEferNxe;
  EXPECT_FALSE(MakeLegacyFormat(state).reports_fetch) << "NXE has no meaning without PAE";
  state.cr4 = kCr4Pae;
  EXPECT_TRUE(MakeLegacyFormat(state).reports_fetch);
  state.efer = 0;
  EXPECT_FALSE(MakeLegacyFormat(state).reports_fetch);
  state.cr4 = kCr4Smep;
  EXPECT_TRUE(MakeLegacyFormat(state).reports_fetch);
}

TEST(LegacyFormat, ProtectionKeysCountInLongModeOnly) {
  PagingState state;
  state.cr0 = kCr0Pg | kCr0Pe | kCr0Wp;
  state.cr4 = kCr4Pae | kCr4Pke;
  EXPECT_EQ(MakeLegacyFormat(state).protection_key_mask, 0u);
  state.efer = kEferLma;
  EXPECT_EQ(MakeLegacyFormat(state).protection_key_mask, 0xdd00u);
}

TEST(LegacyFormat, RefusesNothingWithoutPaging) {
  const PageFormat format = MakeLegacyFormat(PagingState());
  for (std::uint16_t row : format.refused) EXPECT_EQ(row, 0);
}

}  // namespace
}  // namespace pagesaw
