module;
#include <array>
#include <cstdint>
module pagesaw.mmu.shadow_root;

import pagesaw.mmu.legacy_format;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

// The role of the root, which those below are derived from.
ShadowRole RoleFor(const PagingState& state) {
  const PagingMode mode = state.mode();
  if (mode == PagingMode::kNone) return {.level = Level::kPdpt, .direct = true};
  ShadowRole role = {.level = Level::kPdpt};
  if (mode == PagingMode::k4Level) role.level = Level::kPml4;
  if (mode == PagingMode::k5Level) role.level = Level::kPml5;
  role.long_mode = state.long_mode();
  role.has_4_byte_entries = mode == PagingMode::k32Bit;
  role.large_off = role.has_4_byte_entries && (state.cr4 & kCr4Pse) == 0;
  role.no_execute = !role.has_4_byte_entries && state.no_execute();
  role.write_protect = state.write_protect();
  if (!role.write_protect) {
    // Pages of user mode that a supervisor has written would no longer be judged as such.
    role.smep = (state.cr4 & kCr4Smep) != 0;
    role.smap_without_wp = (JudgingBits(state) & ~(kCr4Smep | kCr4Cet)) != 0;
  }
  return role;
}

// Zeroes where there is no memory: none is present then.
std::array<std::uint64_t, 4> LoadPdptes(const GuestMemory& memory, Gpa root) {
  std::array<std::uint64_t, 4> pdptes = {};
  const MemorySlot* slot = memory.Find(GfnOf(root));
  if (slot == nullptr) return pdptes;
  for (unsigned i = 0; i < pdptes.size(); ++i) {
    pdptes[i] = LoadEntry(slot->HostOf(root) + sizeof(pdptes[i]) * i, sizeof(pdptes[i]));
  }
  return pdptes;
}

}  // namespace

std::uint64_t JudgingBits(const PagingState& state) {
  if (!state.paging()) return 0;
  const std::uint64_t keys = state.long_mode() ? kCr4Pke | kCr4Pks : 0;
  return state.cr4 & (kCr4Smep | kCr4Smap | kCr4Cet | keys);
}

RootKey RootKeyFor(const PagingState& state) {
  RootKey key = {.mode = state.mode(), .role = RoleFor(state)};
  switch (key.mode) {
    case PagingMode::kNone:
      break;
    case PagingMode::k32Bit:
      key.bases[0] = state.cr3 & 0xffff'f000;
      break;
    case PagingMode::kPae:
      key.bases = state.pdptes;
      break;
    case PagingMode::k4Level:
    case PagingMode::k5Level:
      key.bases[0] = state.cr3 & kLegacy64Layout.address;
      break;
  }
  return key;
}

RootKey RootKeyFor(const NestedPaging& nested, std::uint8_t format, const GuestMemory& memory) {
  RootKey key = {.mode = PagingMode::k4Level,
                 .role = {.level = nested.level,
                          .has_4_byte_entries = nested.format.layout.entry_bytes == 4,
                          .accessed_dirty_off = !nested.format.accessed_dirty,
                          .guest_mode = true,
                          .nested_format = format}};
  if (key.role.has_4_byte_entries) {
    // Four quarters of a directory stand under a root of ours.
    key.mode = PagingMode::k32Bit;
    key.role.level = Level::kPdpt;
  } else if (nested.root_has_pdptes) {
    key.mode = PagingMode::kPae;
  } else if (nested.level == Level::kPml5) {
    key.mode = PagingMode::k5Level;
  }
  if (key.mode == PagingMode::kPae) {
    key.bases = LoadPdptes(memory, nested.root);
  } else {
    key.bases[0] = nested.root.bits();
  }
  return key;
}

}  // namespace pagesaw
