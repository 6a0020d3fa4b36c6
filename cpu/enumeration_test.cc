// CPUID promises what works and nothing else: for every model, each feature that it enumerates is
// tried, and each that it does not is seen to be missing.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <variant>
#include <vector>

import pagesaw.core.cpu_state;
import pagesaw.core.page_format;
import pagesaw.core.processor;
import pagesaw.core.virt_extension;
import pagesaw.cpu.core;
import pagesaw.cpu.model;
import pagesaw.cpu.named_model;
import pagesaw.cpu.test_traps;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kOsFxsr = 3u << 9, kOsxsave = 1u << 18;

class Vendor : public VirtExtension {
 public:
  Vendor(std::string_view vendor, std::string_view letters) : vendor_(vendor), letters_(letters) {}
  std::string_view name() const override { return vendor_; }
  std::string_view vendor() const override { return vendor_; }
  std::string_view cpuid_vendor() const override { return letters_; }
  ExitDescription Describe(const TableFault&, const PageFormat&) const override { return {}; }
  void AdjustCpuid(std::uint32_t, std::uint32_t, CpuidResult&) const override {}
  void AdjustPagingFeatures(bool&, std::uint8_t&, unsigned) const override {}

 private:
  std::string_view vendor_, letters_;
};
const Vendor kIntel("intel", "GenuineIntel");
const Vendor kAmd("amd", "AuthenticAMD");

// A model's name and its vendor.
using Which = std::tuple<std::string, const Vendor*>;

std::vector<Which> AllModels() {
  std::vector<Which> all = {{"max", &kIntel}, {"max", &kAmd}};
  for (const NamedModel& model : NamedModels()) {
    all.emplace_back(model.name, model.vendor == "intel" ? &kIntel : &kAmd);
  }
  return all;
}

class Enumeration : public testing::TestWithParam<Which> {
 protected:
  static CpuModel Make(std::uint32_t index = 0, std::uint32_t count = 1) {
    const auto& [name, vendor] = GetParam();
    auto made =
        MakeModel({.extension = vendor, .model = name, .apic_id = index, .cpu_count = count});
    EXPECT_EQ(made.index(), 0u);
    return std::get<CpuModel>(made);
  }
  static bool IsAmd() { return std::get<1>(GetParam()) == &kAmd; }
};

INSTANTIATE_TEST_SUITE_P(Models, Enumeration, testing::ValuesIn(AllModels()), [](const auto& info) {
  std::string name(std::get<1>(info.param)->vendor());
  for (const char c : std::get<0>(info.param)) name += c == '-' ? 'X' : c;
  return name;
});

enum Register : std::uint8_t { kEax, kEbx, kEcx, kEdx };

// Where the manuals have a feature's bit, written down here once more.
struct Place {
  std::uint32_t leaf;
  std::uint32_t subleaf;
  Register reg;
  unsigned bit;
};

bool Enumerated(const CpuModel& model, const Place& place) {
  const CpuidResult result = model.Cpuid(place.leaf, place.subleaf, {});
  const std::uint32_t words[] = {result.eax, result.ebx, result.ecx, result.edx};
  return (words[place.reg] >> place.bit & 1) != 0;
}

// The state in which every instruction that there is can be executed.
CpuState Prepared(const CpuModel& model) {
  CpuState state = TestProcessor::LongModeState();
  state.cr4 |= kOsFxsr;
  if (Enumerated(model, {1, 0, kEcx, 26})) {
    state.cr4 |= kOsxsave;
    state.xcr0 = model.xcr0_bits();
  }
  if (Enumerated(model, {7, 0, kEbx, 0})) state.cr4 |= 1u << 16;  // FSGSBASE
  if (Enumerated(model, {7, 0, kEcx, 3})) state.cr4 |= 1u << 22;  // PKE
  return state;
}

struct InstructionRow {
  std::string_view name;
  Place place;
  std::vector<std::uint8_t> code;
};

