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

// Bits of leaf 1 EDX that AMD repeats in leaf 80000001h.
constexpr std::uint32_t kRepeatedBits = 0x0183'f3ff;

constexpr std::string_view kBrand = "Pagesaw Virtual Processor";

constexpr std::string_view kWidthWish = "maxphyaddr=";

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
  const bool of_svm = row.leaf == kSvmFeatureLeaf, of_vmx = row.leaf == kNoLeaf;
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

using FeatureSet = std::bitset<static_cast<unsigned>(Feature::kCount)>;

bool IsOtherVendors(const FeatureRow& row, const CpuModel& model) {
  return row.makers == (model.amd_rules() ? Makers::kIntel : Makers::kAmd);
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
  const FeatureRow* row = FindFeature(wish.substr(1));
  if (row == nullptr) return QuotedFeature(wish) + ": unknown";
  if (on && IsOtherVendors(*row, model)) {
    return QuotedFeature(wish) + ": not of " + (model.amd_rules() ? "AMD's" : "Intel's") +
           " processors";
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
  for (const FeatureNeed& need : FeatureNeeds()) {
    if (model.Has(need.needed) || !model.Has(need.feature)) continue;
    if (asked[static_cast<unsigned>(need.feature)]) {
      return QuotedFeature("+" + std::string(NameOf(need.feature))) + ": needs " +
             std::string(NameOf(need.needed)) + ", which is off";
    }
    model.Set(need.feature, false);
  }
  return {};
}

// Whether `model` has the feature before anybody wishes otherwise.
bool IsDefault(const CpuModel& model, const FeatureRow& row) {
  if (row.support == Support::kOff || !IsPossible(model, row) || IsOtherVendors(row, model)) {
    return false;
  }
  if (row.feature == Feature::kHypervisor) return true;
  if (const NamedModel* part = model.part(); part != nullptr) return part->Has(row.name);
  return !model.amd_rules() || row.makers != Makers::kIntelFirst;
}

}  // namespace

void CpuModel::set_extension(const VirtExtension* extension) {
  extension_ = extension;
  amd_rules_ = extension != nullptr && extension->cpuid_vendor() != "GenuineIntel";
}

bool CpuModel::Has(std::string_view name) const {
  const FeatureRow* row = FindFeature(name);
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
  for (const FeatureRow& row : FeatureRows()) {
    if (row.leaf == leaf && row.subleaf == subleaf && row.reg == reg && Has(row.feature)) {
      bits |= std::uint32_t{1} << row.bit;
    }
  }
  return bits;
}

std::uint32_t CpuModel::Signature() const {
  if (part_ != nullptr) return part_->signature;
  // Parts that have most of what is enumerated, so that kernels look for the errata of no other:
  // family 19h model 11h, family 6 model 5Eh.
  return amd_rules_ ? 0x00a1'0f11 : 0x0005'06e3;
}

std::string_view CpuModel::brand() const { return part_ != nullptr ? part_->brand : kBrand; }

// Features that a part has been given may need leaves that it has not.
std::uint32_t CpuModel::max_basic_leaf() const {
  if (part_ == nullptr) return amd_rules_ ? 0x10 : 0x1f;
  std::uint32_t last = LastLeaf(0, part_->max_basic_leaf);
  if (Has(Feature::kXsave) && last < 0xd) last = 0xd;
  return last;
}

