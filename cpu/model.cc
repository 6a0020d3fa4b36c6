module;
#include <cpuid.h>
#include <array>
#include <bit>
#include <bitset>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <system_error>
#include <variant>
module pagesaw.cpu.model;

import pagesaw.core.hypercall;

import pagesaw.cpu.named_model;

namespace pagesaw::cpu {
namespace {

enum Register : std::uint8_t { kEax, kEbx, kEcx, kEdx };

// Whether a feature can be had. kOff: works, but only on request. kHost: where the host's processor
// has it, which computes the results. kExtension: where it is that of the vendor's virtualization
// extension.
enum class Support : std::uint8_t { kOff, kOn, kHost, kExtension };

// Where CPUID shows a feature, and what people call it.
struct FeatureRow {
  Feature feature;
  std::string_view name;
  std::uint32_t leaf;
  std::uint8_t subleaf;
  Register reg;
  std::uint8_t bit;
  Support support;
};

constexpr std::uint32_t kExtended = 0x8000'0001;
constexpr std::uint32_t kSvmLeaf = 0x8000'000a;
constexpr std::uint32_t kNoLeaf = ~0u;  // what the MSRs of VMX tell, and not CPUID

// [intel/vol2] "CPUID"; [amd/vol3] "Obtaining Processor Information Via the CPUID Instruction"
constexpr FeatureRow kFeatures[] = {
    {Feature::kFpu, "fpu", 1, 0, kEdx, 0, Support::kOn},
    {Feature::kVme, "vme", 1, 0, kEdx, 1, Support::kOn},
    {Feature::kDe, "de", 1, 0, kEdx, 2, Support::kOn},
    {Feature::kPse, "pse", 1, 0, kEdx, 3, Support::kOn},
    {Feature::kTsc, "tsc", 1, 0, kEdx, 4, Support::kOn},
    {Feature::kMsr, "msr", 1, 0, kEdx, 5, Support::kOn},
    {Feature::kPae, "pae", 1, 0, kEdx, 6, Support::kOn},
    {Feature::kMce, "mce", 1, 0, kEdx, 7, Support::kOn},
    {Feature::kCx8, "cx8", 1, 0, kEdx, 8, Support::kOn},
    {Feature::kApic, "apic", 1, 0, kEdx, 9, Support::kOn},
    {Feature::kSep, "sep", 1, 0, kEdx, 11, Support::kOn},
    {Feature::kMtrr, "mtrr", 1, 0, kEdx, 12, Support::kOn},
    {Feature::kPge, "pge", 1, 0, kEdx, 13, Support::kOn},
    {Feature::kMca, "mca", 1, 0, kEdx, 14, Support::kOn},
    {Feature::kCmov, "cmov", 1, 0, kEdx, 15, Support::kOn},
    {Feature::kPat, "pat", 1, 0, kEdx, 16, Support::kOn},
    {Feature::kPse36, "pse36", 1, 0, kEdx, 17, Support::kOn},
    {Feature::kClflush, "clflush", 1, 0, kEdx, 19, Support::kOn},
    {Feature::kMmx, "mmx", 1, 0, kEdx, 23, Support::kOn},
    {Feature::kFxsr, "fxsr", 1, 0, kEdx, 24, Support::kOn},
    {Feature::kSse, "sse", 1, 0, kEdx, 25, Support::kOn},
    {Feature::kSse2, "sse2", 1, 0, kEdx, 26, Support::kOn},
    {Feature::kSse3, "sse3", 1, 0, kEcx, 0, Support::kHost},
    {Feature::kPclmulqdq, "pclmulqdq", 1, 0, kEcx, 1, Support::kHost},
    {Feature::kMonitor, "monitor", 1, 0, kEcx, 3, Support::kOff},
    {Feature::kVmx, "vmx", 1, 0, kEcx, 5, Support::kExtension},
    {Feature::kSsse3, "ssse3", 1, 0, kEcx, 9, Support::kHost},
    {Feature::kFma, "fma", 1, 0, kEcx, 12, Support::kHost},
    {Feature::kCx16, "cx16", 1, 0, kEcx, 13, Support::kOn},
    {Feature::kPcid, "pcid", 1, 0, kEcx, 17, Support::kOn},
    {Feature::kSse41, "sse4_1", 1, 0, kEcx, 19, Support::kHost},
    {Feature::kSse42, "sse4_2", 1, 0, kEcx, 20, Support::kHost},
    {Feature::kX2apic, "x2apic", 1, 0, kEcx, 21, Support::kOn},
    {Feature::kMovbe, "movbe", 1, 0, kEcx, 22, Support::kOn},
    {Feature::kPopcnt, "popcnt", 1, 0, kEcx, 23, Support::kOn},
    {Feature::kTscDeadline, "tsc_deadline_timer", 1, 0, kEcx, 24, Support::kOn},
    {Feature::kAes, "aes", 1, 0, kEcx, 25, Support::kHost},
    {Feature::kXsave, "xsave", 1, 0, kEcx, 26, Support::kOn},
    {Feature::kAvx, "avx", 1, 0, kEcx, 28, Support::kHost},
    {Feature::kF16c, "f16c", 1, 0, kEcx, 29, Support::kHost},
    {Feature::kRdrand, "rdrand", 1, 0, kEcx, 30, Support::kOn},
    {Feature::kHypervisor, "hypervisor", 1, 0, kEcx, 31, Support::kOn},
    {Feature::kFsgsbase, "fsgsbase", 7, 0, kEbx, 0, Support::kOn},
    {Feature::kTscAdjust, "tsc_adjust", 7, 0, kEbx, 1, Support::kOn},
    {Feature::kBmi1, "bmi1", 7, 0, kEbx, 3, Support::kOn},
    {Feature::kAvx2, "avx2", 7, 0, kEbx, 5, Support::kHost},
    {Feature::kSmep, "smep", 7, 0, kEbx, 7, Support::kOn},
    {Feature::kBmi2, "bmi2", 7, 0, kEbx, 8, Support::kOn},
    {Feature::kErms, "erms", 7, 0, kEbx, 9, Support::kOn},
    {Feature::kInvpcid, "invpcid", 7, 0, kEbx, 10, Support::kOn},
    {Feature::kRdseed, "rdseed", 7, 0, kEbx, 18, Support::kOn},
    {Feature::kAdx, "adx", 7, 0, kEbx, 19, Support::kOn},
    {Feature::kSmap, "smap", 7, 0, kEbx, 20, Support::kOn},
    {Feature::kClflushopt, "clflushopt", 7, 0, kEbx, 23, Support::kOn},
    {Feature::kClwb, "clwb", 7, 0, kEbx, 24, Support::kOn},
    {Feature::kSha, "sha_ni", 7, 0, kEbx, 29, Support::kHost},
    {Feature::kUmip, "umip", 7, 0, kEcx, 2, Support::kOn},
    {Feature::kPku, "pku", 7, 0, kEcx, 3, Support::kOn},
    {Feature::kShstk, "shstk", 7, 0, kEcx, 7, Support::kOn},
    {Feature::kLa57, "la57", 7, 0, kEcx, 16, Support::kOn},
    {Feature::kRdpid, "rdpid", 7, 0, kEcx, 22, Support::kOn},
    {Feature::kPks, "pks", 7, 0, kEcx, 31, Support::kOn},
    {Feature::kIbt, "ibt", 7, 0, kEdx, 20, Support::kOn},
    {Feature::kLam, "lam", 7, 1, kEax, 26, Support::kOn},
    {Feature::kXsaveopt, "xsaveopt", 0xd, 1, kEax, 0, Support::kOn},
    {Feature::kXsavec, "xsavec", 0xd, 1, kEax, 1, Support::kOn},
    {Feature::kXgetbv1, "xgetbv1", 0xd, 1, kEax, 2, Support::kOn},
    {Feature::kXsaves, "xsaves", 0xd, 1, kEax, 3, Support::kOn},
    {Feature::kLahf, "lahf_lm", kExtended, 0, kEcx, 0, Support::kOn},
    {Feature::kSvm, "svm", kExtended, 0, kEcx, 2, Support::kExtension},
    {Feature::kNpt, "npt", kSvmLeaf, 0, kEdx, 0, Support::kExtension},
    {Feature::kEpt, "ept", kNoLeaf, 0, kEax, 0, Support::kExtension},
    {Feature::kEptModeBasedExec, "ept_mode_based_exec", kNoLeaf, 0, kEax, 0, Support::kExtension},
    {Feature::kLzcnt, "abm", kExtended, 0, kEcx, 5, Support::kOn},
    {Feature::kPrefetchw, "3dnowprefetch", kExtended, 0, kEcx, 8, Support::kOn},
    {Feature::kTopoext, "topoext", kExtended, 0, kEcx, 22, Support::kOn},
    {Feature::kSyscall, "syscall", kExtended, 0, kEdx, 11, Support::kOn},
    {Feature::kNx, "nx", kExtended, 0, kEdx, 20, Support::kOn},
    {Feature::kGbPages, "pdpe1gb", kExtended, 0, kEdx, 26, Support::kOn},
    {Feature::kRdtscp, "rdtscp", kExtended, 0, kEdx, 27, Support::kOn},
    {Feature::kLm, "lm", kExtended, 0, kEdx, 29, Support::kOn},
};

// Bits of leaf 1 EDX that AMD repeats in leaf 80000001h.
constexpr std::uint32_t kRepeatedBits = 0x0183'f3ff;

constexpr std::string_view kBrand = "Pagesaw Virtual Processor";

constexpr std::string_view kWidthWish = "maxphyaddr=";

const FeatureRow* FindRow(std::string_view name) {
  for (const FeatureRow& row : kFeatures) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

// Four characters as CPUID packs them.
std::uint32_t Characters(std::string_view text, std::size_t from) {
  std::uint32_t packed = 0;
  for (std::size_t i = 0; i < 4 && from + i < text.size(); ++i) {
    packed |= std::uint32_t{static_cast<unsigned char>(text[from + i])} << (8 * i);
  }
  return packed;
}

// Whether this machine's own processor has the feature, and its system lets programs use it.
bool HostHas(const FeatureRow& row) {
  std::uint32_t registers[4] = {};
  __cpuid_count(row.leaf, row.subleaf, registers[0], registers[1], registers[2], registers[3]);
  if ((registers[row.reg] >> row.bit & 1) == 0) return false;
  const bool vex = row.feature == Feature::kAvx || row.feature == Feature::kAvx2 ||
                   row.feature == Feature::kFma || row.feature == Feature::kF16c;
  // AVX needs AVX2 here, whose forms on registers stand in for those on memory.
  return !vex || __builtin_cpu_supports("avx2");
}

// Whether the vendor's extension can be offered to guests by this feature.
bool ExtensionHas(const CpuModel& model, const FeatureRow& row) {
  const bool of_svm = row.leaf == kSvmLeaf, of_vmx = row.leaf == kNoLeaf;
  const std::string_view wanted = of_svm ? "svm" : of_vmx ? "vmx" : row.name;
  return model.extension() != nullptr && model.extension()->feature() == wanted;
}

bool IsPossible(const CpuModel& model, const FeatureRow& row) {
  switch (row.support) {
    case Support::kOff:
    case Support::kOn:
      return true;
    case Support::kHost:
      return HostHas(row);
    case Support::kExtension:
      return ExtensionHas(model, row);
  }
  return false;
}

// What rests on what, foundations first. [intel/vol1] "Detection of AVX Instructions"
struct Need {
  Feature feature;
  Feature needed;
};
constexpr Need kNeeds[] = {
    {Feature::kEpt, Feature::kVmx},          {Feature::kEptModeBasedExec, Feature::kEpt},
    {Feature::kNpt, Feature::kSvm},          {Feature::kLm, Feature::kPae},
    {Feature::kNx, Feature::kPae},           {Feature::kPcid, Feature::kLm},
    {Feature::kGbPages, Feature::kLm},       {Feature::kLa57, Feature::kLm},
    {Feature::kLam, Feature::kLm},           {Feature::kPku, Feature::kLm},
    {Feature::kPks, Feature::kLm},           {Feature::kX2apic, Feature::kApic},
    {Feature::kTscDeadline, Feature::kApic}, {Feature::kTscAdjust, Feature::kTsc},
    {Feature::kRdtscp, Feature::kTsc},       {Feature::kMmx, Feature::kFpu},
    {Feature::kFxsr, Feature::kFpu},         {Feature::kSse, Feature::kFxsr},
    {Feature::kSse, Feature::kMmx},          {Feature::kSse2, Feature::kSse},
    {Feature::kSse3, Feature::kSse2},        {Feature::kSsse3, Feature::kSse3},
    {Feature::kSse41, Feature::kSsse3},      {Feature::kSse42, Feature::kSse41},
    {Feature::kPclmulqdq, Feature::kSse2},   {Feature::kAes, Feature::kSse2},
    {Feature::kSha, Feature::kSse2},         {Feature::kXsave, Feature::kFxsr},
    {Feature::kXsaveopt, Feature::kXsave},   {Feature::kXsavec, Feature::kXsave},
    {Feature::kXgetbv1, Feature::kXsave},    {Feature::kXsaves, Feature::kXsavec},
    {Feature::kAvx, Feature::kXsave},        {Feature::kAvx, Feature::kSse42},
    {Feature::kAvx2, Feature::kAvx},         {Feature::kFma, Feature::kAvx},
    {Feature::kF16c, Feature::kAvx},
};
std::string_view NameOf(Feature feature) {
  for (const FeatureRow& row : kFeatures) {
    if (row.feature == feature) return row.name;
  }
  return "";
}

using FeatureSet = std::bitset<static_cast<unsigned>(Feature::kCount)>;

// Whose processors alone have the feature, or nothing.
std::string_view OtherVendorOf(const FeatureRow& row, const CpuModel& model) {
  if (model.amd_rules()) return row.feature == Feature::kIbt ? "AMD's" : "";
  return row.feature == Feature::kTopoext ? "Intel's" : "";
}

constexpr unsigned kMinPhysicalBits = 32;
constexpr unsigned kMaxPhysicalBits = 52;

std::string QuotedFeature(std::string_view wish) {
  return "CPU feature \"" + std::string(wish) + "\"";
}

// Applies "maxphyaddr=bits"; an error message, or empty.
std::string ApplyWidth(std::string_view wish, CpuModel& model) {
  const std::string_view digits = wish.substr(kWidthWish.size());
  unsigned bits = 0;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), bits);
  if (error != std::errc() || end != digits.end() || bits < kMinPhysicalBits ||
      bits > kMaxPhysicalBits) {
    return QuotedFeature(wish) + ": must be a number of bits from 32 to 52";
  }
  model.set_physical_bits(static_cast<std::uint8_t>(bits));
  return {};
}

// Applies one "+name", "-name" or "maxphyaddr=bits" and notes in `asked` what is to be on; an error
// message, or empty.
std::string ApplyWish(std::string_view wish, CpuModel& model, FeatureSet& asked) {
  if (wish.starts_with(kWidthWish)) return ApplyWidth(wish, model);
  if (wish.size() < 2 || (wish[0] != '+' && wish[0] != '-')) {
    return QuotedFeature(wish) + ": must be +NAME or -NAME, or maxphyaddr=BITS";
  }
  const bool on = wish[0] == '+';
  const FeatureRow* row = FindRow(wish.substr(1));
  if (row == nullptr) return QuotedFeature(wish) + ": unknown";
  if (const std::string_view vendor = OtherVendorOf(*row, model); on && !vendor.empty()) {
    return QuotedFeature(wish) + ": not of " + std::string(vendor) + " processors";
  }
  if (on && row->support == Support::kExtension && !ExtensionHas(model, *row)) {
    return QuotedFeature(wish) + ": not on processors of this vendor";
  }
  if (on && !IsPossible(model, *row)) return QuotedFeature(wish) + ": not on this host";
  model.Set(row->feature, on);
  asked[static_cast<unsigned>(row->feature)] = on;
  return {};
}

// Lines of 64 bytes, waking by masked interrupts, and two states that rest: C1.
// [intel/vol2] "CPUID", leaf 05h
constexpr CpuidResult MonitorLeaf() { return {64, 64, 3, 2u << 4}; }

// Takes away features whose foundation is missing; an error message if one of them was asked for,
// or empty.
std::string DropUnfounded(CpuModel& model, const FeatureSet& asked) {
  for (const Need& need : kNeeds) {
    if (model.Has(need.needed) || !model.Has(need.feature)) continue;
    if (asked[static_cast<unsigned>(need.feature)]) {
      return QuotedFeature("+" + std::string(NameOf(need.feature))) + ": needs " +
             std::string(NameOf(need.needed)) + ", which is off";
    }
    model.Set(need.feature, false);
  }
  return {};
}

// Sets the features that `model` has before anybody wishes otherwise.
void SetDefaults(CpuModel& model) {
  const NamedModel* part = model.part();
  for (const FeatureRow& row : kFeatures) {
    const bool has = part == nullptr || row.feature == Feature::kHypervisor || part->Has(row.name);
    model.Set(row.feature, has && row.support != Support::kOff && IsPossible(model, row) &&
                               OtherVendorOf(row, model).empty());
  }
}

}  // namespace

