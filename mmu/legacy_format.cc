module;
#include <algorithm>
#include <array>
#include <cstdint>
module pagesaw.mmu.legacy_format;

import pagesaw.core.address;

namespace pagesaw {
namespace {

// Bits high:low.
constexpr std::uint64_t Bits(unsigned high, unsigned low) {
  return low > high ? 0 : (~std::uint64_t{0} >> (63 - high)) & (~std::uint64_t{0} << low);
}

constexpr std::uint64_t kPs = 1u << 7;

using ReservedBits = std::array<std::array<std::uint64_t, kMaxLevels>, 2>;

std::uint64_t& At(ReservedBits& reserved, bool ps, Level level) {
  return reserved[ps ? 1 : 0][Number(level) - 1];
}

std::uint64_t ExecuteDisable(const LegacyFormatInputs& in) {
  return in.permissions.no_execute ? 0 : kLegacy64Layout.no_execute;
}

// [intel/vol3] "Use of the Page-Directory Entry with 4-MByte pages": with m physical bits, bits
// (m-20):13 of the entry are address bits (m-1):32.
ReservedBits Reserved32Bit(const LegacyFormatInputs& in) {
  ReservedBits reserved = {};
  if (!in.page_size_extensions) return reserved;
  const unsigned reach = std::clamp<unsigned>(in.features.pse36_bits, 32, 40);
  At(reserved, true, Level::kPd) = Bits(21, reach - 19);
  return reserved;
}

// [intel/vol3] "PAE Paging"
ReservedBits ReservedPae(const LegacyFormatInputs& in) {
  ReservedBits reserved = {};
  const std::uint64_t high = Bits(62, in.features.physical_bits) | ExecuteDisable(in);
  for (bool ps : {false, true}) {
    At(reserved, ps, Level::kPdpt) = Bits(63, in.features.physical_bits) | Bits(8, 5) | Bits(2, 1);
    At(reserved, ps, Level::kPd) = high;
    At(reserved, ps, Level::kPt) = high;
  }
  At(reserved, true, Level::kPd) |= Bits(20, 13);
  return reserved;
}

// [intel/vol3] "4-Level Paging and 5-Level Paging"; [amd/vol2] "Long-Mode Page Translation"
ReservedBits ReservedLong(const LegacyFormatInputs& in) {
  ReservedBits reserved = {};
  const std::uint64_t high = Bits(51, in.features.physical_bits) | ExecuteDisable(in);
  const std::uint64_t root = high | kPs | (in.features.root_bit8_reserved ? 1u << 8 : 0);
  for (bool ps : {false, true}) {
    At(reserved, ps, Level::kPml5) = root;
    At(reserved, ps, Level::kPml4) = root;
    At(reserved, ps, Level::kPdpt) = high;
    At(reserved, ps, Level::kPd) = high;
    At(reserved, ps, Level::kPt) = high;
  }
  At(reserved, true, Level::kPdpt) |= in.features.gib_pages ? Bits(29, 13) : kPs;
  At(reserved, true, Level::kPd) |= Bits(20, 13);
  return reserved;
}

}  // namespace

PageFormat MakeLegacyFormat(const LegacyFormatInputs& in) {
  PageFormat format;
  format.layout = kLegacy64Layout;
  format.reports_fetch = in.reports_fetch;
  format.shadow_stacks = in.shadow_stacks;
  format.second_stage = in.permissions.second_stage;
  format.user_pages_refuse_supervisor_fetch =
      in.permissions.second_stage && in.permissions.split_execute;
  switch (in.mode) {
    case PagingMode::kNone:
      return format;
    case PagingMode::k32Bit:
      format.layout = in.page_size_extensions ? kLegacy32Layout : kLegacy32NoPseLayout;
      format.reserved = Reserved32Bit(in);
      break;
    case PagingMode::kPae:
      format.reserved = ReservedPae(in);
      break;
    case PagingMode::k4Level:
    case PagingMode::k5Level:
      format.reserved = ReservedLong(in);
      format.protection_key_mask = MakeProtectionKeyMask(in.keys);
      break;
  }
  format.refused = MakePermissionTable(in.permissions);
  return format;
}

PageFormat MakeLegacyFormat(const PagingState& state) {
  const bool smep = (state.cr4 & kCr4Smep) != 0;
  const bool pae = (state.cr4 & kCr4Pae) != 0;
  // 4-byte entries have no bit 63; whatever EFER.NXE says, they are executable.
  const bool no_execute = pae && state.no_execute();
  return MakeLegacyFormat({
      .mode = state.mode(),
      .features = state.features,
      .page_size_extensions = (state.cr4 & kCr4Pse) != 0,
      .permissions = {.split_execute = smep,
                      .smap = (state.cr4 & kCr4Smap) != 0,
                      .write_protect = state.write_protect(),
                      .no_execute = no_execute},
      .keys = {.user_keys = (state.cr4 & kCr4Pke) != 0,
               .supervisor_keys = (state.cr4 & kCr4Pks) != 0,
               .write_protect = state.write_protect()},
      .reports_fetch = smep || no_execute,
      .shadow_stacks = (state.cr4 & kCr4Cet) != 0,
  });
}

PageFormat MakeLegacySpteFormat(unsigned physical_bits, bool smep) {
  PagingFeatures features;
  features.physical_bits = static_cast<std::uint8_t>(physical_bits);
  return MakeLegacyFormat({.features = features, .permissions = {.split_execute = smep}});
}

}  // namespace pagesaw
