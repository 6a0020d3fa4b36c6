// Calls of a guest to its hypervisor, by VMCALL or VMMCALL: numbers, answers, how CPUID tells of
// them. docs/hypercalls.md
module;
#include <array>
#include <cstdint>
export module pagesaw.core.hypercall;

export namespace pagesaw {

struct Hypercall {
  std::uint64_t number = 0;                     // RAX
  std::array<std::uint64_t, 4> arguments = {};  // RBX, RCX, RDX, RSI
  bool wide = false;                            // made by 64-bit code; else values have 32 bits
};

// Sends an interrupt to the processors whose APIC IDs are RDX + n for each bit n of RBX, and
// RDX + width + n for each bit n of RCX; RSI is the vector and delivery mode as in an ICR, fixed or
// NMI. The answer: how many processors that were.
inline constexpr std::uint64_t kHypercallSendIpi = 10;

// Answers in RAX that are no results. As unsigned, since that is what a register holds.
inline constexpr std::uint64_t kHypercallUnknown = ~std::uint64_t{37};  // -38: no such call
inline constexpr std::uint64_t kHypercallInvalid = ~std::uint64_t{21};  // -22: arguments refused

// CPUID: the leaf with the signature, and the next, whose EAX has bit n set if call n is known.
inline constexpr std::uint32_t kHypervisorLeaf = 0x4000'0000;
inline constexpr std::uint32_t kHypercallLeaf = 0x4000'0001;
inline constexpr std::uint32_t kHypercallBits = 1u << kHypercallSendIpi;

}  // namespace pagesaw