void CpuModel::set_extension(const VirtExtension* extension) {
  extension_ = extension;
  amd_rules_ = extension != nullptr && extension->cpuid_vendor() != "GenuineIntel";
}

bool CpuModel::Has(std::string_view name) const {
  const FeatureRow* row = FindRow(name);
  return row != nullptr && Has(row->feature);
}

PagingFeatures CpuModel::paging() const {
  PagingFeatures features;
  features.physical_bits = physical_bits_;
  features.gib_pages = Has(Feature::kGbPages);
  features.no_execute = Has(Feature::kNx);
  features.pse36_bits = Has(Feature::kPse36) ? (physical_bits_ < 40 ? physical_bits_ : 40) : 32;
  features.la57 = Has(Feature::kLa57);
  if (extension_ != nullptr && Has(Feature::kPse36)) {
    extension_->AdjustPagingFeatures(features.root_bit8_reserved, features.pse36_bits,
                                     physical_bits_);
  } else if (extension_ != nullptr) {
    std::uint8_t unused = 0;
    extension_->AdjustPagingFeatures(features.root_bit8_reserved, unused, physical_bits_);
  }
  return features;
}

std::uint32_t CpuModel::FeatureBits(std::uint32_t leaf, unsigned subleaf, unsigned reg) const {
  std::uint32_t bits = 0;
  for (const FeatureRow& row : kFeatures) {
    if (row.leaf == leaf && row.subleaf == subleaf && row.reg == reg && Has(row.feature)) {
      bits |= std::uint32_t{1} << row.bit;
    }
  }
  return bits;
}

