// Which values registers of x86 processors can hold, whoever loads them: an instruction, a
// virtualization extension, the host.
module;
#include <cstdint>
export module pagesaw.core.register_values;

export namespace pagesaw {

// Bits of RFLAGS that mean something, with the one that is always set.
// [intel/vol1] "EFLAGS Register"
inline constexpr std::uint64_t kRflagsKnown = 0x3f'7fd7;

// DR6 and DR7. [intel/vol3] "Debug Registers"
inline constexpr std::uint64_t kDr6Fixed = 0xffff'0ff0;
inline constexpr std::uint64_t kDr6Writable = 0xe00f;
inline constexpr std::uint64_t kDr7Fixed = 0x400;
inline constexpr std::uint64_t kDr7Writable = 0xffff'23ff;

// Bits that a PDPTE of PAE paging must have clear if it is present.
// [intel/vol3] "PDPTE Registers"; [amd/vol2] "Legacy PAE Mode"
constexpr std::uint64_t ReservedPdpteBits(unsigned physical_bits) {
  return ~((std::uint64_t{1} << physical_bits) - 1) | 0x1e6;
}

// Memory types 0, 1, 4 to 7 in each byte.
// [intel/vol3] "IA32_PAT MSR"; [amd/vol2] "Memory Type Encodings"
constexpr bool IsLegalPat(std::uint64_t value) {
  for (unsigned shift = 0; shift < 64; shift += 8) {
    const std::uint64_t type = value >> shift & 0xff;
    if (type > 7 || type == 2 || type == 3) return false;
  }
  return true;
}
static_assert(IsLegalPat(0x0007'0406'0007'0406));
static_assert(!IsLegalPat(0x0207'0406'0007'0406));

// `address` with the bits from `width` on made those of bit `width` - 1.
// [intel/vol1] "Canonical Addressing"
constexpr std::uint64_t MadeCanonical(std::uint64_t address, unsigned width) {
  const unsigned unused = 64 - width;
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(address << unused) >> unused);
}
static_assert(MadeCanonical(0x8000'0000'0000, 48) == 0xffff'8000'0000'0000);

}  // namespace pagesaw
