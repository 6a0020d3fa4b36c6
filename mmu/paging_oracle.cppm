// What an x86 processor does with page tables, for tests: written from the manuals' words and
// figures, one bit and one rule at a time, and sharing nothing with the code that it judges.
// Slow, and meant to be read beside the manual.
module;
#include <bit>
#include <cstdint>
export module pagesaw.mmu.paging_oracle;

export namespace pagesaw::oracle {

// A processor's registers and features, by name. [intel/vol3] "Paging Modes and Control Bits"
struct Processor {
  unsigned levels = 4;  // 0: no paging; 2: 32-bit; 3: PAE; 4; 5
  unsigned maxphyaddr = 46;
  bool pse = true;
  bool nxe = true;
  bool wp = true;
  bool smep = false;
  bool smap = false;
  bool pke = false;
  bool pks = false;
  bool cet = false;
  std::uint32_t pkru = 0;
  std::uint32_t pkrs = 0;
  bool pages_1g = true;
  unsigned pse36_bits = 40;    // physical-address bits that a 4 MiB page can have
  bool root_bit8_mbz = false;  // AMD's PML4E and PML5E
  std::uint64_t root = 0;      // CR3
  std::uint64_t pdpte[4] = {};
};

struct Access {
  bool write = false;
  bool fetch = false;
  bool user = false;     // made at CPL 3, explicitly
  bool with_ac = false;  // explicit, and EFLAGS.AC is 1
  bool shadow_stack = false;
};

struct Verdict {
  bool general_protection = false;  // the linear address is none of this mode
  bool fault = false;
  std::uint32_t code = 0;      // of #PF
  unsigned level = 0;          // of the entry that decided; 0 without paging
  std::uint64_t physical = 0;  // if there is no fault
};

// Whether `bit` of a present entry must be 0. `large` is bit 7 of the entry.
// [intel/vol3] "Formats of CR3 and Paging-Structure Entries"; [amd/vol2] "Long-Mode Page
// Translation"
constexpr bool MustBeZero(const Processor& p, unsigned level, bool large, unsigned bit) {
  const auto among = [bit](unsigned high, unsigned low) { return low <= bit && bit <= high; };
  if (p.levels == 2) {
    if (level != 2 || !large || !p.pse) return false;
    return bit == 21 || (among(20, 13) && 32 + (bit - 13) >= p.pse36_bits);
  }
  if (p.levels == 3 && level == 3) return bit >= p.maxphyaddr || among(8, 5) || among(2, 1);
  if (bit == 63) return !p.nxe;
  if (p.levels == 3 && among(62, 52)) return true;
  if (among(51, 12) && bit >= p.maxphyaddr) return true;
  switch (level) {
    case 5:
    case 4:
      return bit == 7 || (bit == 8 && p.root_bit8_mbz);
    case 3:
      return large && (p.pages_1g ? among(29, 13) : bit == 7);
    case 2:
      return large && among(20, 13);
    default:
      return false;
  }
}

constexpr bool HasReservedBit(const Processor& p, unsigned level, std::uint64_t entry) {
  const bool large = (entry >> 7 & 1) != 0;
  for (std::uint64_t left = entry; left != 0; left &= left - 1) {
    if (MustBeZero(p, level, large, static_cast<unsigned>(std::countr_zero(left)))) return true;
  }
  return false;
}

// What all entries of a translation say together.
struct Page {
  bool writable = true;
  bool user = true;
  bool execute_disabled = false;
  bool shadow_stack = false;
  unsigned key = 0;
};

// [intel/vol3] "Determination of Access Rights"
constexpr bool RightsRefuse(const Processor& p, const Page& page, const Access& access) {
  if (access.shadow_stack) return !page.shadow_stack || access.user != page.user;
  if (access.user) {
    if (!page.user) return true;
    if (access.fetch) return page.execute_disabled;
    return access.write && !page.writable;
  }
  if (access.fetch) return page.execute_disabled || (page.user && p.smep);
  if (page.user && p.smap && !access.with_ac) return true;
  return access.write && !page.writable && p.wp;
}

// [intel/vol3] "Protection Keys"
constexpr bool KeyRefuses(const Processor& p, const Page& page, const Access& access) {
  if (p.levels < 4 || access.fetch) return false;
  if (page.user ? !p.pke : !p.pks) return false;
  if (!page.user && access.user) return false;  // keys of supervisor pages bind supervisors
  const std::uint32_t rights = (page.user ? p.pkru : p.pkrs) >> (2 * page.key) & 3;
  if ((rights & 1) != 0) return true;
  return (rights & 2) != 0 && access.write && (access.user || p.wp);
}

// Walks `linear`. `read(address, bytes)` gives the entry at a physical address.
// [intel/vol3] "Paging", "Page-Fault Exceptions"
template <typename Read>
constexpr Verdict Translate(const Processor& p, std::uint64_t linear, const Access& access,
                            Read read) {
  constexpr std::uint32_t kP = 1, kRw = 2, kUs = 4, kRsvd = 8, kId = 16, kPk = 32, kSs = 64;
  if (p.levels >= 4) {
    const unsigned width = p.levels == 5 ? 57 : 48;
    const std::uint64_t top = linear >> (width - 1);
    if (top != 0 && top != ~std::uint64_t{0} >> (width - 1)) return {.general_protection = true};
  } else if (linear >> 32 != 0) {
    return {.general_protection = true};
  }
  if (p.levels == 0) return {.physical = linear};

  std::uint32_t asked = (access.write ? kRw : 0) | (access.user ? kUs : 0);
  if (access.shadow_stack) asked |= kSs;
  if (access.fetch && (p.smep || (p.levels > 2 && p.nxe))) asked |= kId;

  const unsigned entry_bytes = p.levels == 2 ? 4 : 8;
  const unsigned index_bits = p.levels == 2 ? 10 : 9;
  const std::uint64_t address_mask = p.levels == 2 ? 0xffff'f000 : 0x000f'ffff'ffff'f000;
  std::uint64_t table = p.root & address_mask;
  Page page;
  for (unsigned level = p.levels;; --level) {
    const unsigned shift = 12 + index_bits * (level - 1);
    const std::uint64_t index = linear >> shift & ((1u << index_bits) - 1);
    const bool is_register = p.levels == 3 && level == 3;
    const std::uint64_t entry =
        is_register ? p.pdpte[index] : read(table + index * entry_bytes, entry_bytes);
    if ((entry & 1) == 0) return {.fault = true, .code = asked, .level = level};
    if (HasReservedBit(p, level, entry)) {
      return {.fault = true, .code = asked | kP | kRsvd, .level = level};
    }
    const bool writable_above = page.writable;
    if (!is_register) {
      page.writable = page.writable && (entry >> 1 & 1) != 0;
      page.user = page.user && (entry >> 2 & 1) != 0;
      page.execute_disabled = page.execute_disabled || (p.levels > 2 && (entry >> 63 & 1) != 0);
    }
    const bool may_be_large = level == 3 ? p.levels >= 4 : level == 2 && (p.levels > 2 || p.pse);
    if (level > 1 && !(may_be_large && (entry >> 7 & 1) != 0)) {
      table = entry & address_mask;
      continue;
    }
    page.key = static_cast<unsigned>(entry >> 59 & 15);
    page.shadow_stack = p.cet && writable_above && (entry >> 1 & 1) == 0 && (entry >> 6 & 1) != 0;
    const bool key = KeyRefuses(p, page, access);
    if (key || RightsRefuse(p, page, access)) {
      return {.fault = true, .code = asked | kP | (key ? kPk : 0), .level = level};
    }
    const std::uint64_t offset = linear & ((std::uint64_t{1} << shift) - 1);
    std::uint64_t frame = entry & address_mask & ~((std::uint64_t{1} << shift) - 1);
    // PSE-36: bits 20:13 of the entry are bits 39:32 of the address.
    if (p.levels == 2 && level == 2) frame |= (entry >> 13 & 0xff) << 32;
    return {.level = level, .physical = frame | offset};
  }
}

// Accessed and dirty: what `entry`, used at `level` by a translation that ended well in
// `leaf_level`, is afterwards. [intel/vol3] "Accessed and Dirty Flags"
constexpr std::uint64_t AfterUse(const Processor& p, std::uint64_t entry, unsigned level,
                                 unsigned leaf_level, const Access& access) {
  if (p.levels == 3 && level == 3) return entry;
  const bool dirty = level == leaf_level && access.write;
  return entry | 1u << 5 | (dirty ? 1u << 6 : 0);
}

// -- the second stage of Intel's processors

// Secondary controls, EPTP and capabilities, by name.
struct Ept {
  unsigned levels = 4;
  unsigned maxphyaddr = 46;
  bool mode_based_execute = false;
  bool execute_only = true;
  bool pages_2m = true;
  bool pages_1g = true;
};

// What a physical access of the guest is for. `user_address`: the linear address is a user-mode
// one.
struct EptAccess {
  bool write = false;
  bool fetch = false;
  bool user_address = false;
};

struct EptVerdict {
  enum class Kind { kAllowed, kViolation, kMisconfiguration } kind = Kind::kAllowed;
  unsigned level = 0;
  // Violation: bits 3 to 6 of the exit qualification: R, W, X or XS, and XU, of all entries used.
  unsigned qualification_rights = 0;
  std::uint64_t physical = 0;
};

// [intel/vol3] "EPT Misconfigurations", and the figure "Formats of EPTP and EPT Paging-Structure
// Entries"
constexpr bool IsMisconfigured(const Ept& ept, unsigned level, std::uint64_t entry) {
  const auto bit = [entry](unsigned n) { return (entry >> n & 1) != 0; };
  const bool readable = bit(0), writable = bit(1);
  const bool executable = bit(2) || (ept.mode_based_execute && bit(10));
  if (writable && !readable) return true;
  if (executable && !readable && !ept.execute_only) return true;
  for (unsigned n = 51; n >= ept.maxphyaddr; --n) {
    if (bit(n)) return true;
  }
  const bool large_here = level == 3 ? ept.pages_1g : level == 2 && ept.pages_2m;
  const bool leaf = level == 1 || (large_here && bit(7));
  if (!leaf) return bit(3) || bit(4) || bit(5) || bit(6) || bit(7);
  const unsigned low = level == 3 ? 29 : level == 2 ? 20 : 0;
  for (unsigned n = 12; n <= low; ++n) {
    if (bit(n)) return true;
  }
  const unsigned memory_type = entry >> 3 & 7;
  return memory_type == 2 || memory_type == 3 || memory_type == 7;
}

// [intel/vol3] "EPT Violations", "Exit Qualification for EPT Violations"
template <typename Read>
constexpr EptVerdict Translate(const Ept& ept, std::uint64_t root, std::uint64_t address,
                               const EptAccess& access, Read read) {
  using Kind = EptVerdict::Kind;
  if (address >> (12 + 9 * ept.levels) != 0) {
    return {.kind = Kind::kViolation, .level = ept.levels};
  }
  std::uint64_t table = root;
  unsigned rights = 15;  // R, W, XS, XU
  for (unsigned level = ept.levels;; --level) {
    const unsigned shift = 12 + 9 * (level - 1);
    const std::uint64_t entry = read(table + (address >> shift & 511) * 8);
    const bool xu = (entry >> 10 & 1) != 0;
    const bool present = (entry & 7) != 0 || (ept.mode_based_execute && xu);
    if (!present) return {.kind = Kind::kViolation, .level = level};
    if (IsMisconfigured(ept, level, entry))
      return {.kind = Kind::kMisconfiguration, .level = level};
    const bool user_executable = ept.mode_based_execute ? xu : (entry >> 2 & 1) != 0;
    rights &= static_cast<unsigned>(entry & 7) | (user_executable ? 8u : 0);
    if (level > 1 && (entry >> 7 & 1) == 0) {
      table = entry & 0x000f'ffff'ffff'f000;
      continue;
    }
    const unsigned needed = access.fetch ? (access.user_address ? 8u : 4u) : access.write ? 2u : 1u;
    if ((rights & needed) == 0) {
      return {.kind = Kind::kViolation, .level = level, .qualification_rights = rights};
    }
    const std::uint64_t offset_mask = (std::uint64_t{1} << shift) - 1;
    return {.level = level,
            .physical = (entry & 0x000f'ffff'ffff'f000 & ~offset_mask) | (address & offset_mask)};
  }
}

// -- the second stage of AMD's processors

// Nested tables look as those of the hypervisor's own mode do; its registers, by name.
struct NestedPaging {
  unsigned levels = 4;  // 2: 32-bit paging; 3: PAE, whose PDPTEs lie in memory; 4; 5
  unsigned maxphyaddr = 46;
  bool guest_mode_execute_trap = false;
  bool nxe = true;
  bool smep = false;  // nothing is refused by it, but fetches are reported
  bool pse = true;
  bool pages_1g = true;
};

// Whether nested tables whose entries together say `page` refuse an access. Without guest mode
// execute trap every access is a user's. [amd/vol2] "Nested Paging", "Guest Mode Execute Trap
// Extension"
constexpr bool NestedRightsRefuse(const NestedPaging& nested, const Page& page,
                                  const Access& access) {
  if (!nested.guest_mode_execute_trap && !page.user) return true;
  if (access.fetch) {
    if (page.execute_disabled) return true;
    return nested.guest_mode_execute_trap && page.user && !access.user;
  }
  return access.write && !page.writable;
}

// `code` has bits P, RW, US, RSVD and ID as EXITINFO1 has them. `read(address, bytes)` gives the
// entry at a physical address. [amd/vol2] "Nested versus Guest Page Faults, Fault Ordering"
template <typename Read>
constexpr Verdict Translate(const NestedPaging& nested, std::uint64_t root, std::uint64_t address,
                            const Access& access, Read read) {
  const Processor tables = {.levels = nested.levels,
                            .maxphyaddr = nested.maxphyaddr,
                            .pse = nested.pse,
                            .nxe = nested.nxe,
                            .pages_1g = nested.pages_1g,
                            .root_bit8_mbz = true};
  const bool no_execute = nested.levels > 2 && nested.nxe;
  const bool user = access.user || !nested.guest_mode_execute_trap;
  const std::uint32_t asked = (access.write ? 2u : 0) | (user ? 4u : 0) |
                              (access.fetch && (no_execute || nested.smep) ? 16u : 0);
  if (address >> (nested.levels < 4 ? 32 : 12 + 9 * nested.levels) != 0) {
    return {.fault = true, .code = asked, .level = nested.levels};
  }
  const unsigned entry_bytes = nested.levels == 2 ? 4 : 8;
  const unsigned index_bits = nested.levels == 2 ? 10 : 9;
  std::uint64_t table = root;
  Page page;
  for (unsigned level = nested.levels;; --level) {
    const unsigned shift = 12 + index_bits * (level - 1);
    const std::uint64_t index = address >> shift & ((1u << index_bits) - 1);
    const std::uint64_t entry = read(table + index * entry_bytes, entry_bytes);
    if ((entry & 1) == 0) return {.fault = true, .code = asked, .level = level};
    if (HasReservedBit(tables, level, entry)) {
      return {.fault = true, .code = asked | 1 | 8, .level = level};
    }
    const bool is_pdpte = nested.levels == 3 && level == 3;  // grants everything
    page.writable = page.writable && (is_pdpte || (entry >> 1 & 1) != 0);
    page.user = page.user && (is_pdpte || (entry >> 2 & 1) != 0);
    page.execute_disabled =
        page.execute_disabled || (no_execute && !is_pdpte && (entry >> 63 & 1) != 0);
    const bool may_be_large =
        level == 3 ? nested.levels > 3 : level == 2 && (nested.levels > 2 || nested.pse);
    if (level > 1 && !(may_be_large && (entry >> 7 & 1) != 0)) {
      table = entry & 0x000f'ffff'ffff'f000;
      continue;
    }
    if (NestedRightsRefuse(nested, page, access)) {
      return {.fault = true, .code = asked | 1, .level = level};
    }
    const std::uint64_t offset_mask = (std::uint64_t{1} << shift) - 1;
    std::uint64_t frame = entry & 0x000f'ffff'ffff'f000 & ~offset_mask;
    // PSE-36: bits 20:13 of the entry are bits 39:32 of the address.
    if (nested.levels == 2 && level == 2) frame |= (entry >> 13 & 0xff) << 32;
    return {.level = level, .physical = frame | (address & offset_mask)};
  }
}

}  // namespace pagesaw::oracle
