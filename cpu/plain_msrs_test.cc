#include <gtest/gtest.h>

#include <cstdint>
#include <string>

import pagesaw.cpu.plain_msrs;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kAll = ~std::uint64_t{0};

TEST(PlainMsrs, BelongToOneVendorMostly) {
  EXPECT_TRUE(PlainMsrs(false).Read(kMsrPlatformInfo));
  EXPECT_FALSE(PlainMsrs(true).Read(kMsrPlatformInfo));
  EXPECT_TRUE(PlainMsrs(true).Read(kMsrHwcr));
  EXPECT_FALSE(PlainMsrs(false).Read(kMsrHwcr));
  EXPECT_FALSE(PlainMsrs(false).Write(kMsrHwcr, 0));
  EXPECT_FALSE(PlainMsrs(true).Read(0x1234'5678));
}

struct WriteCase {
  const char* name;
  bool amd;
  std::uint32_t index;
  std::uint64_t value;
  bool want;
  std::uint64_t kept;  // what is read afterwards
};
class PlainMsrsWrite : public testing::TestWithParam<WriteCase> {};
TEST_P(PlainMsrsWrite, KeepsWhatIsWritableAndRefusesWhatIsReserved) {
  PlainMsrs msrs(GetParam().amd);
  EXPECT_EQ(msrs.Write(GetParam().index, GetParam().value), GetParam().want);
  EXPECT_EQ(msrs.Read(GetParam().index), GetParam().kept);
}
INSTANTIATE_TEST_SUITE_P(
    Values, PlainMsrsWrite,
    testing::Values(
        WriteCase{"PlatformIdIsReadOnly", false, kMsrPlatformId, 0, false, 0},
        WriteCase{"MicrocodeIsAskedForByAWrite", false, kMsrMicrocode, 0, true, 0x1'0000'0000},
        WriteCase{"PatchLevelIsReadOnly", true, kMsrMicrocode, 0, false, 0x0800'1138},
        WriteCase{"CpuidFaulting", false, kMsrMiscFeatures, 1, true, 1},
        WriteCase{"MiscFeaturesReserved", false, kMsrMiscFeatures, 2, false, 0},
        WriteCase{"MiscEnable", false, kMsrMiscEnable, 0x4'00c5'1809, true, 0x4'00c5'1809},
        WriteCase{"MiscEnableKeepsFixedBits", false, kMsrMiscEnable, 0x80, true, 0x1800},
        WriteCase{"MiscEnableReserved", false, kMsrMiscEnable, 2, false, 0x4'1801},
        WriteCase{"Hwcr", true, kMsrHwcr, kHwcrMcStatusWritable, true, kHwcrMcStatusWritable},
        WriteCase{"HwcrReserved", true, kMsrHwcr, 1u << 31, false, 1u << 24},
        WriteCase{"Syscfg", true, kMsrSyscfg, 1u << 20, true, 1u << 20},
        WriteCase{"TopMem", true, kMsrTopMem, 0x8000'0000, true, 0x8000'0000},
        WriteCase{"TopMemUnaligned", true, kMsrTopMem, 0x1000, false, 0},
        WriteCase{"LsCfgIsAnything", true, kMsrLsCfg, kAll, true, kAll}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw::cpu
