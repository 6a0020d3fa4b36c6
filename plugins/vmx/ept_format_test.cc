#include <gtest/gtest.h>

#include <cstdint>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.plugins.vmx.ept_format;

namespace pagesaw::vmx {
namespace {

// Oracle from the figure "Formats of EPTP and EPT Paging-Structure Entries", bit by bit.
bool OracleReserved(unsigned level, bool large, unsigned bit, unsigned physical_bits,
                    bool pages_1g) {
  if (bit >= 52) return false;
  if (bit >= physical_bits) return true;
  if (level == 1) return false;
  const bool leaf = large && level <= 3;
  if (level >= 4) return bit >= 3 && bit <= 7;
  if (!leaf) return bit >= 3 && bit <= 6;
  if (level == 3 && !pages_1g) return bit == 7;
  const unsigned low_address = level == 3 ? 30 : 21;
  return bit >= 12 && bit < low_address;
}

TEST(EptFormat, ReservedBitsAgreeWithOracle) {
  for (unsigned physical_bits : {36u, 47u, 52u}) {
    for (bool pages_1g : {false, true}) {
      const PageFormat format =
          MakeEptFormat({.physical_bits = physical_bits, .pages_1g = pages_1g});
      for (unsigned level = 1; level <= 5; ++level) {
        for (bool large : {false, true}) {
          for (unsigned bit = 3; bit < 64; ++bit) {
            if (bit >= 3 && bit <= 5 && (level == 1 || large)) continue;  // memory type
            const bool ps = large || bit == 7;
            const std::uint64_t entry = 7 | std::uint64_t{1} << bit | (ps ? 0x80u : 0);
            const bool want = OracleReserved(level, ps, bit, physical_bits, pages_1g) ||
                              (ps && OracleReserved(level, ps, 7, physical_bits, pages_1g));
            EXPECT_EQ(format.IsMalformed(entry, static_cast<Level>(level)), want)
                << "level " << level << " bit " << bit << " large " << large;
          }
        }
      }
    }
  }
}

TEST(EptFormat, MisconfiguredCombinationsOfRightsAndTypes) {
  for (bool execute_only : {false, true}) {
    const PageFormat format = MakeEptFormat({.execute_only = execute_only});
    for (unsigned low = 1; low < 64; ++low) {
      if ((low & 7) == 0) continue;  // not present: never misconfigured
      const unsigned rights = low & 7, type = low >> 3;
      const bool want = rights == 2 || rights == 6 || (rights == 4 && !execute_only) || type == 2 ||
                        type == 3 || type == 7;
      EXPECT_EQ(format.IsMalformed(low, Level::kPt), want) << low;
    }
  }
}

struct RightsRow {
  std::uint64_t bits;
  bool read, write, execute;
};

class EptRights : public testing::TestWithParam<RightsRow> {};

TEST_P(EptRights, AllowWhatTheManualSays) {
  const RightsRow& row = GetParam();
  const PageFormat format = MakeEptFormat({});
  const Rights rights = format.RightsOf(row.bits);
  for (Privilege by : {Privilege::kSupervisor, Privilege::kUser}) {
    EXPECT_EQ(!format.PermissionFault(rights, Access::Read(by)), row.read);
    EXPECT_EQ(!format.PermissionFault(rights, Access::Write(by)), row.write);
    EXPECT_EQ(!format.PermissionFault(rights, Access::Fetch(by)), row.execute);
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, EptRights,
                         testing::Values(RightsRow{1, true, false, false},
                                         RightsRow{3, true, true, false},
                                         RightsRow{4, false, false, true},
                                         RightsRow{5, true, false, true},
                                         RightsRow{7, true, true, true},
                                         // Bit 10 is ignored.
                                         RightsRow{0x401, true, false, false}));

TEST(EptFormat, AnEntryIsPresentByAnyOfItsRightsOnly) {
  const PageFormat format = MakeEptFormat({});
  EXPECT_FALSE(format.IsPresent(~std::uint64_t{7}));
  for (unsigned bit : {1u, 2u, 4u}) EXPECT_TRUE(format.IsPresent(bit));
}

}  // namespace
}  // namespace pagesaw::vmx
