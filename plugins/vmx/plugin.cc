module;
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
module pagesaw.plugins.vmx.plugin;

import pagesaw.core.nested_paging;
import pagesaw.plugins.vmx.ept;
import pagesaw.plugins.vmx.ept_format;
import pagesaw.plugins.vmx.unit;

namespace pagesaw::vmx {
namespace {

PageFormat MakeSpteFormat(unsigned physical_bits) {
  return MakeEptFormat({.physical_bits = physical_bits});
}

}  // namespace

ExitDescription VmxExtension::Describe(const TableFault& fault, const PageFormat& format) const {
  if (fault.malformed) return {.name = "EPT misconfiguration", .qualification = 0};
  const NestedFault nested = {.access = fault.access,
                              .stage = fault.stage,
                              .present = fault.present,
                              .rights = fault.rights,
                              .linear_valid = fault.linear_valid,
                              .guest_rights = fault.guest_rights};
  return {.name = "EPT violation", .qualification = ViolationQualification(nested, format)};
}

void VmxExtension::AdjustCpuid(std::uint32_t, std::uint32_t, CpuidResult&) const {}

std::unique_ptr<VirtUnit> VmxExtension::MakeUnit() const {
  const TdpFormat* const split =
      registry_ == nullptr ? nullptr : registry_->TdpFormatOf(vendor(), true);
  return std::make_unique<VmxUnit>(split == nullptr ? nullptr : split->make);
}

// [intel/vol3] "32-Bit Paging": bits of 4 MiB pages above the physical width are reserved
void VmxExtension::AdjustPagingFeatures(bool& root_bit8_reserved, std::uint8_t& pse36_bits,
                                        unsigned physical_bits) const {
  root_bit8_reserved = false;
  pse36_bits = static_cast<std::uint8_t>(std::min(40u, physical_bits));
}

RegistrationResult VmxPlugin::Register(PluginRegistry& registry) {
  if (RegistrationResult error = registry.AddExtension(std::make_unique<VmxExtension>(&registry))) {
    return error;
  }
  return registry.AddTdpFormat({.name = "ept", .vendor = "intel", .make = MakeSpteFormat});
}

std::unique_ptr<Plugin> MakeVmxPlugin() { return std::make_unique<VmxPlugin>(); }

}  // namespace pagesaw::vmx
