module;
#include <cstdint>
#include <string_view>
#include <variant>
module pagesaw.cpu.test_vendor;

import pagesaw.core.page_format;
import pagesaw.core.processor;
import pagesaw.core.virt_extension;

namespace pagesaw::cpu {
namespace {

class NamedVendor final : public VirtExtension {
 public:
  explicit NamedVendor(std::string_view cpuid_vendor) : cpuid_vendor_(cpuid_vendor) {}
  std::string_view name() const override { return "none"; }
  std::string_view vendor() const override { return "test"; }
  std::string_view cpuid_vendor() const override { return cpuid_vendor_; }
  ExitDescription Describe(const TableFault&, const PageFormat&) const override { return {}; }
  void AdjustCpuid(std::uint32_t, std::uint32_t, CpuidResult&) const override {}
  void AdjustPagingFeatures(bool&, std::uint8_t&, unsigned) const override {}

 private:
  std::string_view cpuid_vendor_;
};

}  // namespace

CpuModel ModelOf(Vendor vendor, std::string_view features) {
  static const NamedVendor intel("GenuineIntel");
  static const NamedVendor amd("AuthenticAMD");
  return std::get<CpuModel>(
      MakeModel({.extension = vendor == Vendor::kAmd ? &amd : &intel, .features = features}));
}

}  // namespace pagesaw::cpu