std::uint32_t CpuModel::Signature() const {
  if (part_ != nullptr) return part_->signature;
  return amd_rules_ ? 0x0080'0f12 : 0x0005'06e3;  // family 17h model 1; family 6 model 5Eh
}

std::string_view CpuModel::brand() const { return part_ != nullptr ? part_->brand : kBrand; }

// Features that a part has been given may need leaves that it has not.
std::uint32_t CpuModel::max_basic_leaf() const {
  if (part_ == nullptr) return amd_rules_ ? 0x10 : 0x1f;
  std::uint32_t last = part_->max_basic_leaf;
  for (const FeatureRow& row : kFeatures) {
    if (row.leaf < kExtended && row.leaf > last && Has(row.feature)) last = row.leaf;
  }
  if (Has(Feature::kXsave) && last < 0xd) last = 0xd;
  return last;
}

std::uint32_t CpuModel::max_extended_leaf() const {
  if (part_ != nullptr) return part_->max_extended_leaf;
  return amd_rules_ ? 0x8000'001e : 0x8000'0008;
}

// The bits of an APIC ID that tell the package's processors apart.
unsigned CpuModel::apic_id_bits() const {
  return static_cast<unsigned>(std::bit_width(cpu_count_ - 1));
}

CpuidResult CpuModel::FeatureLeaf(const CpuidDynamic& dynamic) const {
  CpuidResult result;
  result.eax = Signature();
  const std::uint32_t count = cpu_count_ < 255 ? cpu_count_ : 255;
  result.ebx = (apic_id_ & 0xff) << 24 | count << 16 | (Has(Feature::kClflush) ? 8u << 8 : 0);
  result.ecx = FeatureBits(1, 0, kEcx);
  result.edx = FeatureBits(1, 0, kEdx);
  if (Has(Feature::kXsave) && dynamic.osxsave) result.ecx |= 1u << 27;
  if (!dynamic.apic_enabled) result.edx &= ~(1u << 9);
  if (!dynamic.monitor) result.ecx &= ~(1u << 3);
  if (cpu_count_ > 1) result.edx |= 1u << 28;  // HTT: more than one logical processor in EBX
  return result;
}

