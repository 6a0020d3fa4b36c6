// Bits of control registers and MSR numbers that only the processor itself needs.
module;
#include <cstdint>
export module pagesaw.cpu.control_bits;

export import pagesaw.core.register_values;

export namespace pagesaw::cpu {

// CR0. [intel/vol3] "Control Registers"
inline constexpr std::uint64_t kCr0Mp = 1u << 1;
inline constexpr std::uint64_t kCr0Em = 1u << 2;
inline constexpr std::uint64_t kCr0Ts = 1u << 3;
inline constexpr std::uint64_t kCr0Et = 1u << 4;
inline constexpr std::uint64_t kCr0Ne = 1u << 5;
inline constexpr std::uint64_t kCr0Am = 1u << 18;
inline constexpr std::uint64_t kCr0Nw = 1u << 29;
inline constexpr std::uint64_t kCr0Cd = 1u << 30;

// CR4.
inline constexpr std::uint64_t kCr4Vme = 1u << 0;
inline constexpr std::uint64_t kCr4Pvi = 1u << 1;
inline constexpr std::uint64_t kCr4Tsd = 1u << 2;
inline constexpr std::uint64_t kCr4De = 1u << 3;
inline constexpr std::uint64_t kCr4Mce = 1u << 6;
inline constexpr std::uint64_t kCr4Pce = 1u << 8;
inline constexpr std::uint64_t kCr4Osfxsr = 1u << 9;
inline constexpr std::uint64_t kCr4Osxmmexcpt = 1u << 10;
inline constexpr std::uint64_t kCr4Umip = 1u << 11;
inline constexpr std::uint64_t kCr4Vmxe = 1u << 13;
inline constexpr std::uint64_t kCr4Fsgsbase = 1u << 16;
inline constexpr std::uint64_t kCr4Osxsave = 1u << 18;

inline constexpr std::uint64_t kEferSvme = 1u << 12;
inline constexpr std::uint64_t kEferFfxsr = 1u << 14;
inline constexpr std::uint64_t kEferAutoIbrs = 1u << 21;

// DR6 and DR7. [intel/vol3] "Debug Registers"
inline constexpr std::uint64_t kDr6Bd = 1u << 13;
inline constexpr std::uint64_t kDr6Bs = 1u << 14;
inline constexpr std::uint64_t kDr6Bt = 1u << 15;
inline constexpr std::uint64_t kDr6Breakpoints = 15;
inline constexpr std::uint64_t kDr7Local = 0x155;  // local enables, with LE
inline constexpr std::uint64_t kDr7Gd = 1u << 13;

// IA32_DEBUGCTL. [intel/vol3] "IA32_DEBUGCTL MSR"; [amd/vol2] "Debug-Control MSR (DebugCtl)"
inline constexpr std::uint64_t kDebugctlLbr = 1u << 0;
inline constexpr std::uint64_t kDebugctlBtf = 1u << 1;
inline constexpr std::uint64_t kDebugctlPins = 15u << 2;  // AMD's: of no effect

// [intel/vol4] "Architectural MSRs"; [amd/vol2] "MSR Cross-Reference"
enum Msr : std::uint32_t {
  kMsrTsc = 0x10,
  kMsrApicBase = 0x1b,
  kMsrTscAdjust = 0x3b,
  kMsrPredictionCommand = 0x49,
  kMsrTscDeadline = 0x6e0,
  kMsrSysenterCs = 0x174,
  kMsrSysenterEsp = 0x175,
  kMsrSysenterEip = 0x176,
  kMsrMicrocodeUpdate = 0x79,
  kMsrArchCapabilities = 0x10a,
  kMsrDebugctl = 0x1d9,
  kMsrLastBranchFrom = 0x1db,
  kMsrLastBranchTo = 0x1dc,
  kMsrLastIntFrom = 0x1dd,
  kMsrLastIntTo = 0x1de,
  kMsrPat = 0x277,
  kMsrUserCet = 0x6a0,
  kMsrSupervisorCet = 0x6a2,
  kMsrPl0Ssp = 0x6a4,
  kMsrPl1Ssp = 0x6a5,
  kMsrPl2Ssp = 0x6a6,
  kMsrPl3Ssp = 0x6a7,
  kMsrInterruptSspTable = 0x6a8,
  kMsrPkrs = 0x6e1,
  kMsrXss = 0xda0,
  kMsrEfer = 0xc000'0080,
  kMsrStar = 0xc000'0081,
  kMsrLstar = 0xc000'0082,
  kMsrCstar = 0xc000'0083,
  kMsrSfmask = 0xc000'0084,
  kMsrFsBase = 0xc000'0100,
  kMsrGsBase = 0xc000'0101,
  kMsrKernelGsBase = 0xc000'0102,
  kMsrTscAux = 0xc000'0103,
  kMsrAmdPerfFirst = 0xc001'0000,
  kMsrAmdPerfLast = 0xc001'0007,
};

}  // namespace pagesaw::cpu
