module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>
module pagesaw.plugins.svm.plugin;

import pagesaw.core.nested_paging;
import pagesaw.plugins.svm.inspection;
import pagesaw.plugins.svm.nested_paging;
import pagesaw.plugins.svm.npt_format;
import pagesaw.plugins.svm.unit;
import pagesaw.plugins.svm.vmcb;

namespace pagesaw::svm {
namespace {

// As Vmcb has it: aligned, and not const.
struct Copy {
  explicit Copy(StructureBytes from) { std::ranges::copy(from, bytes.begin()); }

  alignas(std::uint64_t) std::array<std::byte, kStructureBytes> bytes;
};

}  // namespace

ExitDescription SvmExtension::Describe(const TableFault& fault, const PageFormat& format) const {
  const NestedFault nested = {.access = fault.access,
                              .stage = fault.stage,
                              .present = fault.present,
                              .malformed = fault.malformed};
  return {.name = "nested page fault",
          .qualification = NestedFaultInfo(nested, format),
          .qualification_name = "EXITINFO1"};
}

std::vector<StructureField> SvmExtension::FieldsOf(StructureBytes bytes) const {
  Copy copy(bytes);
  return svm::FieldsOf(Vmcb(copy.bytes.data()));
}

bool SvmExtension::InterceptsPageFault(StructureBytes bytes, PageFaultCode) const {
  Copy copy(bytes);
  return svm::InterceptsPageFault(Vmcb(copy.bytes.data()));
}

// [amd/vol3] "CPUID Fn8000_000A: SVM Features"
void SvmExtension::AdjustCpuid(std::uint32_t leaf, std::uint32_t, CpuidResult& result) const {
  constexpr std::uint32_t kLeaf = 0x8000'000a;
  constexpr std::uint32_t kAsids = 0x8000;
  constexpr std::uint32_t kNestedPaging = 1u << 0, kRecords = 1u << 1, kNextRip = 1u << 3,
                          kTscRatio = 1u << 4, kCleanBits = 1u << 5, kFlushByAsid = 1u << 6,
                          kDecodeAssists = 1u << 7, kPauseFilter = 1u << 10,
                          kPauseThreshold = 1u << 12, kVirtualLoadSave = 1u << 15,
                          kVirtualGif = 1u << 16, kExecuteTrap = 1u << 17, kVirtualNmi = 1u << 25;
  constexpr std::uint32_t kAlways = kRecords | kNextRip | kTscRatio | kCleanBits | kFlushByAsid |
                                    kDecodeAssists | kPauseFilter | kPauseThreshold | kVirtualGif |
                                    kVirtualNmi;
  if (leaf != kLeaf) return;
  const std::uint32_t nested = result.edx & kNestedPaging;
  const std::uint32_t split = splits_execute() ? kExecuteTrap : 0;
  result = {1, kAsids, 0, kAlways | (nested != 0 ? nested | kVirtualLoadSave | split : 0)};
}

std::unique_ptr<VirtUnit> SvmExtension::MakeUnit() const {
  return std::make_unique<SvmUnit>(splits_execute());
}

// [amd/vol2] "4-Mbyte Page Translation": 40 physical bits whatever the processor has
void SvmExtension::AdjustPagingFeatures(bool& root_bit8_reserved, std::uint8_t& pse36_bits,
                                        unsigned) const {
  root_bit8_reserved = true;
  pse36_bits = 40;
}

RegistrationResult SvmPlugin::Register(PluginRegistry& registry) {
  if (RegistrationResult error = registry.AddExtension(std::make_unique<SvmExtension>(&registry))) {
    return error;
  }
  return registry.AddTdpFormat({.name = "npt", .vendor = "amd", .make = MakeNptFormat});
}

std::unique_ptr<Plugin> MakeSvmPlugin() { return std::make_unique<SvmPlugin>(); }

}  // namespace pagesaw::svm
