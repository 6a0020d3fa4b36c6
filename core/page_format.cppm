// What page-table entries look like, as one value: where the bits are, which are reserved, and
// which accesses a set of rights refuses. Walkers hold one that describes the guest's entries,
// shadow MMUs hold one that describes SPTEs. It knows no memory, no root and no processor.
module;
#include <array>
#include <cstdint>
export module pagesaw.core.page_format;

import pagesaw.core.access;
import pagesaw.core.address;

export namespace pagesaw {

// Where the bits of an entry are. A mask of 0 means: this format has no such bit, and what it would
// grant is granted. A structural type, so that a walker can be compiled for one layout.
struct EntryLayout {
  std::uint8_t entry_bytes = 8;
  std::uint8_t index_bits = 9;
  std::uint64_t present = 0;          // the entry is present if any of these is set
  std::uint64_t read = 0;             // R
  std::uint64_t write = 0;            // W
  std::uint64_t user = 0;             // U/S
  std::uint64_t exec_supervisor = 0;  // XS, or X where there is one execute bit
  std::uint64_t exec_user = 0;        // XU
  std::uint64_t no_execute = 0;       // XD: execution is refused if set
  std::uint64_t accessed = 0;
  std::uint64_t dirty = 0;
  std::uint64_t large = 0;  // PS, above level 1
  std::uint64_t global = 0;
  std::uint64_t address = 0;     // 51:12, or 31:12
  std::uint64_t leaf_fixed = 0;  // what an SPTE of this layout has set in every leaf
  std::uint64_t pat_large = 0;   // PAT of a large leaf: not part of its address

  constexpr bool operator==(const EntryLayout&) const = default;
  constexpr bool grants_execute() const { return exec_supervisor != 0; }
  constexpr bool splits_execute() const { return exec_user != 0; }
};

// The bits of `layout` that grant a right when set in every entry of a walk.
constexpr std::uint64_t GrantMask(const EntryLayout& layout) {
  return layout.read | layout.write | layout.user | layout.exec_supervisor | layout.exec_user;
}

// Rights that `granted` (the AND over a walk of entry ^ no_execute) gives in `layout`.
constexpr Rights DecodeRights(const EntryLayout& layout, std::uint64_t granted) {
  const auto has = [granted](std::uint64_t mask) { return mask == 0 || (granted & mask) != 0; };
  unsigned rights = 0;
  if (has(layout.read)) rights |= Rights::kRead;
  if (has(layout.write)) rights |= Rights::kWrite;
  if (has(layout.user)) rights |= Rights::kUser;
  if (layout.grants_execute()) {
    const bool supervisor = (granted & layout.exec_supervisor) != 0;
    if (supervisor) rights |= Rights::kExecSupervisor;
    if (layout.splits_execute() ? (granted & layout.exec_user) != 0 : supervisor) {
      rights |= Rights::kExecUser;
    }
  } else if (has(layout.no_execute)) {
    rights |= Rights::kExecSupervisor | Rights::kExecUser;
  }
  return Rights(rights);
}

// The protection key of a leaf. [intel/vol3] "Protection Keys"
constexpr unsigned ProtectionKeyOf(std::uint64_t leaf) {
  return static_cast<unsigned>(leaf >> 59 & 15);
}

struct PageFormat {
  EntryLayout layout;
  // Reserved bits of a present entry, by [bit 7 of the entry][level - 1].
  std::array<std::array<std::uint64_t, kMaxLevels>, 2> reserved = {};
  // Bit i is set if a present entry whose bits 5:0 are i is malformed. For the lookup an entry with
  // exec_user set counts as having exec_supervisor set.
  std::uint64_t malformed_low_bits = 0;
  // Bit c of word r is set if an access of row r (`Access::permission_row`) is refused by rights of
  // code c (`PermissionCode`).
  std::array<std::uint16_t, 16> refused = {};
  // Two bits {AD, WD matter} for each combination of error-code bits; 0: no protection keys.
  std::uint32_t protection_key_mask = 0;
  bool second_stage = false;
  // In a second stage: a user page refuses supervisor-mode fetches, and supervisor pages admit
  // data accesses and fetches of both modes.
  bool user_pages_refuse_supervisor_fetch = false;
  bool accessed_dirty = true;  // A and D are kept
  bool reports_fetch = true;   // a refused fetch says so in its error code
  bool shadow_stacks = false;  // pages that `IsShadowStackLeaf` admits belong to shadow stacks

  constexpr bool IsPresent(std::uint64_t entry) const { return (entry & layout.present) != 0; }

  constexpr bool IsLarge(std::uint64_t entry, Level level) const {
    return level != Level::kPt && (entry & layout.large) != 0;
  }
  constexpr bool IsLeaf(std::uint64_t entry, Level level) const {
    return level == Level::kPt || (entry & layout.large) != 0;
  }

  // Whether the present entry `entry` of a table at `level` is malformed: a reserved bit is set, or
  // its low bits are a combination that the format forbids.
  constexpr bool IsMalformed(std::uint64_t entry, Level level) const {
    if ((entry & reserved[(entry >> 7) & 1][Number(level) - 1]) != 0) return true;
    if (malformed_low_bits == 0) return false;
    const std::uint64_t low =
        (entry & 63) | ((entry & layout.exec_user) != 0 ? layout.exec_supervisor : 0);
    return (malformed_low_bits >> low & 1) != 0;
  }

  // Whether `leaf` makes its page one of a shadow stack, if every entry above grants writing: it is
  // dirty though it cannot be written. [intel/vol3] "Determination of Access Rights"
  constexpr bool IsShadowStackLeaf(std::uint64_t leaf) const {
    return shadow_stacks && (leaf & (layout.write | layout.dirty)) == layout.dirty;
  }

  // The rights that one entry grants by itself.
  constexpr Rights RightsOf(std::uint64_t entry) const {
    return DecodeRights(layout, entry ^ layout.no_execute);
  }

  // The column of `refused`: {XS, U or XU, W, R}.
  constexpr unsigned PermissionCode(Rights rights) const {
    const bool third = layout.grants_execute() ? rights.exec_user() : rights.user();
    return (rights.read() ? 1u : 0) | (rights.write() ? 2u : 0) | (third ? 4u : 0) |
           (rights.exec_supervisor() ? 8u : 0);
  }

  // Whether rights found in well-formed entries refuse `access`. Protection keys are apart. A
  // shadow stack admits accesses of its own kind by its own mode only.
  constexpr bool PermissionFault(Rights rights, Access access) const {
    if (access.is_shadow_stack()) [[unlikely]] {
      return !rights.shadow_stack() || rights.user() != access.is_user();
    }
    return (refused[access.permission_row()] >> PermissionCode(rights) & 1) != 0;
  }

  // Whether the protection key of `leaf`, whose walk gave `rights`, refuses `access`: PKRU judges
  // user pages, IA32_PKRS supervisor pages.
  constexpr bool ProtectionKeyFault(std::uint64_t leaf, Rights rights, Access access,
                                    std::uint32_t pkru, std::uint32_t pkrs) const {
    const unsigned shift = (access.code_bits() & 31) | (rights.user() ? 8u : 0);
    const std::uint32_t matters = protection_key_mask >> shift & 3;
    return ((rights.user() ? pkru : pkrs) >> (2 * ProtectionKeyOf(leaf)) & matters) != 0;
  }

  constexpr bool operator==(const PageFormat&) const = default;
};

}  // namespace pagesaw
