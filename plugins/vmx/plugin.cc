module;
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
module pagesaw.plugins.vmx.plugin;

import pagesaw.core.access;
import pagesaw.plugins.vmx.ept_format;
import pagesaw.plugins.vmx.unit;

namespace pagesaw::vmx {
namespace {

// Bits of the exit qualification. [intel/vol3] "Exit Qualification for EPT Violations"
constexpr std::uint64_t kDataRead = 1u << 0;
constexpr std::uint64_t kDataWrite = 1u << 1;
constexpr std::uint64_t kFetch = 1u << 2;
constexpr std::uint64_t kReadable = 1u << 3;
constexpr std::uint64_t kWritable = 1u << 4;
constexpr std::uint64_t kExecutable = 1u << 5;      // XS with mode-based execute control
constexpr std::uint64_t kUserExecutable = 1u << 6;  // with mode-based execute control
constexpr std::uint64_t kLinearValid = 1u << 7;
constexpr std::uint64_t kFinalAddress = 1u << 8;
constexpr std::uint64_t kUserLinear = 1u << 9;
constexpr std::uint64_t kWritableLinear = 1u << 10;
constexpr std::uint64_t kExecuteDisabledLinear = 1u << 11;

// With A and D on, an access to a guest table counts as a read and a write.
std::uint64_t AccessBits(const TableFault& fault, const PageFormat& format) {
  if (fault.stage == Stage::kTable) {
    const bool writes = format.accessed_dirty || fault.access.is_write();
    return kDataRead | (writes ? kDataWrite : 0);
  }
  if (fault.access.is_fetch()) return kFetch;
  return fault.access.is_write() ? kDataWrite : kDataRead;
}

std::uint64_t EntryBits(const TableFault& fault, const PageFormat& format) {
  if (!fault.present) return 0;
  std::uint64_t bits = 0;
  if (fault.rights.read()) bits |= kReadable;
  if (fault.rights.write()) bits |= kWritable;
  if (fault.rights.exec_supervisor()) bits |= kExecutable;
  if (format.layout.splits_execute() && fault.rights.exec_user()) bits |= kUserExecutable;
  return bits;
}

std::uint64_t LinearBits(const TableFault& fault) {
  if (!fault.linear_valid) return 0;
  if (fault.stage != Stage::kFinal) return kLinearValid;
  std::uint64_t bits = kLinearValid | kFinalAddress;
  if (fault.guest_rights.user()) bits |= kUserLinear;
  if (fault.guest_rights.write()) bits |= kWritableLinear;
  if (!fault.guest_rights.exec_supervisor()) bits |= kExecuteDisabledLinear;
  return bits;
}

PageFormat MakeSpteFormat(unsigned physical_bits) {
  return MakeEptFormat({.physical_bits = physical_bits});
}

}  // namespace

ExitDescription VmxExtension::Describe(const TableFault& fault, const PageFormat& format) const {
  if (fault.malformed) return {.name = "EPT misconfiguration", .qualification = 0};
  return {
      .name = "EPT violation",
      .qualification = AccessBits(fault, format) | EntryBits(fault, format) | LinearBits(fault)};
}

void VmxExtension::AdjustCpuid(std::uint32_t, std::uint32_t, CpuidResult&) const {}

std::unique_ptr<VirtUnit> VmxExtension::MakeUnit() const { return std::make_unique<VmxUnit>(); }

// [intel/vol3] "32-Bit Paging": bits of 4 MiB pages above the physical width are reserved
void VmxExtension::AdjustPagingFeatures(bool& root_bit8_reserved, std::uint8_t& pse36_bits,
                                        unsigned physical_bits) const {
  root_bit8_reserved = false;
  pse36_bits = static_cast<std::uint8_t>(std::min(40u, physical_bits));
}

RegistrationResult VmxPlugin::Register(PluginRegistry& registry) {
  if (RegistrationResult error = registry.AddExtension(std::make_unique<VmxExtension>())) {
    return error;
  }
  return registry.AddTdpFormat({.name = "ept", .vendor = "intel", .make = MakeSpteFormat});
}

std::unique_ptr<Plugin> MakeVmxPlugin() { return std::make_unique<VmxPlugin>(); }

}  // namespace pagesaw::vmx
