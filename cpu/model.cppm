// What a processor claims to be: vendor, features and widths, and what CPUID answers for them.
module;
#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
export module pagesaw.cpu.model;

export import pagesaw.core.paging_state;
export import pagesaw.core.virt_extension;
export import pagesaw.cpu.feature;
import pagesaw.cpu.named_model;

export namespace pagesaw::cpu {

// What CPUID answers besides what never changes.
struct CpuidDynamic {
  bool osxsave = false;      // CR4.OSXSAVE
  bool ospke = false;        // CR4.PKE
  bool apic_enabled = true;  // IA32_APIC_BASE bit 11
  bool monitor = false;      // IA32_MISC_ENABLE: MONITOR and MWAIT, if they are there at all
  bool few_leaves = false;   // IA32_MISC_ENABLE: basic leaves end with 2
  bool no_execute = true;    // IA32_MISC_ENABLE: the no-execute bit, if it is there
  bool code_64 = true;       // asked from 64-bit mode
  std::uint64_t xcr0 = 1, xss = 0;
};

// Where the standard format of an XSAVE area has a state component; 0 for those that only XSAVES
// saves. `bytes` 0: there is none.
struct XsaveComponent {
  std::uint16_t offset = 0;
  std::uint16_t bytes = 0;
};
constexpr XsaveComponent XsaveComponentOf(unsigned number) {
  switch (number) {
    case 2:
      return {576, 256};  // the upper halves of the YMM registers
    case 9:
      return {2688, 8};  // PKRU
    case 11:
      return {0, 16};  // CET_U: IA32_U_CET, IA32_PL3_SSP
    case 12:
      return {0, 24};  // CET_S: IA32_PL0_SSP to IA32_PL2_SSP
    default:
      return {};
  }
}

class CpuModel {
 public:
  CpuModel() = default;

  inline bool Has(Feature feature) const { return features_[static_cast<unsigned>(feature)]; }
  // The same by its name in /proc/cpuinfo.
  bool Has(std::string_view name) const;
  void Set(Feature feature, bool on) { features_[static_cast<unsigned>(feature)] = on; }

  inline std::uint8_t physical_bits() const { return physical_bits_; }
  void set_physical_bits(std::uint8_t bits) { physical_bits_ = bits; }
  std::uint32_t apic_id() const { return apic_id_; }
  void set_apic_id(std::uint32_t id) { apic_id_ = id; }
  std::uint32_t cpu_count() const { return cpu_count_; }
  void set_cpu_count(std::uint32_t count) { cpu_count_ = count; }

  // The part that it is, or null if it is none that exists.
  const NamedModel* part() const { return part_; }
  void set_part(const NamedModel* part) { part_ = part; }

  // The extension that its vendor's processors have, or null. Not owned.
  const VirtExtension* extension() const { return extension_; }
  void set_extension(const VirtExtension* extension);
  // Whether guests are offered what that extension adds to a processor.
  bool offers_extension() const { return Has(Feature::kSvm) || Has(Feature::kVmx); }

  // Where the vendors' manuals disagree about instructions that both have: true if it is as in
  // [amd/vol2] and [amd/vol3], false if as in [intel/vol2] and [intel/vol3].
  inline bool amd_rules() const { return amd_rules_; }

  // The widest linear address that the processor could be made to use: what bases are judged by.
  inline unsigned linear_bits() const { return Has(Feature::kLa57) ? 57 : 48; }

  // The bits that XCR0 can have.
  inline std::uint64_t xcr0_bits() const {
    if (!Has(Feature::kXsave)) return 1;
    return 1u | (Has(Feature::kSse) ? 2u : 0) | (Has(Feature::kAvx) ? 4u : 0) |
           (Has(Feature::kPku) ? 1u << 9 : 0);
  }

  // The bits that IA32_XSS can have.
  inline std::uint64_t xss_bits() const {
    if (!Has(Feature::kXsaves)) return 0;
    return Has(Feature::kShstk) || Has(Feature::kIbt) ? 3u << 11 : 0;
  }

  PagingFeatures paging() const;
  CpuidResult Cpuid(std::uint32_t leaf, std::uint32_t subleaf, const CpuidDynamic& dynamic) const;

 private:
  CpuidResult BasicLeaf(std::uint32_t leaf, std::uint32_t subleaf,
                        const CpuidDynamic& dynamic) const;
  CpuidResult ExtendedLeaf(std::uint32_t leaf, std::uint32_t subleaf,
                           const CpuidDynamic& dynamic) const;
  CpuidResult FeatureLeaf(const CpuidDynamic& dynamic) const;
  CpuidResult StructuredLeaf(std::uint32_t subleaf, const CpuidDynamic& dynamic) const;
  CpuidResult XsaveLeaf(std::uint32_t subleaf, const CpuidDynamic& dynamic) const;
  CpuidResult CacheLeaf(std::uint32_t subleaf) const;
  CpuidResult TopologyLeaf(std::uint32_t subleaf) const;
  CpuidResult ExtendedTopologyLeaf() const;
  CpuidResult FirstLevelLeaf() const;
  CpuidResult SecondLevelLeaf() const;
  CpuidResult ExtendedFeatureLeaf(const CpuidDynamic& dynamic) const;
  bool has_many() const { return cpu_count_ > 1; }
  std::uint32_t LastLeaf(std::uint32_t first, std::uint32_t last) const;
  std::uint32_t Signature() const;
  std::uint32_t max_basic_leaf() const;
  std::uint32_t max_extended_leaf() const;
  std::string_view brand() const;
  unsigned apic_id_bits() const;
  std::uint32_t FeatureBits(std::uint32_t leaf, unsigned subleaf, unsigned reg) const;

  std::bitset<static_cast<unsigned>(Feature::kCount)> features_;
  std::uint8_t physical_bits_ = 46;
  bool amd_rules_ = false;
  std::uint32_t apic_id_ = 0;
  std::uint32_t cpu_count_ = 1;
  const VirtExtension* extension_ = nullptr;
  const NamedModel* part_ = nullptr;
};

// What a model is made from.
struct ModelOptions {
  const VirtExtension* extension = nullptr;
  // A named model, or "max" or nothing: all that works. A named one has what its part has, as far
  // as that works.
  std::string_view model = {};
  // "+name,-name": features to have and not to have besides those of the model, named as the flags
  // of /proc/cpuinfo are. "maxphyaddr=N" among them sets the width of physical addresses. What
  // rests on a feature taken away goes with it, unless it was asked for.
  std::string_view features = {};
  std::uint8_t physical_bits = 46;  // of "max"
  std::uint32_t apic_id = 0;
  std::uint32_t cpu_count = 1;
};

// The model, or what is wrong with the options, naming the value refused: a model that is unknown
// or another vendor's, a feature that is unknown, not implemented or without its foundation, a wish
// that is neither toggle nor width, a width outside 32 to 52.
std::variant<CpuModel, std::string> MakeModel(const ModelOptions& options);

// The names of all features that a model can have, comma separated, in the order of CPUID.
std::string FeatureNames(const CpuModel& model);

// The rate of the time-stamp counter: it counts nanoseconds of the host's monotonic clock.
inline constexpr std::uint64_t kTscHz = 1'000'000'000;

}  // namespace pagesaw::cpu
