#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.page_format;
import pagesaw.core.plugin;
import pagesaw.core.processor;
import pagesaw.core.virt_extension;
import pagesaw.plugins.svm.npt_format;
import pagesaw.plugins.svm.plugin;

namespace pagesaw::svm {
namespace {

TEST(SvmPlugin, RegistersItsExtensionAndFormat) {
  PluginRegistry registry;
  ASSERT_FALSE(MakeSvmPlugin()->Register(registry));
  EXPECT_EQ(registry.ExtensionOf("amd")->cpuid_vendor(), "AuthenticAMD");
  EXPECT_EQ(registry.TdpFormatOf("amd", false)->name, "npt");
}

struct InfoCase {
  const char* name;
  TableFault fault;
  std::uint64_t want;
};

class SvmExitInfo : public testing::TestWithParam<InfoCase> {};

TEST_P(SvmExitInfo, IsThatOfANestedPageFault) {
  EXPECT_EQ(SvmExtension().Describe(GetParam().fault, MakeNptFormat(48)).qualification,
            GetParam().want);
}

constexpr Access kRead = Access::Read(Privilege::kSupervisor);
constexpr Access kWrite = Access::Write(Privilege::kSupervisor);
constexpr Access kFetch = Access::Fetch(Privilege::kSupervisor);

INSTANTIATE_TEST_SUITE_P(
    Faults, SvmExitInfo,
    testing::Values(
        InfoCase{"NotPresentRead", {.access = kRead}, 0x1'0000'0004},
        InfoCase{"RefusedRead", {.access = kRead, .present = true}, 0x1'0000'0005},
        InfoCase{"RefusedFetch", {.access = kFetch, .present = true}, 0x1'0000'0015},
        InfoCase{"RefusedWrite", {.access = kWrite, .present = true}, 0x1'0000'0007},
        InfoCase{"RefusedTable",
                 {.access = kFetch, .stage = Stage::kTable, .present = true},
                 0x2'0000'0007},
        InfoCase{"ReservedMetByTable",
                 {.access = kRead, .stage = Stage::kTable, .present = true, .malformed = true},
                 0x2'0000'000f},
        InfoCase{"ReservedMetByFetch",
                 {.access = kFetch, .present = true, .malformed = true},
                 0x1'0000'001d}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(SvmExtension, FourMebibytePagesReachFortyBits) {
  bool root_bit8_reserved = false;
  std::uint8_t pse36_bits = 0;
  SvmExtension().AdjustPagingFeatures(root_bit8_reserved, pse36_bits, 36);
  EXPECT_TRUE(root_bit8_reserved);
  EXPECT_EQ(pse36_bits, 40);
}

}  // namespace
}  // namespace pagesaw::svm
