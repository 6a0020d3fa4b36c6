#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.virt_extension;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.svm.vmcb;

namespace pagesaw::svm {
namespace {

class VmcbInspection : public testing::Test {
 protected:
  const StructureField& Find(const std::string& name) {
    fields_ = SvmExtension().FieldsOf(StructureBytes(page_));
    const auto found = std::find_if(fields_.begin(), fields_.end(),
                                    [&](const auto& field) { return field.name == name; });
    static const StructureField kNone = {.name = "", .meaning = "no such field"};
    return found == fields_.end() ? kNone : *found;
  }

  alignas(8) std::array<std::byte, kStructureBytes> page_ = {};
  Vmcb vmcb_{page_.data()};
  std::vector<StructureField> fields_;
};

TEST_F(VmcbInspection, TellsOfNestedPaging) {
  EXPECT_EQ(Find("nested control").meaning, "");
  vmcb_.Set(field::kNestedControl, 9);
  vmcb_.Set(field::kNestedCr3, 0x40'0000);
  vmcb_.Set(field::kAsid, 7);
  EXPECT_EQ(Find("nested control").meaning, "NP_ENABLE, guest mode execute trap");
  EXPECT_EQ(Find("nCR3").value, 0x40'0000u);
  EXPECT_EQ(Find("ASID").value, 7u);
  EXPECT_EQ(Find("ASID").bytes, 4u);
  EXPECT_EQ(Find("CPL").bytes, 1u);
}

struct ExitRow {
  std::uint64_t code;
  const char* name;
};
class VmcbExit : public VmcbInspection, public testing::WithParamInterface<ExitRow> {};

TEST_P(VmcbExit, HasTheManualsName) {
  vmcb_.Set(field::kExitCode, GetParam().code);
  EXPECT_EQ(Find("EXITCODE").meaning, GetParam().name);
}

INSTANTIATE_TEST_SUITE_P(
    Codes, VmcbExit,
    testing::Values(ExitRow{0x03, "VMEXIT_CR3_READ"}, ExitRow{0x10, "VMEXIT_CR0_WRITE"},
                    ExitRow{0x27, "VMEXIT_DR7_READ"}, ExitRow{0x3f, "VMEXIT_DR15_WRITE"},
                    ExitRow{0x4e, "VMEXIT_EXCP14"}, ExitRow{0x5f, "VMEXIT_EXCP31"},
                    ExitRow{0x60, "VMEXIT_INTR"}, ExitRow{0x72, "VMEXIT_CPUID"},
                    ExitRow{0x78, "VMEXIT_HLT"}, ExitRow{0x7b, "VMEXIT_IOIO"},
                    ExitRow{0x7f, "VMEXIT_SHUTDOWN"}, ExitRow{0x81, "VMEXIT_VMMCALL"},
                    ExitRow{0x8d, "VMEXIT_XSETBV"}, ExitRow{0xa2, "VMEXIT_INVPCID"},
                    ExitRow{0x400, "VMEXIT_NPF"}, ExitRow{~std::uint64_t{0}, "VMEXIT_INVALID"},
                    ExitRow{0x3ff, ""}));

TEST_F(VmcbInspection, NamesTheBitsOfANestedPageFault) {
  vmcb_.Set(field::kExitCode, 0x400);
  vmcb_.Set(field::kExitInfo1, 0x2'0000'0007);
  EXPECT_EQ(Find("EXITINFO1").meaning, "P, W, U, guest table");
  vmcb_.Set(field::kExitCode, 0x4e);
  EXPECT_EQ(Find("EXITINFO1").meaning, "");
}

TEST_F(VmcbInspection, PageFaultsGoByTheirIntercept) {
  const auto intercepts = [this] {
    return SvmExtension().InterceptsPageFault(StructureBytes(page_), PageFaultCode(0));
  };
  vmcb_.Set(field::kInterceptExceptions, ~(1u << 14));
  EXPECT_FALSE(intercepts());
  vmcb_.Set(field::kInterceptExceptions, 1u << 14);
  EXPECT_TRUE(intercepts());
}

TEST_F(VmcbInspection, AnyBytesHaveAnAnswer) {
  page_.fill(std::byte{0xff});
  EXPECT_EQ(Find("CR3").value, ~std::uint64_t{0});
  EXPECT_EQ(Find("TLB_CONTROL").meaning, "");
}

}  // namespace
}  // namespace pagesaw::svm
