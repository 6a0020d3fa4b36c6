#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.virt_extension;
import pagesaw.plugins.vmx.plugin;
import pagesaw.plugins.vmx.vmcs;
import pagesaw.plugins.vmx.vmx_bits;

namespace pagesaw::vmx {
namespace {

class VmcsInspection : public testing::Test {
 protected:
  const StructureField* Find(const std::string& name) {
    fields_ = VmxExtension().FieldsOf(StructureBytes(page_));
    const auto found = std::find_if(fields_.begin(), fields_.end(),
                                    [&](const auto& field) { return field.name == name; });
    return found == fields_.end() ? nullptr : &*found;
  }
  std::string Meaning(const std::string& name) {
    const StructureField* const field = Find(name);
    return field == nullptr ? "no such field" : field->meaning;
  }
  bool Intercepts(std::uint32_t code) {
    return VmxExtension().InterceptsPageFault(StructureBytes(page_), PageFaultCode(code));
  }

  alignas(8) std::array<std::byte, kStructureBytes> page_ = {};
  Vmcs vmcs_{page_.data()};
  std::vector<StructureField> fields_;
};

TEST_F(VmcsInspection, NamesTheControlsThatAreSet) {
  vmcs_.Set(field::kPrimaryControls, primary::kSecondary | primary::kCr3Load | primary::kHlt);
  vmcs_.Set(field::kSecondaryControls,
            secondary::kEpt | secondary::kModeBasedExecute | secondary::kRdtscp);
  EXPECT_EQ(Meaning("primary processor-based controls"),
            "CR3-load exiting, activate secondary controls");
  EXPECT_EQ(Meaning("secondary processor-based controls"),
            "enable EPT, mode-based execute control for EPT");
}

TEST_F(VmcsInspection, TellsThePointerOfExtendedPageTables) {
  EXPECT_EQ(Find("EPT pointer"), nullptr);
  vmcs_.Set(field::kPrimaryControls, primary::kSecondary);
  vmcs_.Set(field::kSecondaryControls, secondary::kEpt);
  vmcs_.Set(field::kEptPointer, 0x40'005e);
  ASSERT_NE(Find("EPT pointer"), nullptr);
  EXPECT_EQ(Find("EPT pointer")->value, 0x40'005eu);
  EXPECT_EQ(Meaning("EPT pointer"), "4 levels, accessed and dirty flags");
  EXPECT_EQ(Find("VPID"), nullptr);
}

TEST_F(VmcsInspection, SecondaryControlsThatAreOffSayNothing) {
  vmcs_.Set(field::kSecondaryControls, secondary::kEpt);
  EXPECT_EQ(Find("secondary processor-based controls"), nullptr);
  EXPECT_EQ(Find("EPT pointer"), nullptr);
}

TEST_F(VmcsInspection, NamesTheExitReason) {
  vmcs_.Set(field::kExitReason, 48);
  vmcs_.Set(field::kQualification, 0x181);
  vmcs_.Set(field::kGuestPhysical, 0x1234);
  EXPECT_EQ(Meaning("exit reason"), "EPT violation");
  EXPECT_EQ(Find("exit qualification")->value, 0x181u);
  EXPECT_EQ(Find("guest-physical address")->value, 0x1234u);
  vmcs_.Set(field::kExitReason, 0x8000'0021);
  EXPECT_EQ(Meaning("exit reason"), "VM-entry failure due to invalid guest state");
  vmcs_.Set(field::kExitReason, 0x7777);
  EXPECT_EQ(Meaning("exit reason"), "");
}

TEST_F(VmcsInspection, FieldsHaveTheirWidths) {
  vmcs_.Set(field::kPrimaryControls, primary::kSecondary);
  vmcs_.Set(field::kSecondaryControls, secondary::kVpid);
  EXPECT_EQ(Find("VPID")->bytes, 2u);
  EXPECT_EQ(Find("exit reason")->bytes, 4u);
  EXPECT_EQ(Find("guest IA32_EFER")->bytes, 8u);
  EXPECT_EQ(Find("guest CR3")->bytes, 8u);
}

TEST_F(VmcsInspection, AnyBytesHaveAnAnswer) {
  page_.fill(std::byte{0xff});
  EXPECT_EQ(Find("guest CR3")->value, ~std::uint64_t{0});
  EXPECT_EQ(Meaning("EPT pointer"), "8 levels, accessed and dirty flags");
}

// [intel/vol3] "Exception Bitmap": bit 14, mask and match
TEST_F(VmcsInspection, PageFaultsGoByBitmapMaskAndMatch) {
  EXPECT_FALSE(Intercepts(0));
  vmcs_.Set(field::kExceptionBitmap, 1u << 14);
  EXPECT_TRUE(Intercepts(0));
  vmcs_.Set(field::kPageFaultMask, 1);
  vmcs_.Set(field::kPageFaultMatch, 1);
  EXPECT_FALSE(Intercepts(6));
  EXPECT_TRUE(Intercepts(7));
  vmcs_.Set(field::kExceptionBitmap, 0);
  EXPECT_TRUE(Intercepts(6));
  EXPECT_FALSE(Intercepts(7));
}

}  // namespace
}  // namespace pagesaw::vmx