TEST_P(Enumeration, InstructionsExistAsEnumerated) {
  static const InstructionRow kRows[] = {
      {"sse3", {1, 0, kEcx, 0}, {0xf2, 0x0f, 0xd0, 0xc1}},
      {"pclmulqdq", {1, 0, kEcx, 1}, {0x66, 0x0f, 0x3a, 0x44, 0xc1, 0x00}},
      {"ssse3", {1, 0, kEcx, 9}, {0x66, 0x0f, 0x38, 0x00, 0xc1}},
      {"fma", {1, 0, kEcx, 12}, {0xc4, 0xe2, 0x71, 0x98, 0xc1}},
      {"cx16", {1, 0, kEcx, 13}, {0x48, 0x0f, 0xc7, 0x0f}},
      {"sse4.1", {1, 0, kEcx, 19}, {0x66, 0x0f, 0x38, 0x17, 0xc1}},
      {"sse4.2", {1, 0, kEcx, 20}, {0x66, 0x0f, 0x38, 0x37, 0xc1}},
      {"movbe", {1, 0, kEcx, 22}, {0x0f, 0x38, 0xf0, 0x07}},
      {"popcnt", {1, 0, kEcx, 23}, {0xf3, 0x0f, 0xb8, 0xc1}},
      {"aes", {1, 0, kEcx, 25}, {0x66, 0x0f, 0x38, 0xdc, 0xc1}},
      {"xsave", {1, 0, kEcx, 26}, {0x31, 0xc9, 0x0f, 0x01, 0xd0}},
      {"avx", {1, 0, kEcx, 28}, {0xc5, 0xf0, 0x58, 0xc1}},
      {"f16c", {1, 0, kEcx, 29}, {0xc4, 0xe2, 0x79, 0x13, 0xc1}},
      {"rdrand", {1, 0, kEcx, 30}, {0x0f, 0xc7, 0xf0}},
      {"fsgsbase", {7, 0, kEbx, 0}, {0xf3, 0x0f, 0xae, 0xc0}},
      {"bmi1", {7, 0, kEbx, 3}, {0xc4, 0xe2, 0x78, 0xf2, 0xc1}},
      {"avx2", {7, 0, kEbx, 5}, {0xc5, 0xf5, 0xfc, 0xc1}},
      {"bmi2", {7, 0, kEbx, 8}, {0xc4, 0xe2, 0x71, 0xf7, 0xc1}},
      {"invpcid", {7, 0, kEbx, 10}, {0xb8, 0x02, 0, 0, 0, 0x66, 0x0f, 0x38, 0x82, 0x07}},
      {"rdseed", {7, 0, kEbx, 18}, {0x0f, 0xc7, 0xf8}},
      {"adx", {7, 0, kEbx, 19}, {0x66, 0x0f, 0x38, 0xf6, 0xc1}},
      {"smap", {7, 0, kEbx, 20}, {0x0f, 0x01, 0xcb}},
      {"clflushopt", {7, 0, kEbx, 23}, {0x66, 0x0f, 0xae, 0x3f}},
      {"clwb", {7, 0, kEbx, 24}, {0x66, 0x0f, 0xae, 0x37}},
      {"sha", {7, 0, kEbx, 29}, {0x0f, 0x38, 0xc8, 0xc1}},
      {"pku", {7, 0, kEcx, 3}, {0x31, 0xc9, 0x0f, 0x01, 0xee}},
      {"rdpid", {7, 0, kEcx, 22}, {0xf3, 0x0f, 0xc7, 0xf8}},
      {"xsaveopt", {0xd, 1, kEax, 0}, {0x0f, 0xae, 0x37}},
      {"xsavec", {0xd, 1, kEax, 1}, {0x0f, 0xc7, 0x27}},
      {"xsaves", {0xd, 1, kEax, 3}, {0x0f, 0xc7, 0x2f}},
      {"rdtscp", {0x8000'0001, 0, kEdx, 27}, {0x0f, 0x01, 0xf9}},
      {"monitorx", {0x8000'0001, 0, kEcx, 29}, {0x31, 0xc9, 0x0f, 0x01, 0xfa}},
  };
  const CpuModel model = Make();
  TrapTester tester(model);
  for (const InstructionRow& row : kRows) {
    const int want = Enumerated(model, row.place) ? TrapTester::kNoTrap : kUd;
    EXPECT_EQ(tester.Run(row.code, Prepared(model)), want) << row.name;
  }
}

TEST_P(Enumeration, Cr4HasTheBitsThatAreEnumerated) {
  struct Row {
    unsigned bit;
    std::vector<Place> any;
  };
  static const Row kRows[] = {
      {2, {{1, 0, kEdx, 4}}},
      {3, {{1, 0, kEdx, 2}}},
      {4, {{1, 0, kEdx, 3}}},
      {6, {{1, 0, kEdx, 7}}},
      {7, {{1, 0, kEdx, 13}}},
      {11, {{7, 0, kEcx, 2}}},
      {14, {}},
      {15, {}},
      {16, {{7, 0, kEbx, 0}}},
      {17, {{1, 0, kEcx, 17}}},
      {18, {{1, 0, kEcx, 26}}},
      {19, {}},
      {20, {{7, 0, kEbx, 7}}},
      {21, {{7, 0, kEbx, 20}}},
      {22, {{7, 0, kEcx, 3}}},
      {23, {{7, 0, kEcx, 7}, {7, 0, kEdx, 20}}},
      {24, {{7, 0, kEcx, 31}}},
      {25, {}},
      {28, {{7, 1, kEax, 26}}},
      {32, {}},
  };
  static constexpr std::uint8_t kMovCr4Rax[] = {0x0f, 0x22, 0xe0};
  const CpuModel model = Make();
  TrapTester tester(model);
  for (const Row& row : kRows) {
    bool has = false;
    for (const Place& place : row.any) has = has || Enumerated(model, place);
    CpuState state = Prepared(model);
    state.gpr[kRax] = state.cr4 | std::uint64_t{1} << row.bit;
    EXPECT_EQ(tester.Run(kMovCr4Rax, state), has ? TrapTester::kNoTrap : kGp) << "bit " << row.bit;
  }
}

TEST_P(Enumeration, Xcr0HasTheComponentsThatAreEnumerated) {
  const CpuModel model = Make();
  if (!Enumerated(model, {1, 0, kEcx, 26})) return;
  static constexpr std::uint8_t kXsetbv[] = {0x0f, 0x01, 0xd1};
  const CpuidResult leaf = model.Cpuid(0xd, 0, {});
  TrapTester tester(model);
  for (unsigned bit = 1; bit < 32; ++bit) {
    CpuState state = Prepared(model);
    state.gpr[kRcx] = 0;
    state.gpr[kRax] = 3 | 1u << bit;
    state.gpr[kRdx] = 0;
    const bool has = (leaf.eax >> bit & 1) != 0;
    EXPECT_EQ(tester.Run(kXsetbv, state), has ? TrapTester::kNoTrap : kGp) << "bit " << bit;
    const CpuidResult component = model.Cpuid(0xd, bit, {});
    const bool supervisor = (model.Cpuid(0xd, 1, {}).ecx >> bit & 1) != 0;
    if (bit > 1) {
      EXPECT_EQ(component.eax != 0, has || supervisor) << "component " << bit;
    }
  }
}

TEST_P(Enumeration, MsrsExistAsEnumerated) {
  struct Row {
    std::uint32_t index;
    std::vector<Place> any;
  };
  static const Row kRows[] = {
      {0x3b, {{7, 0, kEbx, 1}}},
      {0x48, {{7, 0, kEdx, 26}}},
      {0x10a, {{7, 0, kEdx, 29}}},
      {0x277, {{1, 0, kEdx, 16}}},
      {0x6a0, {{7, 0, kEcx, 7}, {7, 0, kEdx, 20}}},
      {0x6a2, {{7, 0, kEcx, 7}, {7, 0, kEdx, 20}}},
      {0x6a4, {{7, 0, kEcx, 7}}},
      {0x6a7, {{7, 0, kEcx, 7}}},
      {0x6a8, {{7, 0, kEcx, 7}}},
      {0x6e0, {{1, 0, kEcx, 24}}},
      {0x6e1, {{7, 0, kEcx, 31}}},
      {0xda0, {{0xd, 1, kEax, 3}}},
      {0xc000'0103, {{0x8000'0001, 0, kEdx, 27}, {7, 0, kEcx, 22}}},
  };
  static constexpr std::uint8_t kRdmsr[] = {0x0f, 0x32};
  const CpuModel model = Make();
  TrapTester tester(model);
  for (const Row& row : kRows) {
    bool has = false;
    for (const Place& place : row.any) has = has || Enumerated(model, place);
    CpuState state = Prepared(model);
    state.gpr[kRcx] = row.index;
    EXPECT_EQ(tester.Run(kRdmsr, state), has ? TrapTester::kNoTrap : kGp) << std::hex << row.index;
  }
}

TEST_P(Enumeration, EferHasTheBitsThatAreEnumerated) {
  constexpr std::uint32_t kEfer = 0xc000'0080;
  const Place places[] = {{0x8000'0001, 0, kEdx, 11}, {0x8000'0001, 0, kEdx, 29},
                          {0x8000'0001, 0, kEdx, 20}, {0x8000'0001, 0, kEcx, 2},
                          {0x8000'0001, 0, kEdx, 25}, {0x8000'0021, 0, kEax, 8}};
  static constexpr std::uint8_t kWrmsr[] = {0x0f, 0x30};
  const CpuModel model = Make();
  TrapTester tester(model);
  for (unsigned bit = 0; bit < 64; ++bit) {
    constexpr unsigned kBits[] = {0, 8, 11, 12, 14, 21};
    bool has = bit == 10;  // LMA, of which writes have no effect
    for (unsigned i = 0; i < std::size(kBits); ++i) {
      has = has || (kBits[i] == bit && Enumerated(model, places[i]));
    }
    CpuState state = Prepared(model);
    state.gpr[kRcx] = kEfer;
    const std::uint64_t value = state.efer | std::uint64_t{1} << bit;
    state.gpr[kRax] = value & 0xffff'ffff;
    state.gpr[kRdx] = value >> 32;
    EXPECT_EQ(tester.Run(kWrmsr, state), has ? TrapTester::kNoTrap : kGp) << "bit " << bit;
  }
}

// [intel/vol2] "CPUID", leaf 0Dh
TEST_P(Enumeration, XsaveAreasAreAsLargeAsTheirComponents) {
  constexpr std::uint32_t kArea = 576;
  const CpuModel model = Make();
  const CpuidResult all = model.Cpuid(0xd, 0, {});
  const CpuidResult more = model.Cpuid(0xd, 1, {});
  if (all.eax == 0) return;
  for (std::uint32_t xcr0 = 1; xcr0 <= all.eax; xcr0 += 2) {
    if ((xcr0 & ~all.eax) != 0) continue;
    for (const std::uint32_t xss : {0u, more.ecx}) {
      std::uint32_t standard = kArea, compacted = kArea;
      for (unsigned bit = 2; bit < 32; ++bit) {
        const CpuidResult component = model.Cpuid(0xd, bit, {});
        if (xcr0 >> bit & 1) standard = std::max(standard, component.ebx + component.eax);
        if ((xcr0 | xss) >> bit & 1) compacted += component.eax;
        EXPECT_EQ(component.ecx, more.ecx >> bit & 1) << bit;  // no component is aligned
      }
      const CpuidDynamic dynamic = {.xcr0 = xcr0, .xss = xss};
      EXPECT_EQ(model.Cpuid(0xd, 0, dynamic).ebx, standard);
      if (xcr0 == all.eax) EXPECT_EQ(all.ecx, standard);
      if ((more.eax & 2) != 0) EXPECT_EQ(model.Cpuid(0xd, 1, dynamic).ebx, compacted);
    }
  }
}

std::uint32_t KibOf(const CpuidResult& cache) {
  return ((cache.ebx >> 22) + 1) * ((cache.ebx & 0xfff) + 1) * (cache.ecx + 1) / 1024;
}

// The leaves of old tell of the same caches as the new one.
TEST_P(Enumeration, CachesAreTheSameWhereverTheyAreDescribed) {
  const CpuModel model = Make();
  const CpuidResult second = model.Cpuid(0x8000'0006, 0, {});
  EXPECT_EQ(second.ecx & 0xff, 64u);
  if (IsAmd()) EXPECT_EQ(model.Cpuid(0x8000'0005, 0, {}).ecx & 0xff, 64u);
  const std::uint32_t leaf = IsAmd() ? 0x8000'001d : 4;
  if (model.Cpuid(leaf, 0, {}).eax == 0) return;  // before there was such a leaf
  EXPECT_EQ(KibOf(model.Cpuid(leaf, 2, {})), second.ecx >> 16);
  if (!IsAmd()) return;
  EXPECT_EQ(KibOf(model.Cpuid(leaf, 0, {})), model.Cpuid(0x8000'0005, 0, {}).ecx >> 24);
  EXPECT_EQ(KibOf(model.Cpuid(leaf, 1, {})), model.Cpuid(0x8000'0005, 0, {}).edx >> 24);
}

// [intel/vol2] "CPUID", leaf 80000001h; AMD's have it everywhere
TEST_P(Enumeration, SyscallExistsOutside64BitModeOnAmdAlone) {
  const CpuModel model = Make();
  EXPECT_NE(model.Cpuid(0x8000'0001, 0, {}).edx & 1u << 11, 0u);
  EXPECT_EQ((model.Cpuid(0x8000'0001, 0, {.code_64 = false}).edx & 1u << 11) != 0, IsAmd());
}

// Every leaf there may be, and those behind the last, whose answer is nothing.
TEST_P(Enumeration, LeavesEndWhereTheFirstSaysSo) {
  const CpuModel model = Make();
  for (const std::uint32_t first : {0u, 0x8000'0000u}) {
    const std::uint32_t last = model.Cpuid(first, 0, {}).eax;
    EXPECT_GE(last, first + 1);
    EXPECT_LT(last, first + 0x40);
    for (std::uint32_t leaf = last + 1; leaf < last + 0x40; ++leaf) {
      for (std::uint32_t subleaf = 0; subleaf < 4; ++subleaf) {
        EXPECT_EQ(model.Cpuid(leaf, subleaf, {}), CpuidResult()) << std::hex << leaf;
      }
    }
  }
  // What nothing is built for: performance monitoring, trace, resource control, enclaves.
  for (const std::uint32_t leaf :
       {3u, 0xau, 0xfu, 0x10u, 0x12u, 0x14u, 0x17u, 0x18u, 0x19u, 0x1cu}) {
    for (std::uint32_t subleaf = 0; subleaf < 4; ++subleaf) {
      EXPECT_EQ(model.Cpuid(leaf, subleaf, {}), CpuidResult()) << std::hex << leaf;
    }
  }
  EXPECT_EQ(model.Cpuid(7, 2, {}), CpuidResult());
}

TEST_P(Enumeration, SaysWhichPartItIs) {
  const CpuModel model = Make();
  const NamedModel* part = FindNamedModel(std::get<0>(GetParam()));
  const CpuidResult vendor = model.Cpuid(0, 0, {});
  char letters[13] = {};
  std::memcpy(letters, &vendor.ebx, 4);
  std::memcpy(letters + 4, &vendor.edx, 4);
  std::memcpy(letters + 8, &vendor.ecx, 4);
  EXPECT_EQ(letters, std::get<1>(GetParam())->cpuid_vendor());
  if (part == nullptr) return;
  EXPECT_EQ(model.Cpuid(1, 0, {}).eax, part->signature);
  EXPECT_EQ(model.Cpuid(0x8000'0008, 0, {}).eax & 0xff, part->physical_bits);
  char brand[49] = {};
  for (std::uint32_t i = 0; i < 3; ++i) {
    const CpuidResult piece = model.Cpuid(0x8000'0002 + i, 0, {});
    std::memcpy(brand + std::size_t{16} * i, &piece, 16);
  }
  EXPECT_EQ(std::string(brand), part->brand);
}

TEST_P(Enumeration, TopologyTellsEveryProcessorFromTheOthers) {
  for (const std::uint32_t count : {1u, 2u, 3u, 17u, 64u}) {
    unsigned bits = 0;
    while ((1u << bits) < count) ++bits;
    std::set<std::uint32_t> ids;
    for (std::uint32_t index = 0; index < count; ++index) {
      const CpuModel model = Make(index, count);
      EXPECT_EQ(model.Cpuid(1, 0, {}).ebx >> 24, index);
      EXPECT_EQ(model.Cpuid(1, 0, {}).ebx >> 16 & 0xff, count);
      const std::uint32_t last = model.Cpuid(0, 0, {}).eax;
      for (const std::uint32_t leaf : {0xbu, 0x1fu}) {
        if (last < leaf) continue;
        const CpuidResult thread = model.Cpuid(leaf, 0, {}), core = model.Cpuid(leaf, 1, {}),
                          end = model.Cpuid(leaf, 2, {});
        EXPECT_EQ(thread.eax, 0u);
        EXPECT_EQ(thread.ebx, 1u);
        EXPECT_EQ(thread.ecx, 0x100u);
        EXPECT_EQ(core.eax, bits);
        EXPECT_EQ(core.ebx, count);
        EXPECT_EQ(core.ecx, 0x201u);
        EXPECT_EQ(core.edx, index);
        EXPECT_EQ(end.ebx, 0u);
        EXPECT_EQ(end.ecx, 2u);
      }
      if (!IsAmd()) {
        const CpuidResult cache = model.Cpuid(4, 0, {});
        EXPECT_EQ(cache.eax >> 26, (1u << bits) - 1);
        EXPECT_EQ(cache.eax >> 14 & 0xfff, 0u);
        EXPECT_EQ(model.Cpuid(4, 3, {}).eax, 0u);
      } else {
        EXPECT_EQ(model.Cpuid(0x8000'0008, 0, {}).ecx & 0xff, count - 1);
        EXPECT_EQ(model.Cpuid(0x8000'0008, 0, {}).ecx >> 12 & 15, bits);
        // Leaf 1 counts cores, not threads of one.
        EXPECT_EQ(Enumerated(model, {0x8000'0001, 0, kEcx, 1}), count > 1);
        if (Enumerated(model, {0x8000'0001, 0, kEcx, 22})) {
          EXPECT_EQ(model.Cpuid(0x8000'001e, 0, {}).eax, index);
          EXPECT_EQ(model.Cpuid(0x8000'001e, 0, {}).ebx, index);
          EXPECT_NE(model.Cpuid(0x8000'001d, 0, {}).eax, 0u);
        }
      }
      ids.insert(model.Cpuid(1, 0, {}).ebx >> 24);
    }
    EXPECT_EQ(ids.size(), count);
  }
}

// -- what a choice of features may be

std::string ErrorOf(std::string_view model, std::string_view features, const Vendor& vendor) {
  const auto made = MakeModel({.extension = &vendor, .model = model, .features = features});
  return made.index() == 0 ? "" : std::get<std::string>(made);
}

TEST(NamedModelChoice, RefusesWhatIsNoModelOfTheVendor) {
  EXPECT_EQ(ErrorOf("haswel", "", kIntel),
            "CPU model \"haswel\": not one of max, nehalem, ivy-bridge, haswell, skylake-server, "
            "sapphire-rapids, opteron, epyc-rome, epyc-milan, epyc-genoa");
  EXPECT_EQ(ErrorOf("haswell", "", kAmd), "CPU model \"haswell\": its vendor is intel, not amd");
  EXPECT_EQ(ErrorOf("haswell", "", kIntel), "");
  EXPECT_EQ(ErrorOf("max", "", kAmd), "");
}

TEST(NamedModelChoice, FeaturesNeedTheirFoundations) {
  EXPECT_EQ(ErrorOf("max", "-xsave,+avx2", kIntel),
            "CPU feature \"+avx2\": needs avx, which is off");
  EXPECT_EQ(ErrorOf("max", "+la57,-lm", kIntel), "CPU feature \"+la57\": needs lm, which is off");
  EXPECT_EQ(ErrorOf("nehalem", "+xsaves", kIntel),
            "CPU feature \"+xsaves\": needs xsavec, which is off");
  EXPECT_EQ(ErrorOf("epyc-milan", "+ibt", kAmd), "CPU feature \"+ibt\": not of AMD's processors");
  EXPECT_EQ(ErrorOf("haswell", "+topoext", kIntel),
            "CPU feature \"+topoext\": not of Intel's processors");
  const CpuModel model =
      std::get<CpuModel>(MakeModel({.extension = &kIntel, .features = "-xsave"}));
  for (const Feature gone : {Feature::kXsaves, Feature::kAvx, Feature::kAvx2, Feature::kFma}) {
    EXPECT_FALSE(model.Has(gone));
  }
}

// [amd/vol2] has neither pointer masking as Intel's nor keys of supervisor pages.
TEST(NamedModelChoice, AmdHasIntelsInventionsOnRequestAlone) {
  const Place places[] = {{7, 1, kEax, 26}, {7, 0, kEcx, 31}};
  const CpuModel intel = std::get<CpuModel>(MakeModel({.extension = &kIntel}));
  const CpuModel amd = std::get<CpuModel>(MakeModel({.extension = &kAmd}));
  const CpuModel asked =
      std::get<CpuModel>(MakeModel({.extension = &kAmd, .features = "+lam,+pks"}));
  for (const Place& place : places) {
    EXPECT_TRUE(Enumerated(intel, place));
    EXPECT_FALSE(Enumerated(amd, place));
    EXPECT_TRUE(Enumerated(asked, place));
  }
  EXPECT_EQ(ErrorOf("max", "+btc_no", kIntel),
            "CPU feature \"+btc_no\": not of Intel's processors");
}

// Kernels work around the errata of the family that they see, unless they are told that there are
// none: of returns, of stores that are forwarded, of queues and caches.
TEST(NamedModelChoice, AmdsMaxIsOfAFamilyThatHasItsFeaturesAndNoErrata) {
  const CpuModel amd = std::get<CpuModel>(MakeModel({.extension = &kAmd}));
  EXPECT_EQ(amd.Cpuid(1, 0, {}).eax, FindNamedModel("epyc-genoa")->signature);
  const Place places[] = {{0x8000'0008, 0, kEbx, 26}, {0x8000'0008, 0, kEbx, 29},
                          {0x8000'0008, 0, kEbx, 30}, {0x8000'0021, 0, kEax, 29},
                          {0x8000'0021, 0, kEcx, 1},  {0x8000'0021, 0, kEcx, 2}};
  for (const Place& place : places) EXPECT_TRUE(Enumerated(amd, place)) << place.bit;
  const CpuModel without = std::get<CpuModel>(MakeModel({.extension = &kAmd, .features = "-ibpb"}));
  EXPECT_FALSE(Enumerated(without, places[2]));
}

TEST(NamedModelChoice, FeaturesOnTopOfAModelBringTheirLeaves) {
  const CpuModel model = std::get<CpuModel>(
      MakeModel({.extension = &kIntel, .model = "nehalem", .features = "+xsave,+smep,-popcnt"}));
  EXPECT_EQ(model.Cpuid(0, 0, {}).eax, 0xdu);
  EXPECT_TRUE(Enumerated(model, {7, 0, kEbx, 7}));
  EXPECT_FALSE(Enumerated(model, {1, 0, kEcx, 23}));
  EXPECT_NE(model.Cpuid(0xd, 0, {}).eax, 0u);
}

}  // namespace
}  // namespace pagesaw::cpu