CpuidResult CpuModel::StructuredLeaf(std::uint32_t subleaf, const CpuidDynamic& dynamic) const {
  CpuidResult result;
  if (subleaf > 1) return result;
  result = {FeatureBits(7, subleaf, kEax), FeatureBits(7, subleaf, kEbx),
            FeatureBits(7, subleaf, kEcx), FeatureBits(7, subleaf, kEdx)};
  if (subleaf == 0) {
    result.eax = Has(Feature::kLam) ? 1 : 0;         // the last subleaf
    if (Has(Feature::kFpu)) result.ebx |= 1u << 13;  // selectors of FPU pointers are not kept
    if (Has(Feature::kPku) && dynamic.ospke) result.ecx |= 1u << 4;
  }
  return result;
}

// [intel/vol2] "CPUID", leaf 0Dh
CpuidResult CpuModel::XsaveLeaf(std::uint32_t subleaf, const CpuidDynamic& dynamic) const {
  if (!Has(Feature::kXsave)) return {};
  constexpr std::uint32_t kArea = 512 + 64;
  const std::uint64_t all = xcr0_bits();
  if (subleaf == 0) {
    CpuidResult result = {static_cast<std::uint32_t>(all), kArea, kArea, 0};
    for (unsigned i = 2; i < 32; ++i) {
      const XsaveComponent component = XsaveComponentOf(i);
      const std::uint32_t end = std::uint32_t{component.offset} + component.bytes;
      if ((all >> i & 1) != 0 && end > result.ecx) result.ecx = end;
      if ((all & dynamic.xcr0) >> i & 1 && end > result.ebx) result.ebx = end;
    }
    return result;
  }
  if (subleaf == 1) {
    CpuidResult result = {FeatureBits(0xd, 1, kEax), 0, static_cast<std::uint32_t>(xss_bits()), 0};
    if (Has(Feature::kXsavec)) {
      result.ebx = kArea;
      for (unsigned i = 2; i < 32; ++i) {
        if ((dynamic.xcr0 | dynamic.xss) >> i & 1) result.ebx += XsaveComponentOf(i).bytes;
      }
    }
    return result;
  }
  if (subleaf >= 32 || ((all | xss_bits()) >> subleaf & 1) == 0) return {};
  const XsaveComponent component = XsaveComponentOf(subleaf);
  return {component.bytes, component.offset, static_cast<std::uint32_t>(xss_bits() >> subleaf & 1),
          0};
}

