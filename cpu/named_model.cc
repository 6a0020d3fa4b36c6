module;
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
module pagesaw.cpu.named_model;

namespace pagesaw::cpu {
namespace {

constexpr std::string_view kNehalem = "nehalem", kIvyBridge = "ivy-bridge", kHaswell = "haswell",
                           kSkylakeServer = "skylake-server", kOpteron = "opteron",
                           kEpycRome = "epyc-rome", kEpycMilan = "epyc-milan";

// Facts of the parts that the brand strings name. [intel/vol2] "CPUID"; [amd/vol3] "Obtaining
// Processor Information Via the CPUID Instruction"
constexpr NamedModel kModels[] = {
    {.name = kNehalem,
     .vendor = "intel",
     .signature = 0x000106a5,
     .brand = "Intel(R) Xeon(R) CPU           X5570  @ 2.93GHz",
     .physical_bits = 40,
     .max_basic_leaf = 0xb,
     .max_extended_leaf = 0x8000'0008,
     .added = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx "
              "fxsr sse sse2 sse3 monitor ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm syscall nx "
              "rdtscp lm vmx ept"},
    {.name = kIvyBridge,
     .vendor = "intel",
     .signature = 0x000306e4,
     .brand = "Intel(R) Xeon(R) CPU E5-2680 v2 @ 2.80GHz",
     .physical_bits = 46,
     .max_basic_leaf = 0xd,
     .max_extended_leaf = 0x8000'0008,
     .predecessor = kNehalem,
     .added =
         "pclmulqdq pcid x2apic tsc_deadline_timer aes xsave avx f16c rdrand fsgsbase smep erms "
         "xsaveopt pdpe1gb arat"},
    {.name = kHaswell,
     .vendor = "intel",
     .signature = 0x000306f2,
     .brand = "Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz",
     .physical_bits = 46,
     .max_basic_leaf = 0xf,
     .max_extended_leaf = 0x8000'0008,
     .predecessor = kIvyBridge,
     .added = "fma movbe tsc_adjust bmi1 avx2 bmi2 invpcid abm"},
    {.name = kSkylakeServer,
     .vendor = "intel",
     .signature = 0x00050654,
     .brand = "Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz",
     .physical_bits = 46,
     .max_basic_leaf = 0x16,
     .max_extended_leaf = 0x8000'0008,
     .predecessor = kHaswell,
     .added = "rdseed adx smap clflushopt clwb pku xsavec xgetbv1 xsaves 3dnowprefetch "
              "ept_mode_based_exec"},
    {.name = "sapphire-rapids",
     .vendor = "intel",
     .signature = 0x000806f8,
     .brand = "Intel(R) Xeon(R) Platinum 8480+",
     .physical_bits = 52,
     .max_basic_leaf = 0x20,
     .max_extended_leaf = 0x8000'0008,
     .predecessor = kSkylakeServer,
     .added = "sha_ni umip la57 rdpid pks shstk ibt spec_ctrl arch_capabilities"},
    {.name = kOpteron,
     .vendor = "amd",
     .signature = 0x00100f23,
     .brand = "Quad-Core AMD Opteron(tm) Processor 2356",
     .physical_bits = 48,
     .max_basic_leaf = 5,
     .max_extended_leaf = 0x8000'001b,
     .added = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx "
              "fxsr sse sse2 sse3 monitor cx16 popcnt lahf_lm abm 3dnowprefetch syscall nx pdpe1gb "
              "rdtscp lm svm npt"},
    {.name = kEpycRome,
     .vendor = "amd",
     .signature = 0x00830f10,
     .brand = "AMD EPYC 7742 64-Core Processor",
     .physical_bits = 48,
     .max_basic_leaf = 0x10,
     .max_extended_leaf = 0x8000'0020,
     .predecessor = kOpteron,
     .added = "pclmulqdq ssse3 fma sse4_1 sse4_2 x2apic movbe aes xsave avx f16c rdrand fsgsbase "
              "bmi1 avx2 smep bmi2 rdseed adx smap clflushopt clwb sha_ni umip rdpid xsaveopt "
              "xsavec xgetbv1 xsaves topoext mwaitx arat xsaveerptr ibpb"},
    {.name = kEpycMilan,
     .vendor = "amd",
     .signature = 0x00a00f11,
     .brand = "AMD EPYC 7763 64-Core Processor",
     .physical_bits = 48,
     .max_basic_leaf = 0x10,
     .max_extended_leaf = 0x8000'0023,
     .predecessor = kEpycRome,
     .added = "pcid invpcid erms pku shstk ssb_no btc_no lfence_rdtsc null_sel_clr_base"},
    {.name = "epyc-genoa",
     .vendor = "amd",
     .signature = 0x00a10f11,
     .brand = "AMD EPYC 9654 96-Core Processor",
     .physical_bits = 52,
     .max_basic_leaf = 0x10,
     .max_extended_leaf = 0x8000'0028,
     .predecessor = kEpycMilan,
     .added = "la57 autoibrs"},
};

bool HasWord(std::string_view words, std::string_view word) {
  for (std::size_t at = words.find(word); at != std::string_view::npos;
       at = words.find(word, at + 1)) {
    const std::size_t end = at + word.size();
    const bool starts = at == 0 || words[at - 1] == ' ';
    if (starts && (end == words.size() || words[end] == ' ')) return true;
  }
  return false;
}

}  // namespace

bool NamedModel::Has(std::string_view feature) const {
  for (const NamedModel* model = this; model != nullptr;
       model = FindNamedModel(model->predecessor)) {
    if (HasWord(model->added, feature)) return true;
  }
  return false;
}

std::span<const NamedModel> NamedModels() { return kModels; }

const NamedModel* FindNamedModel(std::string_view name) {
  for (const NamedModel& model : kModels) {
    if (model.name == name) return &model;
  }
  return nullptr;
}

bool IsModelName(std::string_view name) {
  return name.empty() || name == kMaxModel || FindNamedModel(name) != nullptr;
}

std::string UnknownModel(std::string_view name) {
  std::string text = "CPU model \"" + std::string(name) + "\": not one of max";
  for (const NamedModel& model : kModels) text += ", " + std::string(model.name);
  return text;
}

}  // namespace pagesaw::cpu
