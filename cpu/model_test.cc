#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <variant>

import pagesaw.core.page_format;
import pagesaw.core.processor;
import pagesaw.core.virt_extension;
import pagesaw.cpu.model;

namespace pagesaw::cpu {
namespace {

class FakeExtension : public VirtExtension {
 public:
  explicit FakeExtension(std::string_view cpuid_vendor) : cpuid_vendor_(cpuid_vendor) {}
  std::string_view name() const override { return "fake"; }
  std::string_view vendor() const override { return "fake"; }
  std::string_view cpuid_vendor() const override { return cpuid_vendor_; }
  ExitDescription Describe(const TableFault&, const PageFormat&) const override { return {}; }
  void AdjustCpuid(std::uint32_t leaf, std::uint32_t, CpuidResult& result) const override {
    if (leaf == 0x8fff'ffff) result.eax = 42;
  }
  void AdjustPagingFeatures(bool& root_bit8_reserved, std::uint8_t& pse36_bits,
                            unsigned) const override {
    root_bit8_reserved = true;
    pse36_bits = 40;
  }

 private:
  std::string_view cpuid_vendor_;
};

std::string ErrorOf(std::string_view features) {
  const auto made = MakeModel({.features = features});
  return made.index() == 0 ? "" : std::get<std::string>(made);
}

TEST(MakeModel, TogglesFeaturesByName) {
  const auto made = MakeModel({.features = "-smep,+smap,-pcid"});
  ASSERT_EQ(made.index(), 0u);
  const CpuModel& model = std::get<CpuModel>(made);
  EXPECT_FALSE(model.Has(Feature::kSmep));
  EXPECT_TRUE(model.Has(Feature::kSmap));
  EXPECT_FALSE(model.Has(Feature::kPcid));
  EXPECT_EQ(model.Cpuid(7, 0, {}).ebx & 1u << 7, 0u);
  EXPECT_NE(model.Cpuid(7, 0, {}).ebx & 1u << 20, 0u);
}

TEST(MakeModel, NamesWhatItRefuses) {
  EXPECT_NE(ErrorOf("+warp").find("\"+warp\": unknown"), std::string::npos);
  EXPECT_NE(ErrorOf("smep").find("\"smep\": must be"), std::string::npos);
  EXPECT_NE(ErrorOf("+smep,,").find("\"\""), std::string::npos);
  EXPECT_EQ(MakeModel({.physical_bits = 53}).index(), 1u);
  EXPECT_EQ(MakeModel({.cpu_count = 0}).index(), 1u);
}

// [amd/vol2] "Shadow Stacks": AMD's processors track no branches.
TEST(MakeModel, KnowsBranchTrackingOnIntelAlone) {
  const FakeExtension intel("GenuineIntel");
  const FakeExtension amd("AuthenticAMD");
  const CpuModel one = std::get<CpuModel>(MakeModel({.extension = &intel}));
  const CpuModel other = std::get<CpuModel>(MakeModel({.extension = &amd}));
  EXPECT_TRUE(one.Has(Feature::kShstk));
  EXPECT_TRUE(one.Has(Feature::kIbt));
  EXPECT_TRUE(other.Has(Feature::kShstk));
  EXPECT_FALSE(other.Has(Feature::kIbt));
  const auto refused = MakeModel({.extension = &amd, .features = "+ibt"});
  ASSERT_EQ(refused.index(), 1u);
  EXPECT_NE(std::get<std::string>(refused).find("\"+ibt\": not of AMD's processors"),
            std::string::npos);
}

TEST(Cpuid, GivesVendorAndBrand) {
  const FakeExtension intel("GenuineIntel");
  const CpuModel model = std::get<CpuModel>(MakeModel({.extension = &intel}));
  const CpuidResult vendor = model.Cpuid(0, 0, {});
  char text[13] = {};
  std::memcpy(text, &vendor.ebx, 4);
  std::memcpy(text + 4, &vendor.edx, 4);
  std::memcpy(text + 8, &vendor.ecx, 4);
  EXPECT_STREQ(text, "GenuineIntel");
  EXPECT_FALSE(model.amd_rules());
  const CpuidResult brand = model.Cpuid(0x8000'0002, 0, {});
  EXPECT_EQ(std::memcmp(&brand.eax, "Page", 4), 0);
  EXPECT_EQ(model.Cpuid(0x8fff'ffff, 0, {}).eax, 42u);
}

TEST(Cpuid, TellsOfTheHypervisorAndItsCalls) {
  CpuModel model = std::get<CpuModel>(MakeModel({}));
  const CpuidResult signature = model.Cpuid(0x4000'0000, 0, {});
  EXPECT_EQ(signature.eax, 0x4000'0001u);
  EXPECT_EQ(std::memcmp(&signature.ebx, "Page", 4), 0);
  EXPECT_EQ(model.Cpuid(0x4000'0001, 0, {}), (CpuidResult{1u << 10, 0, 0, 0}));
  model.Set(Feature::kHypervisor, false);
  EXPECT_EQ(model.Cpuid(0x4000'0000, 0, {}), CpuidResult{});
  EXPECT_EQ(model.Cpuid(0x4000'0001, 0, {}), CpuidResult{});
}

TEST(Cpuid, AmdRepeatsFeaturesInTheExtendedLeaf) {
  const FakeExtension amd("AuthenticAMD");
  const CpuModel model = std::get<CpuModel>(MakeModel({.extension = &amd}));
  EXPECT_TRUE(model.amd_rules());
  EXPECT_NE(model.Cpuid(0x8000'0001, 0, {}).edx & 1u << 6, 0u);  // PAE
  EXPECT_TRUE(model.paging().root_bit8_reserved);
  EXPECT_EQ(model.paging().pse36_bits, 40);
}

TEST(Cpuid, NeverPromisesWhatIsNotThere) {
  const CpuModel model = std::get<CpuModel>(MakeModel({.features = "-xsave"}));
  const CpuidResult one = model.Cpuid(1, 0, {.osxsave = true, .ospke = true});
  EXPECT_EQ(one.ecx & 0x1c00'0000u, 0u);  // XSAVE, OSXSAVE, AVX
  EXPECT_EQ(model.Cpuid(0xd, 0, {}), CpuidResult{});
  EXPECT_EQ(model.xcr0_bits(), 1u);
}

TEST(Cpuid, FeaturesFallWithTheirFoundation) {
  const CpuModel model = std::get<CpuModel>(MakeModel({.features = "-fpu"}));
  EXPECT_EQ(model.Cpuid(1, 0, {}).edx & 0x0780'0001u, 0u);  // FPU, MMX, FXSR, SSE, SSE2
  EXPECT_FALSE(model.Has(Feature::kAes));
  EXPECT_FALSE(model.Has(Feature::kAvx2));
}

TEST(Cpuid, TellsTheSizesOfXsaveAreas) {
  CpuModel model = std::get<CpuModel>(MakeModel({}));
  model.Set(Feature::kAvx, true);
  model.Set(Feature::kPku, false);
  EXPECT_EQ(model.Cpuid(0xd, 0, {.xcr0 = 3}), (CpuidResult{7, 576, 832, 0}));
  EXPECT_EQ(model.Cpuid(0xd, 0, {.xcr0 = 7}).ebx, 832u);
  EXPECT_EQ(model.Cpuid(0xd, 1, {.xcr0 = 7}).ebx, 832u);
  EXPECT_EQ(model.Cpuid(0xd, 2, {}), (CpuidResult{256, 576, 0, 0}));
  EXPECT_EQ(model.Cpuid(0xd, 9, {}), CpuidResult{});
}

TEST(Cpuid, FollowsDynamicState) {
  const CpuModel model = std::get<CpuModel>(MakeModel({}));
  EXPECT_NE(model.Cpuid(1, 0, {}).edx & 1u << 9, 0u);
  EXPECT_EQ(model.Cpuid(1, 0, {.apic_enabled = false}).edx & 1u << 9, 0u);
}

TEST(Cpuid, ShowsPagingFeaturesUntilTheyAreTakenAway) {
  const CpuModel with = std::get<CpuModel>(MakeModel({}));
  EXPECT_EQ(with.Cpuid(7, 0, {}).ecx & 0x8001'0018u, 0x8001'0008u);  // PKS, LA57, PKU; no OSPKE
  EXPECT_NE(with.Cpuid(7, 0, {.ospke = true}).ecx & 0x10u, 0u);
  EXPECT_EQ(with.Cpuid(7, 1, {}).eax, 1u << 26);
  EXPECT_TRUE(with.paging().la57);
  const CpuModel without =
      std::get<CpuModel>(MakeModel({.features = "-pku,-pks,-la57,-lam,-pcid,-invpcid"}));
  EXPECT_EQ(without.Cpuid(7, 0, {.ospke = true}).ecx & 0x8001'0018u, 0u);
  EXPECT_EQ(without.Cpuid(7, 0, {}).eax, 0u);
  EXPECT_EQ(without.Cpuid(7, 1, {}), CpuidResult{});
  EXPECT_EQ(without.Cpuid(7, 0, {}).ebx & 1u << 10, 0u);
  EXPECT_EQ(without.Cpuid(1, 0, {}).ecx & 1u << 17, 0u);
  EXPECT_EQ(without.Cpuid(0x8000'0008, 0, {}).eax >> 8, 48u);
  EXPECT_FALSE(without.paging().la57);
}

TEST(MakeModel, TakesThePhysicalWidthAmongTheFeatures) {
  const auto made = MakeModel({.features = "-smep,maxphyaddr=36"});
  ASSERT_EQ(made.index(), 0u);
  const CpuModel& model = std::get<CpuModel>(made);
  EXPECT_EQ(model.physical_bits(), 36);
  EXPECT_EQ(model.paging().physical_bits, 36);
  EXPECT_EQ(model.Cpuid(0x8000'0008, 0, {}).eax & 0xff, 36u);
  for (const char* wrong : {"maxphyaddr=", "maxphyaddr=31", "maxphyaddr=53", "maxphyaddr=4x"}) {
    EXPECT_NE(ErrorOf(wrong).find(wrong), std::string::npos) << wrong;
  }
}

TEST(Cpuid, TellsWidthsAndTopology) {
  const CpuModel model =
      std::get<CpuModel>(MakeModel({.physical_bits = 40, .apic_id = 2, .cpu_count = 3}));
  EXPECT_EQ(model.Cpuid(0x8000'0008, 0, {}).eax, 0x3928u);
  EXPECT_EQ(model.Cpuid(0xb, 1, {}).ebx, 3u);
  EXPECT_EQ(model.Cpuid(0xb, 1, {}).eax, 2u);
  EXPECT_EQ(model.Cpuid(0xb, 0, {}).edx, 2u);
  EXPECT_EQ(model.Cpuid(1, 0, {}).ebx >> 24, 2u);
  EXPECT_EQ(model.Cpuid(0x20, 0, {}), CpuidResult{});
}

}  // namespace
}  // namespace pagesaw::cpu
