#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.page_format;
import pagesaw.core.plugin;
import pagesaw.core.processor;
import pagesaw.core.virt_extension;
import pagesaw.plugins.vmx.ept_format;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw::vmx {
namespace {

TEST(VmxPlugin, RegistersItsExtensionAndFormat) {
  PluginRegistry registry;
  ASSERT_FALSE(MakeVmxPlugin()->Register(registry));
  EXPECT_EQ(registry.ExtensionOf("intel")->cpuid_vendor(), "GenuineIntel");
  EXPECT_EQ(registry.TdpFormatOf("intel", false)->name, "ept");
  EXPECT_EQ(registry.TdpFormatOf("intel", true), nullptr);
  EXPECT_TRUE(MakeVmxPlugin()->Register(registry)) << "twice is once too often";
}

struct QualificationCase {
  const char* name;
  TableFault fault;
  std::uint64_t want;
};

constexpr Rights kReadExecute(Rights::kRead | Rights::kExecSupervisor | Rights::kExecUser);

class VmxQualification : public testing::TestWithParam<QualificationCase> {};

TEST_P(VmxQualification, IsThatOfAnEptViolation) {
  const ExitDescription exit = VmxExtension().Describe(GetParam().fault, MakeEptFormat({}));
  EXPECT_EQ(exit.name, "EPT violation");
  EXPECT_EQ(exit.qualification, GetParam().want);
}

INSTANTIATE_TEST_SUITE_P(
    Faults, VmxQualification,
    testing::Values(QualificationCase{"NotPresentRead",
                                      {.linear_valid = true, .guest_rights = Rights::All()},
                                      1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10},
                    QualificationCase{"WriteToReadExecute",
                                      {.access = Access::Write(Privilege::kSupervisor),
                                       .present = true,
                                       .rights = kReadExecute,
                                       .linear_valid = true,
                                       .guest_rights = Rights(Rights::kRead | Rights::kWrite)},
                                      2 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11},
                    QualificationCase{"FetchWithoutLinearAddress",
                                      {.access = Access::Fetch(Privilege::kUser),
                                       .present = true,
                                       .rights = Rights(Rights::kRead)},
                                      4 | 1 << 3},
                    QualificationCase{"TableAccessReadsAndWrites",
                                      {.stage = Stage::kTable, .linear_valid = true},
                                      3 | 1 << 7}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(VmxExtension, BitSixIsTheUserExecuteRightWhereItExists) {
  PageFormat split = MakeEptFormat({});
  split.layout.exec_user = 1u << 10;
  const TableFault write = {.access = Access::Write(Privilege::kSupervisor),
                            .present = true,
                            .rights = kReadExecute,
                            .linear_valid = true,
                            .guest_rights = Rights(Rights::kExecSupervisor)};
  EXPECT_EQ(VmxExtension().Describe(write, split).qualification,
            2u | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8);
  EXPECT_EQ(VmxExtension().Describe(write, MakeEptFormat({})).qualification,
            2u | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8);
}

TEST(VmxExtension, WithoutAccessedAndDirtyATableReadIsARead) {
  const PageFormat format = MakeEptFormat({.accessed_dirty = false});
  TableFault fault = {.stage = Stage::kTable, .linear_valid = true};
  EXPECT_EQ(VmxExtension().Describe(fault, format).qualification, 1u | 1 << 7);
  fault.access = Access::Write(Privilege::kSupervisor);
  EXPECT_EQ(VmxExtension().Describe(fault, format).qualification, 3u | 1 << 7);
}

TEST(VmxExtension, MalformedEntryIsAMisconfigurationWithoutQualification) {
  const ExitDescription exit =
      VmxExtension().Describe({.present = true, .malformed = true}, MakeEptFormat({}));
  EXPECT_EQ(exit.name, "EPT misconfiguration");
  EXPECT_EQ(exit.qualification, 0u);
}

TEST(VmxExtension, FourMebibytePagesReachThePhysicalWidthAtMostForty) {
  bool root_bit8_reserved = true;
  std::uint8_t pse36_bits = 0;
  VmxExtension().AdjustPagingFeatures(root_bit8_reserved, pse36_bits, 36);
  EXPECT_FALSE(root_bit8_reserved);
  EXPECT_EQ(pse36_bits, 36);
  VmxExtension().AdjustPagingFeatures(root_bit8_reserved, pse36_bits, 46);
  EXPECT_EQ(pse36_bits, 40);
}

}  // namespace
}  // namespace pagesaw::vmx
