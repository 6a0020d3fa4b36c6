// The walk of linear addresses in every paging mode, over any space that the tables lie in: what
// `cpu_walk` does in guest memory, and a processor through its second stage.
module;
#include <cstdint>
#include <span>
export module pagesaw.mmu.linear_walk;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.walk;

namespace pagesaw::detail {

inline constexpr std::uint64_t kLongRoot = 0x000f'ffff'ffff'f000;  // CR3 51:12
inline constexpr std::uint64_t k32BitRoot = 0xffff'f000;           // CR3 31:12
inline constexpr std::uint64_t kPaeRoot = 0xffff'ffe0;             // CR3 31:5

// A fault met before any table in memory was read.
WalkFault FaultAtRoot(WalkFault::Kind kind, Level level, InputAddress address, Access access,
                      const PageFormat& format);

}  // namespace pagesaw::detail

export namespace pagesaw {

// Walks `request.address` below `pdpte`, one of the four that PAE paging begins with, which is
// found at `at`. It has no rights and no A bit. [intel/vol3] "PDPTE Registers"
template <TableSpace Space>
WalkResult WalkFromPdpte(std::uint64_t pdpte, OutputAddress at, const PageFormat& format,
                         WalkRequest request, Space& space, WalkTrace* trace) {
  const bool present = format.IsPresent(pdpte);
  const bool malformed = present && format.IsMalformed(pdpte, Level::kPdpt);
  if (trace != nullptr) {
    trace->Add({.level = Level::kPdpt,
                .entry_address = at,
                .entry = pdpte,
                .rights = present ? Rights::All() : Rights(),
                .present = present,
                .malformed = malformed});
  }
  if (!present || malformed) {
    return detail::FaultAtRoot(present ? WalkFault::Kind::kMalformed : WalkFault::Kind::kNotPresent,
                               Level::kPdpt, request.address, request.access, format);
  }
  request.table = OutputAddress(pdpte & kLegacy64Layout.address);
  request.level = Level::kPd;
  if (trace == nullptr) return WalkTables<FixedLayout<kLegacy64Layout>>(format, request, space);
  WalkTrace below;
  const WalkResult result =
      WalkTables<FixedLayout<kLegacy64Layout>>(format, request, space, &below);
  for (const WalkStep& step : below.steps()) trace->Add(step);
  return result;
}

// Walks `address` (after segmentation and linear-address masking) for one access of a processor in
// `state`, whose tables look as `format` = MakeLegacyFormat(state) says. Without paging the output
// is the input, and the space's last stage is asked all the same.
// [intel/vol3] "Paging"; [amd/vol2] "Page Translation and Protection"
template <TableSpace Space>
WalkResult WalkLinear(const PagingState& state, const PageFormat& format, InputAddress address,
                      Access access, Space& space, WalkTrace* trace) {
  if (trace != nullptr) trace->Clear();
  const PagingMode mode = state.mode();
  const bool long_mode = mode == PagingMode::k4Level || mode == PagingMode::k5Level;
  if (long_mode ? !IsCanonical(Gva(address.bits()), state.linear_bits())
                : address.bits() >> 32 != 0) {
    return detail::FaultAtRoot(WalkFault::Kind::kNonCanonical, Level::kPt, address, access, format);
  }
  WalkRequest request = {
      .address = address, .access = access, .pkru = state.pkru, .pkrs = state.pkrs};
  switch (mode) {
    case PagingMode::kNone: {
      Translation identity = {.output = OutputAddress(address.bits()), .rights = Rights::All()};
      if (space.Finish(identity, access)) return identity;
      WalkFault fault =
          detail::FaultAtRoot(WalkFault::Kind::kSecondStage, Level::kPt, address, access, format);
      fault.stage_address = identity.output;
      return fault;
    }
    case PagingMode::k32Bit:
      request.table = OutputAddress(state.cr3 & detail::k32BitRoot);
      request.level = Level::kPd;
      return format.layout.large != 0
                 ? WalkTables<FixedLayout<kLegacy32Layout>>(format, request, space, trace)
                 : WalkTables<FixedLayout<kLegacy32NoPseLayout>>(format, request, space, trace);
    case PagingMode::kPae: {
      const unsigned index = static_cast<unsigned>(address.bits() >> 30);
      const OutputAddress at((state.cr3 & detail::kPaeRoot) + std::uint64_t{8} * index);
      return WalkFromPdpte(state.pdptes[index], at, format, request, space, trace);
    }
    case PagingMode::k4Level:
    case PagingMode::k5Level:
      break;
  }
  request.table = OutputAddress(state.cr3 & detail::kLongRoot);
  request.level = mode == PagingMode::k5Level ? Level::kPml5 : Level::kPml4;
  if constexpr (RememberingSpace<Space>) {
    if (trace == nullptr) {
      return WalkFromRemembered<FixedLayout<kLegacy64Layout>>(format, request, space);
    }
  }
  return WalkTables<FixedLayout<kLegacy64Layout>>(format, request, space, trace);
}

}  // namespace pagesaw
