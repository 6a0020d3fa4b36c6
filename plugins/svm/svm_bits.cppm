// Bits and numbers of SVM outside the layout of the control block.
module;
#include <cstdint>
export module pagesaw.plugins.svm.svm_bits;

export namespace pagesaw::svm {

inline constexpr std::uint64_t kEferSvme = 1u << 12;

// [amd/vol2] "SVM Related MSRs"
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

// The word at 060h. [amd/vol2] "Virtual Interrupt Injection", "Virtual Global Interrupt Flag"
inline constexpr std::uint32_t kVirtualTpr = 0xff;
inline constexpr std::uint32_t kVirtualIrq = 1u << 8;
inline constexpr std::uint32_t kVirtualGif = 1u << 9;
inline constexpr unsigned kVirtualPriorityShift = 16;
inline constexpr std::uint32_t kVirtualIgnoreTpr = 1u << 20;
inline constexpr std::uint32_t kVirtualMasking = 1u << 24;
inline constexpr std::uint32_t kVirtualGifEnabled = 1u << 25;

// The word at 090h. [amd/vol2] "Enabling Nested Paging", "Guest Mode Execute Trap"
inline constexpr std::uint64_t kNestedEnable = 1u << 0;
inline constexpr std::uint64_t kNestedExecuteTrap = 1u << 3;

// The byte at 05Ch. [amd/vol2] "TLB Flush"
enum class TlbControl : std::uint8_t {
  kNothing = 0,
  kEverything = 1,
  kGuest = 3,
  kGuestNonGlobal = 7,
};

}  // namespace pagesaw::svm
