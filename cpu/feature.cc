module;
#include <cstdint>
#include <span>
#include <string_view>
module pagesaw.cpu.feature;

namespace pagesaw::cpu {
namespace {

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
    {Feature::kArat, "arat", 6, 0, kEax, 2, Support::kOn},
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
    {Feature::kPks, "pks", 7, 0, kEcx, 31, Support::kOn, Makers::kIntelFirst},
    {Feature::kIbt, "ibt", 7, 0, kEdx, 20, Support::kOn, Makers::kIntel},
    {Feature::kSpecCtrl, "spec_ctrl", 7, 0, kEdx, 26, Support::kOn, Makers::kIntel},
    {Feature::kArchCapabilities, "arch_capabilities", 7, 0, kEdx, 29, Support::kOn, Makers::kIntel},
    {Feature::kLam, "lam", 7, 1, kEax, 26, Support::kOn, Makers::kIntelFirst},
    {Feature::kXsaveopt, "xsaveopt", 0xd, 1, kEax, 0, Support::kOn},
    {Feature::kXsavec, "xsavec", 0xd, 1, kEax, 1, Support::kOn},
    {Feature::kXgetbv1, "xgetbv1", 0xd, 1, kEax, 2, Support::kOn},
    {Feature::kXsaves, "xsaves", 0xd, 1, kEax, 3, Support::kOn},
    {Feature::kLahf, "lahf_lm", kExtendedFeatureLeaf, 0, kEcx, 0, Support::kOn},
    {Feature::kSvm, "svm", kExtendedFeatureLeaf, 0, kEcx, 2, Support::kExtension},
    {Feature::kNpt, "npt", kSvmFeatureLeaf, 0, kEdx, 0, Support::kExtension},
    {Feature::kEpt, "ept", kNoLeaf, 0, kEax, 0, Support::kExtension},
    {Feature::kEptModeBasedExec, "ept_mode_based_exec", kNoLeaf, 0, kEax, 0, Support::kExtension},
    {Feature::kLzcnt, "abm", kExtendedFeatureLeaf, 0, kEcx, 5, Support::kOn},
    {Feature::kPrefetchw, "3dnowprefetch", kExtendedFeatureLeaf, 0, kEcx, 8, Support::kOn},
    {Feature::kTopoext, "topoext", kExtendedFeatureLeaf, 0, kEcx, 22, Support::kOn, Makers::kAmd},
    {Feature::kMonitorx, "mwaitx", kExtendedFeatureLeaf, 0, kEcx, 29, Support::kOn, Makers::kAmd},
    {Feature::kSyscall, "syscall", kExtendedFeatureLeaf, 0, kEdx, 11, Support::kOn},
    {Feature::kNx, "nx", kExtendedFeatureLeaf, 0, kEdx, 20, Support::kOn},
    {Feature::kGbPages, "pdpe1gb", kExtendedFeatureLeaf, 0, kEdx, 26, Support::kOn},
    {Feature::kRdtscp, "rdtscp", kExtendedFeatureLeaf, 0, kEdx, 27, Support::kOn},
    {Feature::kLm, "lm", kExtendedFeatureLeaf, 0, kEdx, 29, Support::kOn},
    {Feature::kRestoresErrorPointers, "xsaveerptr", 0x8000'0008, 0, kEbx, 2, Support::kOn,
     Makers::kAmd},
    {Feature::kIbpb, "ibpb", 0x8000'0008, 0, kEbx, 12, Support::kOn, Makers::kAmd},
    {Feature::kSsbNo, "ssb_no", 0x8000'0008, 0, kEbx, 26, Support::kOn, Makers::kAmd},
    {Feature::kBtcNo, "btc_no", 0x8000'0008, 0, kEbx, 29, Support::kOn, Makers::kAmd},
    {Feature::kIbpbRet, "ibpb_ret", 0x8000'0008, 0, kEbx, 30, Support::kOn, Makers::kAmd},
    {Feature::kLfenceSerializes, "lfence_rdtsc", 0x8000'0021, 0, kEax, 2, Support::kOn,
     Makers::kAmd},
    {Feature::kNullClearsBase, "null_sel_clr_base", 0x8000'0021, 0, kEax, 6, Support::kOn,
     Makers::kAmd},
    {Feature::kAutoIbrs, "autoibrs", 0x8000'0021, 0, kEax, 8, Support::kOn, Makers::kAmd},
    {Feature::kSrsoNo, "srso_no", 0x8000'0021, 0, kEax, 29, Support::kOn, Makers::kAmd},
    {Feature::kTsaSqNo, "tsa_sq_no", 0x8000'0021, 0, kEcx, 1, Support::kOn, Makers::kAmd},
    {Feature::kTsaL1No, "tsa_l1_no", 0x8000'0021, 0, kEcx, 2, Support::kOn, Makers::kAmd},
};

constexpr FeatureNeed kNeeds[] = {
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
    {Feature::kF16c, Feature::kAvx},         {Feature::kIbpbRet, Feature::kIbpb},
};

}  // namespace

std::span<const FeatureRow> FeatureRows() { return kFeatures; }

const FeatureRow* FindFeature(std::string_view name) {
  for (const FeatureRow& row : kFeatures) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

std::string_view NameOf(Feature feature) {
  for (const FeatureRow& row : kFeatures) {
    if (row.feature == feature) return row.name;
  }
  return "";
}

std::span<const FeatureNeed> FeatureNeeds() { return kNeeds; }

}  // namespace pagesaw::cpu
