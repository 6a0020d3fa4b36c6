// The `vmx` plugin: what VMX adds to a processor, and EPT as the format of second-stage tables.
module;
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>
export module pagesaw.plugins.vmx.plugin;

import pagesaw.core.access;
import pagesaw.core.guest_mode;
import pagesaw.core.page_format;
import pagesaw.core.plugin;
import pagesaw.core.processor;
import pagesaw.core.virt_extension;

export namespace pagesaw::vmx {

class VmxExtension final : public VirtExtension {
 public:
  // What `registry`, which outlives the extension, has of the vendor's formats decides on
  // mode-based execute control; null: it is not offered.
  explicit VmxExtension(const PluginRegistry* registry = nullptr) : registry_(registry) {}

  std::string_view name() const override { return "vmx"; }
  std::string_view vendor() const override { return "intel"; }
  std::string_view cpuid_vendor() const override { return "GenuineIntel"; }

  // An EPT violation with its exit qualification, or an EPT misconfiguration.
  ExitDescription Describe(const TableFault& fault, const PageFormat& format) const override;
  std::string_view structure_name() const override { return "VMCS"; }
  std::vector<StructureField> FieldsOf(StructureBytes bytes) const override;
  bool InterceptsPageFault(StructureBytes bytes, PageFaultCode code) const override;
  // Nothing: the MSRs tell what VMX has.
  void AdjustCpuid(std::uint32_t leaf, std::uint32_t subleaf, CpuidResult& result) const override;
  std::string_view feature() const override { return "vmx"; }
  std::unique_ptr<VirtUnit> MakeUnit() const override;
  void AdjustPagingFeatures(bool& root_bit8_reserved, std::uint8_t& pse36_bits,
                            unsigned physical_bits) const override;

 private:
  const PluginRegistry* registry_;
};

class VmxPlugin final : public Plugin {
 public:
  std::string_view name() const override { return "vmx"; }
  [[nodiscard]] RegistrationResult Register(PluginRegistry& registry) override;
};

std::unique_ptr<Plugin> MakeVmxPlugin();

}  // namespace pagesaw::vmx
