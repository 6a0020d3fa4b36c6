module;
#include <array>
#include <cstddef>
#include <cstdint>
module pagesaw.tests.mmu.nesting;

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;
import pagesaw.plugins.mbec.split_formats;
import pagesaw.plugins.svm.nested_paging;
import pagesaw.plugins.svm.npt_format;
import pagesaw.plugins.svm.vmcb;
import pagesaw.plugins.vmx.ept;
import pagesaw.plugins.vmx.ept_format;

namespace pagesaw {
namespace {

constexpr unsigned kHostBits = 52;
constexpr std::uint64_t kNoMemory = 0x5000'0000;

std::uint64_t RootOf(unsigned level, unsigned tables_of_level, Choices& choices) {
  if (choices.Chance(40)) return kNoMemory;
  const std::uint64_t first = std::uint64_t{5 - level} * tables_of_level;
  return (first + choices.Below(tables_of_level)) << 12;
}

Nesting AnyEpt(const NestingKind& kind, const PagingFeatures& features, Choices habit,
               unsigned tables_of_level, Choices& choices) {
  const unsigned levels = habit.Chance(3) ? 5 : 4;
  const bool accessed_dirty = !habit.Chance(3) != choices.Chance(12);
  const bool split = kind.splits_execute && !habit.Chance(3) != choices.Chance(12);
  const std::uint64_t root = RootOf(levels, tables_of_level, choices);
  const std::uint64_t pointer = root | 6 | (levels - 1) << 3 | (accessed_dirty ? 1u << 6 : 0);
  Nesting nesting;
  nesting.paging =
      vmx::EptOf(pointer, features.physical_bits, split ? mbec::MakeEptMbecFormat : nullptr);
  nesting.paging.logs_dirty = habit.Chance(4);
  const bool execute_only = split || !habit.Chance(3);
  if (!execute_only) {
    nesting.paging.format =
        vmx::MakeEptFormat({.physical_bits = features.physical_bits, .execute_only = false});
    nesting.paging.format.accessed_dirty = accessed_dirty;
  }
  nesting.stage = {.kind = oracle::SecondStage::Kind::kEpt,
                   .ept = {.levels = levels,
                           .maxphyaddr = features.physical_bits,
                           .mode_based_execute = split,
                           .execute_only = execute_only},
                   .root = root,
                   .accessed_dirty = accessed_dirty,
                   .logs_dirty = nesting.paging.logs_dirty,
                   .tables_are_written = accessed_dirty};
  return nesting;
}

Nesting AnyNpt(const NestingKind& kind, const PagingFeatures& features, Choices habit,
               unsigned tables_of_level, Choices& choices) {
  static constexpr unsigned kLevels[] = {4, 4, 5, 3, 2, 4};
  const unsigned levels = kLevels[habit.Below(6)];
  const bool nxe = !choices.Chance(8), smep = choices.Chance(4), pse = !choices.Chance(8);
  const bool split = kind.splits_execute && !habit.Chance(3) != choices.Chance(12);
  std::uint64_t root = RootOf(levels, tables_of_level, choices);
  if (levels == 3) root |= choices.Below(2) * 32;
  CpuState hypervisor;
  hypervisor.cr0 = kCr0Pg | kCr0Pe;
  hypervisor.cr4 = (levels > 2 ? kCr4Pae : 0) | (levels > 4 ? kCr4La57 : 0) |
                   (smep ? kCr4Smep : 0) | (pse ? kCr4Pse : 0);
  hypervisor.efer = (levels > 3 ? kEferLme | kEferLma : 0) | (nxe ? kEferNxe : 0);
  alignas(8) std::array<std::byte, kPageBytes> page = {};
  svm::Vmcb vmcb(page.data());
  vmcb.Set(svm::field::kNestedControl, split ? 9 : 1);
  vmcb.Set(svm::field::kNestedCr3, root);
  vmcb.Set(svm::field::kAsid, 1 + choices.Below(2));
  const RegisterLimits limits = {
      .physical_bits = features.physical_bits, .paging = features, .nested_paging = true};
  Nesting nesting;
  nesting.paging = svm::NestedPagingOf(vmcb, hypervisor, limits, kind.splits_execute);
  nesting.stage = {.kind = oracle::SecondStage::Kind::kNpt,
                   .npt = {.levels = levels,
                           .maxphyaddr = features.physical_bits,
                           .guest_mode_execute_trap = split,
                           .nxe = nxe,
                           .smep = smep,
                           .pse = pse,
                           .pages_1g = features.gib_pages},
                   .root = root,
                   .pdptes_in_memory = true,
                   .tables_are_written = true};
  return nesting;
}

}  // namespace

PageFormat NestingKind::SpteFormat() const {
  if (amd) {
    return splits_execute ? mbec::MakeNptGmetFormat(kHostBits) : svm::MakeNptFormat(kHostBits);
  }
  return splits_execute ? mbec::MakeEptMbecFormat(kHostBits)
                        : vmx::MakeEptFormat({.physical_bits = kHostBits});
}

std::uint64_t Nesting::accessed_dirty() const {
  if (stage.kind == oracle::SecondStage::Kind::kEpt) return 3u << 8;
  if (stage.npt.levels == 2) return 0x60 | std::uint64_t{0x60} << 32;
  return 0x60;
}

std::uint64_t Nesting::InfoOf(const NestedFault& fault) const {
  if (fault.log_full) return oracle::Ending::kLogFull;
  if (stage.kind == oracle::SecondStage::Kind::kNpt) {
    return svm::NestedFaultInfo(fault, paging.format);
  }
  if (fault.malformed) return oracle::Ending::kMisconfiguration;
  return vmx::ViolationQualification(fault, paging.format);
}

Nesting AnyNesting(const NestingKind& kind, const PagingFeatures& features, std::uint64_t habit,
                   unsigned tables_of_level, Choices& choices) {
  const auto any = kind.amd ? AnyNpt : AnyEpt;
  return any(kind, features, Choices(habit), tables_of_level, choices);
}

}  // namespace pagesaw