// One data, one instruction and one unified cache, all of them private to the processor.
// [intel/vol2] "CPUID", leaf 04h; [amd/vol3] "Function 8000_001Dh"
CpuidResult CpuModel::CacheLeaf(std::uint32_t subleaf) const {
  if (subleaf > 2) return {};
  const std::uint32_t type = subleaf == 2 ? 3 : subleaf + 1;
  const std::uint32_t level = subleaf == 2 ? 2 : 1;
  // The IDs that cores of a package may have; AMD tells elsewhere.
  const std::uint32_t cores = amd_rules_ ? 0 : (1u << apic_id_bits()) - 1;
  const std::uint32_t sets = subleaf == 2 ? 1024 : 64;
  return {cores << 26 | 1u << 8 | level << 5 | type, 7u << 22 | 63, sets - 1, 0};
}

// One thread a core, one package. [intel/vol2] "CPUID", leaf 0Bh
CpuidResult CpuModel::TopologyLeaf(std::uint32_t subleaf) const {
  CpuidResult result;
  result.ecx = subleaf & 0xff;
  result.edx = apic_id_;
  if (subleaf == 0) {
    result.ebx = 1;
    result.ecx |= 1u << 8;
  } else if (subleaf == 1) {
    result.eax = apic_id_bits();
    result.ebx = cpu_count_;
    result.ecx |= 2u << 8;
  }
  return result;
}

