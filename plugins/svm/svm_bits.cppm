// Bits and numbers of SVM outside the layout of the control block.
module;
#include <cstdint>
export module pagesaw.plugins.svm.svm_bits;

export namespace pagesaw::svm {

inline constexpr std::uint64_t kEferSvme = 1u << 12;

// [amd/vol2] "SVM Related MSRs", "TSC Ratio MSR (C000_0104h)"
inline constexpr std::uint32_t kMsrTscRatio = 0xc000'0104;
inline constexpr std::uint64_t kTscRatioKnown = 0xff'ffff'ffff;
inline constexpr unsigned kTscRatioFractionBits = 32;
inline constexpr std::uint64_t kTscRatioOne = std::uint64_t{1} << kTscRatioFractionBits;
inline constexpr std::uint32_t kMsrVmCr = 0xc001'0114;
inline constexpr std::uint32_t kMsrHostSave = 0xc001'0117;
inline constexpr std::uint64_t kVmCrKnown = 0x1f;
inline constexpr std::uint64_t kVmCrLock = 1u << 3;
inline constexpr std::uint64_t kVmCrDisable = 1u << 4;

// EVENTINJ and EXITINTINFO. [amd/vol2] "Event Injection"
enum class EventType : std::uint8_t {
  kInterrupt = 0,
  kNmi = 2,
  kException = 3,
  kSoftwareInterrupt = 4,
};
inline constexpr std::uint64_t kEventHasError = 1u << 11;
inline constexpr std::uint64_t kEventValid = 1u << 31;

// The word at 060h. [amd/vol2] "Virtual Interrupt Injection", "Virtual Global Interrupt Flag",
// "NMI Virtualization"
inline constexpr std::uint32_t kVirtualTpr = 0xff;
inline constexpr std::uint32_t kVirtualIrq = 1u << 8;
inline constexpr std::uint32_t kVirtualGif = 1u << 9;
inline constexpr std::uint32_t kVirtualNmi = 1u << 11;
inline constexpr std::uint32_t kVirtualNmiMask = 1u << 12;
inline constexpr unsigned kVirtualPriorityShift = 16;
inline constexpr std::uint32_t kVirtualIgnoreTpr = 1u << 20;
inline constexpr std::uint32_t kVirtualMasking = 1u << 24;
inline constexpr std::uint32_t kVirtualGifEnabled = 1u << 25;
inline constexpr std::uint32_t kVirtualNmiEnabled = 1u << 26;

// The word at 090h. [amd/vol2] "Enabling Nested Paging", "Guest Mode Execute Trap"
inline constexpr std::uint64_t kNestedEnable = 1u << 0;
inline constexpr std::uint64_t kNestedExecuteTrap = 1u << 3;

// The word at 0B8h. [amd/vol2] "LBR Virtualization", "VMSAVE and VMLOAD Virtualization"
inline constexpr std::uint64_t kVirtualRecords = 1u << 0;
inline constexpr std::uint64_t kVirtualLoadAndSave = 1u << 1;
inline constexpr std::uint64_t kDebugctlKnown = 0x3f;

// The byte at 05Ch. [amd/vol2] "TLB Flush"
enum class TlbControl : std::uint8_t {
  kNothing = 0,
  kEverything = 1,
  kGuest = 3,
  kGuestNonGlobal = 7,
};

}  // namespace pagesaw::svm
