module;
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>
module pagesaw.plugins.vmx.plugin;

import pagesaw.core.nested_paging;
import pagesaw.plugins.vmx.ept;
import pagesaw.plugins.vmx.ept_format;
import pagesaw.plugins.vmx.inspection;
import pagesaw.plugins.vmx.unit;
import pagesaw.plugins.vmx.vmcs;

namespace pagesaw::vmx {
namespace {

// As Vmcs has it: aligned, and not const.
struct Copy {
  explicit Copy(StructureBytes from) { std::ranges::copy(from, bytes.begin()); }

  alignas(std::uint64_t) std::array<std::byte, kStructureBytes> bytes;
};

PageFormat MakeSpteFormat(unsigned physical_bits) {
  return MakeEptFormat({.physical_bits = physical_bits});
}

}  // namespace

ExitDescription VmxExtension::Describe(const TableFault& fault, const PageFormat& format) const {
  if (fault.malformed) {
    return {.name = "EPT misconfiguration", .qualification = 0, .qualification_name = {}};
  }
  const NestedFault nested = {.access = fault.access,
                              .stage = fault.stage,
                              .present = fault.present,
                              .rights = fault.rights,
                              .linear_valid = fault.linear_valid,
                              .guest_rights = fault.guest_rights};
  return {.name = "EPT violation",
          .qualification = ViolationQualification(nested, format),
          .qualification_name = "exit qualification"};
}

std::vector<StructureField> VmxExtension::FieldsOf(StructureBytes bytes) const {
  Copy copy(bytes);
  return vmx::FieldsOf(Vmcs(copy.bytes.data()));
}

bool VmxExtension::InterceptsPageFault(StructureBytes bytes, PageFaultCode code) const {
  Copy copy(bytes);
  return vmx::InterceptsPageFault(Vmcs(copy.bytes.data()), code);
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
