#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <variant>

import pagesaw.core.cpu_state;
import pagesaw.cpu.core;
import pagesaw.cpu.model;
import pagesaw.cpu.test_traps;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kCet = 1u << 23, kOsxsave = 1u << 18;
constexpr std::uint32_t kUserCet = 0x6a0, kPl0Ssp = 0x6a4, kSspTable = 0x6a8, kXss = 0xda0;

CpuModel ModelWith(std::string_view features) {
  return std::get<CpuModel>(MakeModel({.features = features}));
}

CpuState CetState() {
  CpuState state = TestProcessor::LongModeState();
  state.cr4 |= kCet | kOsxsave;
  return state;
}

TEST(CetMsr, TakesLegalValuesAlone) {
  struct Row {
    std::string_view features;
    std::uint32_t index;
    std::uint64_t value;
    bool legal;
  };
  static constexpr Row kRows[] = {
      {"", kUserCet, 0x3, true},
      {"", kUserCet, 0x3f, true},
      {"", kUserCet, 0x40, false},  // reserved
      {"", kUserCet, 0x200, false},
      {"", kUserCet, 0x400, true},
      {"", kUserCet, 0x800, true},
      {"", kUserCet, 0xc00, false},                  // suppressed, and waiting
      {"", kUserCet, 0x7fff'ffff'f000, true},        // the bitmap
      {"-la57", kUserCet, 0x8000'0000'0000, false},  // not canonical
      {"-ibt", kUserCet, 0x3, true},
      {"-ibt", kUserCet, 0x4, false},
      {"-ibt", kUserCet, 0x1000, false},
      {"-shstk", kUserCet, 0x1, false},
      {"-shstk", kUserCet, 0x34, true},
      {"-shstk,-ibt", kUserCet, 0, false},
      {"", kPl0Ssp, 0x1004, true},
      {"", kPl0Ssp, 0x1002, false},
      {"", kPl0Ssp, 0x1001, false},
      {"-la57", kPl0Ssp, 0x8000'0000'0000, false},
      {"-shstk", kPl0Ssp, 0, false},
      {"", kSspTable, 0x1001, true},
      {"-shstk", kSspTable, 0, false},
      {"", kXss, 0x1800, true},
      {"", kXss, 0x2000, false},
      {"-shstk,-ibt", kXss, 0x800, false},
  };
  static constexpr std::uint8_t kWrmsr[] = {0x0f, 0x30};
  for (const Row& row : kRows) {
    TrapTester tester(ModelWith(row.features));
    CpuState state = TestProcessor::LongModeState();
    state.gpr[kRcx] = row.index;
    state.gpr[kRax] = static_cast<std::uint32_t>(row.value);
    state.gpr[kRdx] = row.value >> 32;
    EXPECT_EQ(tester.Run(kWrmsr, state), row.legal ? TrapTester::kNoTrap : kGp)
        << row.features << std::hex << " " << row.index << " := " << row.value;
  }
}

TEST(CetState, IsSavedAndRestoredByXsaves) {
  static constexpr std::uint8_t kXsaves[] = {0x0f, 0xc7, 0x2f};
  static constexpr std::uint8_t kXrstors[] = {0x0f, 0xc7, 0x1f};
  TrapTester tester(ModelWith(""));
  CpuState state = CetState();
  state.xss = 0x1800;
  state.gpr[kRax] = 0x1800;
  CpuState full = state;
  full.cet.user = 0x34;
  full.cet.privilege_ssp = {0x1000, 0x2000, 0x3000, 0x4000};
  ASSERT_EQ(tester.Run(kXsaves, full), TrapTester::kNoTrap);
  std::array<std::uint64_t, 8> header;
  std::array<std::uint64_t, 5> image;
  std::memcpy(header.data(), tester.test().memory() + TrapTester::kData + 512, sizeof(header));
  std::memcpy(image.data(), tester.test().memory() + TrapTester::kData + 576, sizeof(image));
  EXPECT_EQ(header[0], 0x1800u);
  EXPECT_EQ(header[1], std::uint64_t{1} << 63 | 0x1800);
  EXPECT_EQ(image, (std::array<std::uint64_t, 5>{0x34, 0x4000, 0x1000, 0x2000, 0x3000}));

  ASSERT_EQ(tester.Run(kXrstors, state), TrapTester::kNoTrap);
  EXPECT_EQ(tester.state().cet.user, 0x34u);
  EXPECT_EQ(tester.state().cet.privilege_ssp, full.cet.privilege_ssp);
  // What WRMSR would refuse.
  const std::uint64_t bad = 0xc00;
  std::memcpy(tester.test().memory() + TrapTester::kData + 576, &bad, sizeof(bad));
  EXPECT_EQ(tester.Run(kXrstors, state), kGp);
}

TEST(CetInstructions, AreUndefinedWhileShadowStacksAreOff) {
  struct Row {
    std::string_view name;
    std::array<std::uint8_t, 6> code;
  };
  // Filled up with NOPs.
  static constexpr Row kRows[] = {
      {"incssp", {0xf3, 0x48, 0x0f, 0xae, 0xe8, 0x90}},
      {"saveprevssp", {0xf3, 0x0f, 0x01, 0xea, 0x90, 0x90}},
      {"rstorssp", {0xf3, 0x0f, 0x01, 0x2f, 0x90, 0x90}},
      {"wrss", {0x48, 0x0f, 0x38, 0xf6, 0x07, 0x90}},
      {"setssbsy", {0xf3, 0x0f, 0x01, 0xe8, 0x90, 0x90}},
      {"clrssbsy", {0xf3, 0x0f, 0xae, 0x37, 0x90, 0x90}},
  };
  for (const std::string_view features : {"", "-shstk"}) {
    TrapTester tester(ModelWith(features));
    for (const Row& row : kRows) EXPECT_EQ(tester.Run(row.code, CetState()), kUd) << row.name;
  }
  // RDSSP does nothing then, and WRUSS needs CR4.CET alone.
  static constexpr std::uint8_t kRdssp[] = {0xf3, 0x48, 0x0f, 0x1e, 0xc8};
  static constexpr std::uint8_t kWruss[] = {0x66, 0x48, 0x0f, 0x38, 0xf5, 0x07};
  TrapTester tester(ModelWith(""));
  CpuState state = TestProcessor::LongModeState();
  state.gpr[kRax] = 77;
  EXPECT_EQ(tester.Run(kRdssp, state), TrapTester::kNoTrap);
  EXPECT_EQ(tester.state().gpr[kRax], 77u);
  EXPECT_EQ(tester.Run(kWruss, state), kUd);
  state = CetState();
  state.cr4 &= ~kCet;
  EXPECT_EQ(TrapTester(ModelWith("-shstk")).Run(kWruss, state), kUd);
}

}  // namespace
}  // namespace pagesaw::cpu
