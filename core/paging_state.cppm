// The registers and features of a processor that decide how it pages: what a walker of the running
// guest is initialised from. Plain data; legality of a change is the processor's business.
module;
#include <array>
#include <cstdint>
#include <string_view>
export module pagesaw.core.paging_state;

import pagesaw.core.address;

export namespace pagesaw {

// Control-register bits that paging depends on. [intel/vol3] "Control Registers"
inline constexpr std::uint64_t kCr0Pe = 1u << 0;
inline constexpr std::uint64_t kCr0Wp = 1u << 16;
inline constexpr std::uint64_t kCr0Pg = 1u << 31;
inline constexpr std::uint64_t kCr4Pse = 1u << 4;
inline constexpr std::uint64_t kCr4Pae = 1u << 5;
inline constexpr std::uint64_t kCr4Pge = 1u << 7;
inline constexpr std::uint64_t kCr4La57 = 1u << 12;
inline constexpr std::uint64_t kCr4Pcide = 1u << 17;
inline constexpr std::uint64_t kCr4Smep = 1u << 20;
inline constexpr std::uint64_t kCr4Smap = 1u << 21;
inline constexpr std::uint64_t kCr4Pke = 1u << 22;
inline constexpr std::uint64_t kCr4Cet = 1u << 23;
inline constexpr std::uint64_t kCr4Pks = 1u << 24;
inline constexpr std::uint64_t kCr4LamSup = 1u << 28;
inline constexpr std::uint64_t kCr3LamU57 = std::uint64_t{1} << 61;
inline constexpr std::uint64_t kCr3LamU48 = std::uint64_t{1} << 62;
inline constexpr std::uint64_t kEferSce = 1u << 0;
inline constexpr std::uint64_t kEferLme = 1u << 8;
inline constexpr std::uint64_t kEferLma = 1u << 10;
inline constexpr std::uint64_t kEferNxe = 1u << 11;
inline constexpr std::uint64_t kEferSvme = 1u << 12;

// How linear addresses are translated. [intel/vol3] "Paging Modes and Control Bits"
enum class PagingMode : std::uint8_t { kNone, k32Bit, kPae, k4Level, k5Level };

// The mode as people call it; "none" without paging.
constexpr std::string_view PagingModeName(PagingMode mode) {
  switch (mode) {
    case PagingMode::kNone:
      return "none";
    case PagingMode::k32Bit:
      return "32-bit";
    case PagingMode::kPae:
      return "PAE";
    case PagingMode::k4Level:
      return "4-level";
    case PagingMode::k5Level:
      return "5-level";
  }
  return "unknown";
}

// What the processor's enumerated features say about paging.
struct PagingFeatures {
  std::uint8_t physical_bits = 46;  // MAXPHYADDR
  bool gib_pages = true;            // CPUID 80000001h EDX.26
  bool no_execute = true;           // CPUID 80000001h EDX.20
  std::uint8_t pse36_bits = 40;     // physical bits that a 4 MiB page can reach
  bool root_bit8_reserved = false;  // bit 8 of PML4E and PML5E is reserved, not ignored
  bool la57 = false;                // 57-bit linear addresses are supported

  bool operator==(const PagingFeatures&) const = default;
};

struct PagingState {
  std::uint64_t cr0 = 0;
  std::uint64_t cr3 = 0;
  std::uint64_t cr4 = 0;
  std::uint64_t efer = 0;
  std::uint32_t pkru = 0;
  std::uint32_t pkrs = 0;
  std::array<std::uint64_t, 4> pdptes = {};  // the PDPTE registers of PAE paging
  PagingFeatures features = {};

  constexpr bool paging() const { return (cr0 & kCr0Pg) != 0; }
  constexpr bool write_protect() const { return (cr0 & kCr0Wp) != 0; }
  constexpr bool no_execute() const { return (efer & kEferNxe) != 0; }
  constexpr bool long_mode() const { return (efer & kEferLma) != 0; }
  constexpr unsigned linear_bits() const { return (cr4 & kCr4La57) != 0 ? 57 : 48; }
  // The process-context identifier, which cached translations are tagged with.
  constexpr std::uint16_t pcid() const {
    return (cr4 & kCr4Pcide) != 0 ? static_cast<std::uint16_t>(cr3 & 0xfff) : 0;
  }

  constexpr PagingMode mode() const {
    if (!paging()) return PagingMode::kNone;
    if ((cr4 & kCr4Pae) == 0) return PagingMode::k32Bit;
    if (!long_mode()) return PagingMode::kPae;
    return (cr4 & kCr4La57) != 0 ? PagingMode::k5Level : PagingMode::k4Level;
  }

  bool operator==(const PagingState&) const = default;
};

// Which of the translations of linear addresses that a processor may have cached must not be used
// any more: those from before an instruction. Forgetting more is always allowed.
// [intel/vol3] "Operations that Invalidate TLBs and Paging-Structure Caches"
struct Invalidation {
  enum class Scope : std::uint8_t {
    kNothing,       // registers were loaded, and everything cached stays good
    kAddress,       // those of the page that holds `linear` in `pcid`, and global ones of it
    kAddressSpace,  // those of `pcid`
    kEverything,    // of every PCID
  };
  Scope scope = Scope::kEverything;
  std::uint16_t pcid = 0;
  Gva linear = {};

  bool operator==(const Invalidation&) const = default;
};

}  // namespace pagesaw
