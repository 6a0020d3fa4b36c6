module;
#include <cstdint>
#include <span>
module pagesaw.mmu.cpu_walker;

import pagesaw.mmu.legacy_format;

namespace pagesaw {
namespace {

constexpr std::uint64_t kLongRoot = 0x000f'ffff'ffff'f000;  // CR3 51:12
constexpr std::uint64_t k32BitRoot = 0xffff'f000;           // CR3 31:12
constexpr std::uint64_t kPaeRoot = 0xffff'ffe0;             // CR3 31:5

bool Is32Bit(InputAddress address) { return address.bits() >> 32 == 0; }

WalkFault FaultAtRoot(WalkFault::Kind kind, Level level, InputAddress address, Access access,
                      const PageFormat& format) {
  std::uint32_t code = access.code_bits();
  if (!format.reports_fetch) code &= ~PageFaultCode::kFetch;
  if (kind == WalkFault::Kind::kMalformed) {
    code |= PageFaultCode::kPresent | PageFaultCode::kReserved;
  }
  return {.kind = kind, .level = level, .code = PageFaultCode(code), .address = address};
}

}  // namespace

CpuWalker::CpuWalker(const GuestMemory& memory) : CpuWalker(memory, PagingState()) {}

CpuWalker::CpuWalker(const GuestMemory& memory, const PagingState& state) : memory_(&memory) {
  Reset(state);
}

void CpuWalker::Reset(const PagingState& state) {
  state_ = state;
  mode_ = state.mode();
  format_ = MakeLegacyFormat(state);
}

unsigned CpuWalker::root_level() const {
  switch (mode_) {
    case PagingMode::kNone:
      return 0;
    case PagingMode::k32Bit:
      return 2;
    case PagingMode::kPae:
      return 3;
    case PagingMode::k4Level:
      return 4;
    case PagingMode::k5Level:
      return 5;
  }
  return 0;
}

WalkResult CpuWalker::Walk(InputAddress address, Access access) {
  return WalkMode<true>(address, access, nullptr);
}

WalkResult CpuWalker::Inspect(InputAddress address, Access access, WalkTrace* trace) const {
  return WalkMode<false>(address, access, trace);
}

// The PDPTE is a register: it is not read from memory, has no rights and no A bit.
// [intel/vol3] "PDPTE Registers"
template <bool kUpdating>
WalkResult CpuWalker::WalkPae(WalkRequest request, WalkTrace* trace) const {
  const unsigned index = static_cast<unsigned>(request.address.bits() >> 30 & 3);
  const std::uint64_t pdpte = state_.pdptes[index];
  const bool present = format_.IsPresent(pdpte);
  const bool malformed = present && format_.IsMalformed(pdpte, Level::kPdpt);
  WalkStep root = {.level = Level::kPdpt,
                   .entry_address = OutputAddress((state_.cr3 & kPaeRoot) + 8 * index),
                   .entry = pdpte,
                   .rights = present ? Rights::All() : Rights(),
                   .present = present,
                   .malformed = malformed};
  if (trace != nullptr) {
    trace->Clear();
    trace->Add(root);
  }
  if (!present || malformed) {
    return FaultAtRoot(present ? WalkFault::Kind::kMalformed : WalkFault::Kind::kNotPresent,
                       Level::kPdpt, request.address, request.access, format_);
  }
  request.table = OutputAddress(pdpte & kLegacy64Layout.address);
  request.level = Level::kPd;
  GuestTableSpace<kUpdating> space(*memory_);
  if (trace == nullptr) {
    return WalkTables<FixedLayout<kLegacy64Layout>>(format_, request, space);
  }
  WalkTrace below;
  const WalkResult result =
      WalkTables<FixedLayout<kLegacy64Layout>>(format_, request, space, &below);
  for (const WalkStep& step : below.steps()) trace->Add(step);
  return result;
}

template <bool kUpdating>
WalkResult CpuWalker::WalkMode(InputAddress address, Access access, WalkTrace* trace) const {
  if (trace != nullptr) trace->Clear();
  const bool is_address = mode_ == PagingMode::k4Level || mode_ == PagingMode::k5Level
                              ? IsCanonical(Gva(address.bits()), state_.linear_bits())
                              : Is32Bit(address);
  if (!is_address) {
    return FaultAtRoot(WalkFault::Kind::kNonCanonical, Level::kPt, address, access, format_);
  }
  WalkRequest request = {
      .address = address, .access = access, .pkru = state_.pkru, .pkrs = state_.pkrs};
  GuestTableSpace<kUpdating> space(*memory_);
  switch (mode_) {
    case PagingMode::kNone:
      return Translation{.output = OutputAddress(address.bits()), .rights = Rights::All()};
    case PagingMode::k32Bit:
      request.table = OutputAddress(state_.cr3 & k32BitRoot);
      request.level = Level::kPd;
      return format_.layout.large != 0
                 ? WalkTables<FixedLayout<kLegacy32Layout>>(format_, request, space, trace)
                 : WalkTables<FixedLayout<kLegacy32NoPseLayout>>(format_, request, space, trace);
    case PagingMode::kPae:
      return WalkPae<kUpdating>(request, trace);
    case PagingMode::k4Level:
    case PagingMode::k5Level:
      break;
  }
  request.table = OutputAddress(state_.cr3 & kLongRoot);
  request.level = mode_ == PagingMode::k5Level ? Level::kPml5 : Level::kPml4;
  return WalkTables<FixedLayout<kLegacy64Layout>>(format_, request, space, trace);
}

}  // namespace pagesaw