std::uint32_t CpuModel::max_extended_leaf() const {
  if (part_ == nullptr) return amd_rules_ ? 0x8000'0021 : 0x8000'0008;
  const std::uint32_t last = LastLeaf(0x8000'0000, part_->max_extended_leaf);
  return Has(Feature::kTopoext) && last < 0x8000'001e ? 0x8000'001e : last;
}

// `last`, or the last leaf of those from `first` on that shows a feature which it has.
std::uint32_t CpuModel::LastLeaf(std::uint32_t first, std::uint32_t last) const {
  for (const FeatureRow& row : FeatureRows()) {
    const bool here = row.leaf != kNoLeaf && row.leaf >> 31 == first >> 31;
    if (here && row.leaf > last && Has(row.feature)) last = row.leaf;
  }
  return last;
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
  if (has_many()) result.edx |= 1u << 28;  // HTT: more than one logical processor in EBX
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

// The same caches, and a TLB of 64 entries for each purpose. [amd/vol3] "Function 8000_0005h"
CpuidResult CpuModel::FirstLevelLeaf() const {
  constexpr std::uint32_t kTlb = 0xff40'ff40;  // fully associative
  constexpr std::uint32_t kCache = 32u << 24 | 8u << 16 | 1u << 8 | 64;
  return amd_rules_ ? CpuidResult{kTlb, kTlb, kCache, kCache} : CpuidResult{};
}

// [amd/vol3] "Function 8000_0006h"; Intel's tell of the cache alone
CpuidResult CpuModel::SecondLevelLeaf() const {
  return {0, 0, 512u << 16 | 6u << 12 | (amd_rules_ ? 1u << 8 : 0) | 64, 0};
}

// Features of AMD's in leaf 1 EDX stand in this leaf, too, and some follow from others.
CpuidResult CpuModel::ExtendedFeatureLeaf(const CpuidDynamic& dynamic) const {
  constexpr std::uint32_t kSyscall = 1u << 11, kNoExecute = 1u << 20;
  CpuidResult result = {0, 0, FeatureBits(kExtendedFeatureLeaf, 0, kEcx),
                        FeatureBits(kExtendedFeatureLeaf, 0, kEdx)};
  if (!dynamic.no_execute) result.edx &= ~kNoExecute;
  if (!amd_rules_) {
    if (!dynamic.code_64) result.edx &= ~kSyscall;  // it exists there alone
    return result;
  }
  result.eax = Signature();
  result.edx |= FeatureBits(1, 0, kEdx) & kRepeatedBits;
  if (Has(Feature::kSse)) result.edx |= 1u << 22;  // SSE's instructions on MMX registers
  if (has_many()) result.ecx |= 1u << 1;           // leaf 1 EBX counts cores, not threads
  return result;
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
    case 6:
      return {FeatureBits(leaf, 0, kEax), 0, 0, 0};
    case 7:
      return StructuredLeaf(subleaf, dynamic);
    case 0xd:
      return XsaveLeaf(subleaf, dynamic);
    case 0xb:
    case 0x1f:
      return TopologyLeaf(subleaf);
    case 0x15:
      return amd_rules_ ? CpuidResult{} : CpuidResult{1, 1, static_cast<std::uint32_t>(kTscHz), 0};
    case 0x16:  // base, maximum and bus frequency in MHz
      return amd_rules_ ? CpuidResult{}
                        : CpuidResult{kTscHz / 1'000'000, kTscHz / 1'000'000, 100, 0};
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
    case kExtendedFeatureLeaf:
      return ExtendedFeatureLeaf(dynamic);
    case 0x8000'0002:
    case 0x8000'0003:
    case 0x8000'0004: {
      const std::size_t from = (leaf - 0x8000'0002) * 16;
      return {Characters(brand(), from), Characters(brand(), from + 4),
              Characters(brand(), from + 8), Characters(brand(), from + 12)};
    }
    case 0x8000'0005:
      return FirstLevelLeaf();
    case 0x8000'0006:
      return SecondLevelLeaf();
    case 0x8000'0007:
      return {0, 0, 0, 1u << 8};  // the TSC's rate never changes
    case 0x8000'0008: {
      const std::uint32_t cores = apic_id_bits() << 12 | ((cpu_count_ - 1) & 0xff);
      return {physical_bits_ | linear_bits() << 8, FeatureBits(leaf, 0, kEbx),
              amd_rules_ ? cores : 0, 0};
    }
    case kSvmFeatureLeaf:
      return {0, 0, 0, FeatureBits(leaf, 0, kEdx)};
    case 0x8000'001d:
      return Has(Feature::kTopoext) ? CacheLeaf(subleaf) : CpuidResult{};
    case 0x8000'001e:
      return Has(Feature::kTopoext) ? ExtendedTopologyLeaf() : CpuidResult{};
    case 0x8000'0021:
      return {FeatureBits(leaf, 0, kEax), 0, FeatureBits(leaf, 0, kEcx), 0};
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
  const bool beyond = leaf == kSvmFeatureLeaf && !Has(Feature::kSvm);
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
  for (const FeatureRow& row : FeatureRows()) model.Set(row.feature, IsDefault(model, row));
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
  for (const FeatureRow& row : FeatureRows()) {
    if (!model.Has(row.feature)) continue;
    if (!names.empty()) names += ',';
    names += row.name;
  }
  return names;
}

}  // namespace pagesaw::cpu
