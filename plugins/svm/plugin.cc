module;
#include <cstdint>
#include <memory>
#include <optional>
module pagesaw.plugins.svm.plugin;

import pagesaw.core.access;
import pagesaw.plugins.svm.npt_format;
import pagesaw.plugins.svm.unit;

namespace pagesaw::svm {
namespace {

// Bits of EXITINFO1 above those of a page-fault error code.
// [amd/vol2] "Nested versus Guest Page Faults, Fault Ordering"
constexpr std::uint64_t kFinalAddress = std::uint64_t{1} << 32;
constexpr std::uint64_t kGuestTable = std::uint64_t{1} << 33;

// A nested access is a user's. Where user pages refuse supervisor-mode fetches, the mode of the
// access itself counts.
bool IsUser(const TableFault& fault, const PageFormat& format) {
  return !format.user_pages_refuse_supervisor_fetch || fault.stage == Stage::kTable ||
         fault.access.is_user();
}

}  // namespace

ExitDescription SvmExtension::Describe(const TableFault& fault, const PageFormat& format) const {
  const bool table = fault.stage == Stage::kTable;
  std::uint64_t info = table ? kGuestTable : kFinalAddress;
  if (fault.present || fault.malformed) info |= PageFaultCode::kPresent;
  if (fault.malformed) info |= PageFaultCode::kReserved;
  if (table || fault.access.is_write()) info |= PageFaultCode::kWrite;
  if (IsUser(fault, format)) info |= PageFaultCode::kUser;
  if (!table && fault.access.is_fetch() && format.reports_fetch) info |= PageFaultCode::kFetch;
  return {.name = "nested page fault", .qualification = info};
}

// [amd/vol3] "CPUID Fn8000_000A: SVM Features"
void SvmExtension::AdjustCpuid(std::uint32_t leaf, std::uint32_t, CpuidResult& result) const {
  constexpr std::uint32_t kLeaf = 0x8000'000a;
  constexpr std::uint32_t kAsids = 0x8000;
  constexpr std::uint32_t kNextRip = 1u << 3, kFlushByAsid = 1u << 6, kPauseFilter = 1u << 10,
                          kVirtualGif = 1u << 16;
  if (leaf != kLeaf) return;
  result = {1, kAsids, 0, kNextRip | kFlushByAsid | kPauseFilter | kVirtualGif};
}

std::unique_ptr<VirtUnit> SvmExtension::MakeUnit() const { return std::make_unique<SvmUnit>(); }

// [amd/vol2] "4-Mbyte Page Translation": 40 physical bits whatever the processor has
void SvmExtension::AdjustPagingFeatures(bool& root_bit8_reserved, std::uint8_t& pse36_bits,
                                        unsigned) const {
  root_bit8_reserved = true;
  pse36_bits = 40;
}

RegistrationResult SvmPlugin::Register(PluginRegistry& registry) {
  if (RegistrationResult error = registry.AddExtension(std::make_unique<SvmExtension>())) {
    return error;
  }
  return registry.AddTdpFormat({.name = "npt", .vendor = "amd", .make = MakeNptFormat});
}

std::unique_ptr<Plugin> MakeSvmPlugin() { return std::make_unique<SvmPlugin>(); }

}  // namespace pagesaw::svm
