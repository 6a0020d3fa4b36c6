// Model-specific registers that keep what is written to them, or never change: what firmware and
// kernels configure of a real processor and a software one has no use for.
// [intel/vol4] "Model-Specific Registers (MSRs)"; [amd/vol2] "MSR Cross-Reference"
module;
#include <array>
#include <cstdint>
#include <optional>
export module pagesaw.cpu.plain_msrs;

export namespace pagesaw::cpu {

enum PlainMsr : std::uint32_t {
  kMsrPlatformId = 0x17,
  kMsrSmiCount = 0x34,
  kMsrSpeculationControl = 0x48,
  kMsrMicrocode = 0x8b,  // IA32_BIOS_SIGN_ID, AMD's patch level
  kMsrPlatformInfo = 0xce,
  kMsrPackageCstates = 0xe2,
  kMsrMiscFeatures = 0x140,
  kMsrMiscEnable = 0x1a0,
  kMsrSyscfg = 0xc001'0010,
  kMsrHwcr = 0xc001'0015,
  kMsrTopMem = 0xc001'001a,
  kMsrTopMem2 = 0xc001'001d,
  kMsrNbCfg = 0xc001'001f,
  kMsrInterruptPending = 0xc001'0055,
  kMsrLsCfg = 0xc001'1020,
  kMsrDeCfg = 0xc001'1029,
};

// Bits that have an effect all the same.
inline constexpr std::uint64_t kMiscFeatureCpuidFaulting = 1u << 0;
inline constexpr std::uint64_t kMiscEnableMonitor = 1u << 18;
inline constexpr std::uint64_t kMiscEnableLimitCpuid = 1u << 22;
inline constexpr std::uint64_t kMiscEnableNoExecuteDisable = std::uint64_t{1} << 34;
inline constexpr std::uint64_t kHwcrMcStatusWritable = 1u << 18;

class PlainMsrs {
 public:
  // `amd`: the registers of AMD's processors, else of Intel's.
  explicit PlainMsrs(bool amd = false);

  // What MSR `index` holds; nothing if it is not one of these.
  std::optional<std::uint64_t> Read(std::uint32_t index) const;
  // False, and nothing has changed, if it is not one of these or cannot take `value`.
  bool Write(std::uint32_t index, std::uint64_t value);

 private:
  static constexpr unsigned kCount = 24;

  // Where `index` stands, or kCount.
  unsigned Find(std::uint32_t index) const;

  bool amd_;
  std::array<std::uint64_t, kCount> held_;
};

}  // namespace pagesaw::cpu