// Cores of one thread, in one node. [amd/vol3] "Function 8000_001Eh"
CpuidResult CpuModel::ExtendedTopologyLeaf() const { return {apic_id_, apic_id_ & 0xff, 0, 0}; }

CpuidResult CpuModel::BasicLeaf(std::uint32_t leaf, std::uint32_t subleaf,
                                const CpuidDynamic& dynamic) const {
  if (leaf > max_basic_leaf()) return {};
  switch (leaf) {
    case 0: {
      const std::string_view vendor = extension_ != nullptr ? extension_->cpuid_vendor() : "";
      return {dynamic.few_leaves ? 2 : max_basic_leaf(), Characters(vendor, 0),
              Characters(vendor, 8), Characters(vendor, 4)};
    }
    case 1:
      return FeatureLeaf(dynamic);
    case 2:
      return amd_rules_ ? CpuidResult{} : CpuidResult{0x00ff'ff01, 0, 0, 0};  // see leaf 4
    case 4:
      return amd_rules_ ? CpuidResult{} : CacheLeaf(subleaf);
    case 5:
      return dynamic.monitor ? MonitorLeaf() : CpuidResult{};
    case 7:
      return StructuredLeaf(subleaf, dynamic);
    case 0xd:
      return XsaveLeaf(subleaf, dynamic);
    case 0xb:
    case 0x1f:
      return TopologyLeaf(subleaf);
    case 0x15:
      return amd_rules_ ? CpuidResult{} : CpuidResult{1, 1, static_cast<std::uint32_t>(kTscHz), 0};
    default:
      return {};
  }
}

CpuidResult CpuModel::ExtendedLeaf(std::uint32_t leaf, std::uint32_t subleaf,
                                   const CpuidDynamic& dynamic) const {
  if (leaf > max_extended_leaf()) return {};
  switch (leaf) {
    case 0x8000'0000: {
      CpuidResult result = {max_extended_leaf(), 0, 0, 0};
      if (amd_rules_) {
        const CpuidResult vendor = BasicLeaf(0, 0, {});
        result = {max_extended_leaf(), vendor.ebx, vendor.ecx, vendor.edx};
      }
      return result;
    }
    case kExtended: {
      CpuidResult result = {0, 0, FeatureBits(kExtended, 0, kEcx), FeatureBits(kExtended, 0, kEdx)};
      if (!dynamic.no_execute) result.edx &= ~(1u << 20);
      if (amd_rules_) {
        result.eax = Signature();
        result.edx |= FeatureBits(1, 0, kEdx) & kRepeatedBits;
      }
      return result;
    }
    case 0x8000'0002:
    case 0x8000'0003:
    case 0x8000'0004: {
      const std::size_t from = (leaf - 0x8000'0002) * 16;
      return {Characters(brand(), from), Characters(brand(), from + 4),
              Characters(brand(), from + 8), Characters(brand(), from + 12)};
    }
    case 0x8000'0006:
      return {0, 0, 512u << 16 | 6u << 12 | 64, 0};
    case 0x8000'0007:
      return {0, 0, 0, 1u << 8};  // the TSC's rate never changes
    case 0x8000'0008: {
      const std::uint32_t cores = apic_id_bits() << 12 | ((cpu_count_ - 1) & 0xff);
      return {physical_bits_ | linear_bits() << 8, 0, amd_rules_ ? cores : 0, 0};
    }
    case kSvmLeaf:
      return {0, 0, 0, FeatureBits(kSvmLeaf, 0, kEdx)};
    case 0x8000'001d:
      return Has(Feature::kTopoext) ? CacheLeaf(subleaf) : CpuidResult{};
    case 0x8000'001e:
      return Has(Feature::kTopoext) ? ExtendedTopologyLeaf() : CpuidResult{};
    default:
      return {};
  }
}

