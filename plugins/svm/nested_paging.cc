module;
#include <cstdint>
module pagesaw.plugins.svm.nested_paging;

import pagesaw.core.address;
import pagesaw.core.paging_state;
import pagesaw.core.register_values;
import pagesaw.mmu.legacy_format;
import pagesaw.plugins.svm.svm_bits;

namespace pagesaw::svm {
namespace {

constexpr std::uint64_t kFinalAddress = std::uint64_t{1} << 32;
constexpr std::uint64_t kGuestTable = std::uint64_t{1} << 33;

PagingMode ModeOf(const CpuState& state) {
  return PagingState{.cr0 = state.cr0, .cr4 = state.cr4, .efer = state.efer}.mode();
}

// A nested access is a user's. Where user pages refuse supervisor-mode fetches, the mode of the
// access itself counts.
bool IsUser(const NestedFault& fault, const PageFormat& format) {
  return !format.user_pages_refuse_supervisor_fetch || fault.stage == Stage::kTable ||
         fault.access.is_user();
}

}  // namespace

bool EnablesNestedPaging(const Vmcb& vmcb, const RegisterLimits& limits) {
  return limits.nested_paging && (vmcb.Get(field::kNestedControl) & kNestedEnable) != 0;
}

bool NestedPagingFits(const Vmcb& vmcb, const CpuState& state, const RegisterLimits& limits) {
  if (!EnablesNestedPaging(vmcb, limits)) return true;
  return (state.cr0 & kCr0Pg) != 0 && vmcb.Get(field::kNestedCr3) >> limits.physical_bits == 0 &&
         IsLegalPat(vmcb.Get(field::kGuestPat));
}

NestedPaging NestedPagingOf(const Vmcb& vmcb, const CpuState& state, const RegisterLimits& limits,
                            bool splits_execute) {
  const PagingMode mode = ModeOf(state);
  const bool no_execute = mode != PagingMode::k32Bit && (state.efer & kEferNxe) != 0;
  const bool split = splits_execute && (vmcb.Get(field::kNestedControl) & kNestedExecuteTrap) != 0;
  const std::uint64_t root = vmcb.Get(field::kNestedCr3);
  NestedPaging nested = {
      .format = MakeLegacyFormat(
          {.mode = mode,
           .features = limits.paging,
           .page_size_extensions = (state.cr4 & kCr4Pse) != 0,
           .permissions = {.second_stage = true, .split_execute = split, .no_execute = no_execute},
           .reports_fetch = no_execute || (state.cr4 & kCr4Smep) != 0}),
      .root = Gpa(root & kLegacy64Layout.address),
      .tables_are_written = true,
      .pdptes_in_memory = true,
      .tag = static_cast<std::uint16_t>(vmcb.Get(field::kAsid)),
      .root_register = root,
      .format_name = split ? "npt-gmet" : "npt"};
  switch (mode) {
    case PagingMode::kNone:
    case PagingMode::k4Level:
      break;
    case PagingMode::k32Bit:
      nested.level = Level::kPd;
      nested.root = Gpa(root & 0xffff'f000);
      break;
    case PagingMode::kPae:
      nested.level = Level::kPdpt;
      nested.root_has_pdptes = true;
      nested.root = Gpa(root & 0xffff'ffe0);
      break;
    case PagingMode::k5Level:
      nested.level = Level::kPml5;
      break;
  }
  return nested;
}

std::uint64_t NestedFaultInfo(const NestedFault& fault, const PageFormat& format) {
  const bool table = fault.stage == Stage::kTable;
  std::uint64_t info = table ? kGuestTable : kFinalAddress;
  if (fault.present || fault.malformed) info |= PageFaultCode::kPresent;
  if (fault.malformed) info |= PageFaultCode::kReserved;
  if (table || fault.access.is_write()) info |= PageFaultCode::kWrite;
  if (IsUser(fault, format)) info |= PageFaultCode::kUser;
  if (!table && fault.access.is_fetch() && format.reports_fetch) info |= PageFaultCode::kFetch;
  return info;
}

}  // namespace pagesaw::svm
