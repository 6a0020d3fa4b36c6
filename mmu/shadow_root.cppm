// What the root of shadow pages is made from: two roots with the same key are the same tree. A key
// comes from control registers, where linear addresses are translated, or from nested paging.
module;
#include <array>
#include <cstdint>
export module pagesaw.mmu.shadow_root;

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.nested_paging;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;

export namespace pagesaw {

struct RootKey {
  // How the root is indexed. With nested paging, by what kind of tables they are.
  PagingMode mode = PagingMode::kNone;
  ShadowRole role = {};
  // The root table, or the PDPTEs of PAE paging.
  std::array<std::uint64_t, 4> bases = {};

  bool operator==(const RootKey&) const = default;

  // Whether the root stands for registers or PDPTEs, and is its vCPU's own.
  constexpr bool is_glue() const { return mode == PagingMode::k32Bit || mode == PagingMode::kPae; }
};

// The root of a processor that pages as `state` says.
RootKey RootKeyFor(const PagingState& state);
// That of a guest's guest, whose tables have number `format` (GuestTables::NumberOf). PDPTEs are
// read from `memory` as they are now.
RootKey RootKeyFor(const NestedPaging& nested, std::uint8_t format, const GuestMemory& memory);

// The CR4 bits by which a processor in `state` judges translations.
std::uint64_t JudgingBits(const PagingState& state);

}  // namespace pagesaw