CpuidResult CpuModel::Cpuid(std::uint32_t leaf, std::uint32_t subleaf,
                            const CpuidDynamic& dynamic) const {
  CpuidResult result;
  if (Has(Feature::kHypervisor) && leaf == kHypervisorLeaf) {
    constexpr std::string_view kSignature = "PagesawPages";
    result = {kHypercallLeaf, Characters(kSignature, 0), Characters(kSignature, 4),
              Characters(kSignature, 8)};
  } else if (Has(Feature::kHypervisor) && leaf == kHypercallLeaf) {
    result.eax = kHypercallBits;
  } else if (leaf >= 0x8000'0000) {
    result = ExtendedLeaf(leaf, subleaf, dynamic);
  } else if (leaf >= kHypervisorLeaf && leaf < kHypervisorLeaf + 0x1000'0000) {
    return result;
  } else {
    result = BasicLeaf(leaf, subleaf, dynamic);
  }
  // Its own leaf is there only if it is offered.
  const bool beyond = leaf == kSvmLeaf && !Has(Feature::kSvm);
  if (extension_ != nullptr && !beyond) extension_->AdjustCpuid(leaf, subleaf, result);
  return result;
}

std::variant<CpuModel, std::string> MakeModel(const ModelOptions& options) {
  if (options.physical_bits < kMinPhysicalBits || options.physical_bits > kMaxPhysicalBits) {
    return "physical address width " + std::to_string(options.physical_bits) + ": must be 32 to 52";
  }
  if (options.cpu_count == 0) return std::string("CPU count 0: must be at least 1");
  if (!IsModelName(options.model)) return UnknownModel(options.model);
  CpuModel model;
  model.set_extension(options.extension);
  model.set_physical_bits(options.physical_bits);
  if (const NamedModel* part = FindNamedModel(options.model); part != nullptr) {
    if (options.extension != nullptr && options.extension->vendor() != part->vendor) {
      return "CPU model \"" + std::string(options.model) + "\": its vendor is " +
             std::string(part->vendor) + ", not " + std::string(options.extension->vendor());
    }
    model.set_part(part);
    model.set_physical_bits(part->physical_bits);
  }
  model.set_apic_id(options.apic_id);
  model.set_cpu_count(options.cpu_count);
  SetDefaults(model);
  FeatureSet asked;
  std::string_view rest = options.features;
  while (!rest.empty()) {
    const std::size_t comma = rest.find(',');
    std::string error = ApplyWish(rest.substr(0, comma), model, asked);
    if (!error.empty()) return error;
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  if (std::string error = DropUnfounded(model, asked); !error.empty()) return error;
  return model;
}

std::string FeatureNames(const CpuModel& model) {
  std::string names;
  for (const FeatureRow& row : kFeatures) {
    if (!model.Has(row.feature)) continue;
    if (!names.empty()) names += ',';
    names += row.name;
  }
  return names;
}

}  // namespace pagesaw::cpu
