// What a processor may have: features, where CPUID shows them and what people call them.
module;
#include <cstdint>
#include <span>
#include <string_view>
export module pagesaw.cpu.feature;

export namespace pagesaw::cpu {

// Features by the manuals' names. A feature that is off makes its instructions #UD, and its
// control-register and MSR bits #GP.
enum class Feature : std::uint8_t {
  kFpu,
  kVme,
  kDe,
  kPse,
  kTsc,
  kMsr,
  kPae,
  kMce,
  kCx8,
  kApic,
  kSep,
  kMtrr,
  kPge,
  kMca,
  kCmov,
  kPat,
  kPse36,
  kClflush,
  kMmx,
  kFxsr,
  kSse,
  kSse2,
  kSse3,
  kPclmulqdq,
  kMonitor,
  kVmx,
  kSsse3,
  kFma,
  kCx16,
  kPcid,
  kSse41,
  kSse42,
  kX2apic,
  kMovbe,
  kPopcnt,
  kTscDeadline,
  kAes,
  kXsave,
  kAvx,
  kF16c,
  kRdrand,
  kHypervisor,
  kFsgsbase,
  kTscAdjust,
  kBmi1,
  kAvx2,
  kSmep,
  kBmi2,
  kErms,
  kInvpcid,
  kRdseed,
  kAdx,
  kSmap,
  kClflushopt,
  kClwb,
  kSha,
  kUmip,
  kPku,
  kLa57,
  kRdpid,
  kPks,
  kShstk,
  kIbt,
  kLam,
  kSvm,
  kNpt,
  kEpt,
  kEptModeBasedExec,
  kSyscall,
  kNx,
  kGbPages,
  kRdtscp,
  kLm,
  kLahf,
  kLzcnt,
  kPrefetchw,
  kTopoext,
  kXsaveopt,
  kXsavec,
  kXgetbv1,
  kXsaves,
  kArat,
  kMonitorx,
  kSpecCtrl,
  kArchCapabilities,
  kRestoresErrorPointers,
  kIbpb,
  kSsbNo,
  kBtcNo,
  kLfenceSerializes,
  kNullClearsBase,
  kAutoIbrs,
  kIbpbRet,
  kSrsoNo,
  kTsaSqNo,
  kTsaL1No,
  kCount,
};

enum CpuidRegister : std::uint8_t { kEax, kEbx, kEcx, kEdx };

// Whether a feature can be had. kOff: works, but only on request. kHost: where the host's processor
// has it, which computes the results. kExtension: where it is that of the vendor's virtualization
// extension.
enum class Support : std::uint8_t { kOff, kOn, kHost, kExtension };

// Whose processors have a feature. kIntelFirst: Intel's, AMD's on request.
enum class Makers : std::uint8_t { kBoth, kIntel, kAmd, kIntelFirst };

struct FeatureRow {
  Feature feature;
  std::string_view name;  // as a flag of /proc/cpuinfo
  std::uint32_t leaf;
  std::uint8_t subleaf;
  CpuidRegister reg;
  std::uint8_t bit;
  Support support;
  Makers makers = Makers::kBoth;
};

inline constexpr std::uint32_t kExtendedFeatureLeaf = 0x8000'0001;
inline constexpr std::uint32_t kSvmFeatureLeaf = 0x8000'000a;
inline constexpr std::uint32_t kNoLeaf = ~0u;  // what the MSRs of VMX tell, and not CPUID

// In the order of CPUID.
std::span<const FeatureRow> FeatureRows();
// Null if no feature is called `name`.
const FeatureRow* FindFeature(std::string_view name);
std::string_view NameOf(Feature feature);

// What rests on what.
struct FeatureNeed {
  Feature feature;
  Feature needed;
};
// Foundations first. [intel/vol1] "Detection of AVX Instructions"
std::span<const FeatureNeed> FeatureNeeds();

}  // namespace pagesaw::cpu
