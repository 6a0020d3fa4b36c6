// What CPUID says of an instruction is so: with its feature the instruction is there, without it it
// is #UD.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

import pagesaw.cpu.control_registers;
import pagesaw.cpu.test_processor;
import pagesaw.cpu.test_vendor;

namespace pagesaw::cpu {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint64_t kIdt = 0x20000, kUndefined = 0x22000, kOther = 0x23000, kData = 0x30000;

// Runs `code` at CPL 0 of 64-bit mode, RBX at aligned data, every unit on that the model has. True
// if it ended in #UD.
bool IsUndefined(const CpuModel& model, Bytes code) {
  TestProcessor machine(model);
  Bytes idt;
  for (unsigned vector = 0; vector < 32; ++vector) {
    const std::uint64_t entry = vector == 6 ? kUndefined : kOther;
    const std::uint64_t gate[2] = {
        (entry & 0xffff) | 0x8e00'0008'0000 | (entry >> 16 & 0xffff) << 48, 0};
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(gate);
    idt.insert(idt.end(), bytes, bytes + sizeof(gate));
  }
  machine.Write(kIdt, idt);
  machine.Write(0x21008, Bytes{0xff, 0xff, 0, 0, 0, 0x9b, 0xaf, 0});
  machine.Write(kUndefined, Bytes{0xf4});
  machine.Write(kOther, Bytes{0xf4});
  CpuState state = TestProcessor::LongModeState();
  state.cr4 |= AllowedCr4(model) & (1u << 9 | 1u << 16 | 1u << 18 | 1u << 22);
  state.xcr0 = model.xcr0_bits();
  state.idtr = {.base = kIdt, .limit = 0x1ff};
  state.gdtr = {.base = 0x21000, .limit = 0xf};
  state.gpr[kRbx] = kData;
  machine.processor().SetState(state);
  code.push_back(0xf4);
  machine.RunCode(code);
  return machine.processor().GetState().rip == kUndefined + 1;
}

struct FeatureCase {
  const char* name;  // as CPUID's flags are called
  Bytes code;
  bool intel_only = false;
};
class FeatureInstruction : public testing::TestWithParam<FeatureCase> {};
TEST_P(FeatureInstruction, IsThereIfAndOnlyIfCpuidSaysSo) {
  const FeatureCase& c = GetParam();
  for (const Vendor vendor : {Vendor::kIntel, Vendor::kAmd}) {
    if (c.intel_only && vendor == Vendor::kAmd) continue;
    const std::string name = c.name;
    EXPECT_TRUE(IsUndefined(ModelOf(vendor, "-" + name), c.code));
    const auto with = MakeModel({.extension = ModelOf(vendor).extension(), .features = "+" + name});
    if (with.index() == 0) EXPECT_FALSE(IsUndefined(std::get<CpuModel>(with), c.code));
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, FeatureInstruction,
    testing::Values(
        FeatureCase{"fpu", {0xd9, 0xe8}}, FeatureCase{"tsc", {0x0f, 0x31}},
        FeatureCase{"msr", {0x0f, 0x32}}, FeatureCase{"cx8", {0x0f, 0xc7, 0x0b}},
        FeatureCase{"sep", {0x0f, 0x34}, true}, FeatureCase{"cmov", {0x0f, 0x44, 0xc1}},
        FeatureCase{"clflush", {0x0f, 0xae, 0x3b}}, FeatureCase{"mmx", {0x0f, 0xef, 0xc0}},
        FeatureCase{"fxsr", {0x0f, 0xae, 0x03}}, FeatureCase{"sse", {0x0f, 0x57, 0xc0}},
        FeatureCase{"sse2", {0x66, 0x0f, 0xef, 0xc0}},
        FeatureCase{"sse3", {0xf2, 0x0f, 0xd0, 0xc0}},
        FeatureCase{"pclmulqdq", {0x66, 0x0f, 0x3a, 0x44, 0xc0, 0}},
        FeatureCase{"monitor", {0x0f, 0x01, 0xc8}},
        FeatureCase{"ssse3", {0x66, 0x0f, 0x38, 0x00, 0xc0}},
        FeatureCase{"fma", {0xc4, 0xe2, 0x79, 0x98, 0xc0}},
        FeatureCase{"cx16", {0x48, 0x0f, 0xc7, 0x0b}},
        FeatureCase{"sse4_1", {0x66, 0x0f, 0x38, 0x10, 0xc0}},
        FeatureCase{"sse4_2", {0x66, 0x0f, 0x38, 0x37, 0xc0}},
        FeatureCase{"movbe", {0x0f, 0x38, 0xf0, 0x03}},
        FeatureCase{"popcnt", {0xf3, 0x0f, 0xb8, 0xc0}},
        FeatureCase{"aes", {0x66, 0x0f, 0x38, 0xdc, 0xc0}},
        FeatureCase{"xsave", {0x0f, 0x01, 0xd0}}, FeatureCase{"avx", {0xc5, 0xf8, 0x57, 0xc0}},
        FeatureCase{"f16c", {0xc4, 0xe2, 0x79, 0x13, 0xc0}},
        FeatureCase{"rdrand", {0x0f, 0xc7, 0xf0}},
        FeatureCase{"fsgsbase", {0xf3, 0x0f, 0xae, 0xc0}},
        FeatureCase{"bmi1", {0xc4, 0xe2, 0x78, 0xf2, 0xc0}},
        FeatureCase{"avx2", {0xc5, 0xfd, 0xef, 0xc0}},
        FeatureCase{"bmi2", {0xc4, 0xe2, 0x7b, 0xf5, 0xc0}},
        FeatureCase{"invpcid", {0x66, 0x0f, 0x38, 0x82, 0x03}},
        FeatureCase{"rdseed", {0x0f, 0xc7, 0xf8}},
        FeatureCase{"adx", {0x66, 0x0f, 0x38, 0xf6, 0xc0}}, FeatureCase{"smap", {0x0f, 0x01, 0xcb}},
        FeatureCase{"clflushopt", {0x66, 0x0f, 0xae, 0x3b}},
        FeatureCase{"clwb", {0x66, 0x0f, 0xae, 0x33}},
        FeatureCase{"sha_ni", {0x0f, 0x38, 0xc8, 0xc0}}, FeatureCase{"pku", {0x0f, 0x01, 0xee}},
        FeatureCase{"rdpid", {0xf3, 0x0f, 0xc7, 0xf8}}, FeatureCase{"xsaveopt", {0x0f, 0xae, 0x33}},
        FeatureCase{"xsavec", {0x0f, 0xc7, 0x23}}, FeatureCase{"xsaves", {0x0f, 0xc7, 0x2b}},
        FeatureCase{"lahf_lm", {0x9f}}, FeatureCase{"syscall", {0x0f, 0x05}},
        FeatureCase{"mwaitx", {0x0f, 0x01, 0xfa}}, FeatureCase{"rdtscp", {0x0f, 0x01, 0xf9}}),
    [](const auto& info) { return std::string(info.param.name); });

// Instructions that no model has, among them the prefix by which some hypervisors are asked to
// emulate the next instruction: a UD2 and three letters.
TEST(Features, WhatNoModelHasIsUndefined) {
  const Bytes all[] = {
      {0x0f, 0x0b, 'k', 'v', 'm'},           // UD2 ...
      {0x0f, 0x01, 0xfd},                    // RDPRU
      {0x0f, 0x01, 0xfc},                    // CLZERO
      {0x0f, 0x01, 0xd5},                    // XEND
      {0x0f, 0x01, 0xdd},                    // CLGI
      {0x0f, 0xc7, 0x33},                    // VMPTRLD
      {0x66, 0x0f, 0x38, 0xf8, 0x03},        // MOVDIR64B
      {0x0f, 0x38, 0xf9, 0x03},              // MOVDIRI
      {0xf3, 0x0f, 0xae, 0xf0},              // UMONITOR
      {0x62, 0xf1, 0x7c, 0x48, 0x57, 0xc0},  // VXORPS ZMM
      {0x8f, 0xe9, 0x78, 0x01, 0xc8},        // a TBM instruction
      {0x0f, 0x0f, 0xc0, 0x9e},              // a 3DNow! one
  };
  for (const Vendor vendor : {Vendor::kIntel, Vendor::kAmd}) {
    for (const Bytes& code : all) {
      EXPECT_TRUE(IsUndefined(ModelOf(vendor), code)) << testing::PrintToString(code);
    }
  }
}

}  // namespace
}  // namespace pagesaw::cpu
