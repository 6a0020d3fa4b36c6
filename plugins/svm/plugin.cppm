// The `svm` plugin: what SVM adds to a processor, and NPT as the format of second-stage tables.
module;
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>
export module pagesaw.plugins.svm.plugin;

import pagesaw.core.access;
import pagesaw.core.guest_mode;
import pagesaw.core.page_format;
import pagesaw.core.plugin;
import pagesaw.core.processor;
import pagesaw.core.virt_extension;

export namespace pagesaw::svm {

class SvmExtension final : public VirtExtension {
 public:
  // What `registry`, which outlives the extension, has of the vendor's formats decides on the guest
  // mode execute trap; null: it is not offered.
  explicit SvmExtension(const PluginRegistry* registry = nullptr) : registry_(registry) {}

  std::string_view name() const override { return "svm"; }
  std::string_view vendor() const override { return "amd"; }
  std::string_view cpuid_vendor() const override { return "AuthenticAMD"; }

  // A nested page fault with its EXITINFO1.
  ExitDescription Describe(const TableFault& fault, const PageFormat& format) const override;
  std::string_view structure_name() const override { return "VMCB"; }
  std::vector<StructureField> FieldsOf(StructureBytes bytes) const override;
  bool InterceptsPageFault(StructureBytes bytes, PageFaultCode code) const override;
  // Leaf 8000000Ah: what SVM of a guest has.
  void AdjustCpuid(std::uint32_t leaf, std::uint32_t subleaf, CpuidResult& result) const override;
  std::string_view feature() const override { return "svm"; }
  std::unique_ptr<VirtUnit> MakeUnit() const override;
  void AdjustPagingFeatures(bool& root_bit8_reserved, std::uint8_t& pse36_bits,
                            unsigned physical_bits) const override;

 private:
  bool splits_execute() const {
    return registry_ != nullptr && registry_->TdpFormatOf(vendor(), true) != nullptr;
  }

  const PluginRegistry* registry_;
};

class SvmPlugin final : public Plugin {
 public:
  std::string_view name() const override { return "svm"; }
  [[nodiscard]] RegistrationResult Register(PluginRegistry& registry) override;
};

std::unique_ptr<Plugin> MakeSvmPlugin();

}  // namespace pagesaw::svm
