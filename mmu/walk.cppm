// The walk of a tree of page tables: one loop over levels for every format and every place that
// tables can lie in. A `TableSpace` says where entries are and what may be done to them.
module;
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
export module pagesaw.mmu.walk;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.mmu.memory_attributes;

export namespace pagesaw {

// One entry of a table, found in this process.
struct TableEntry {
  std::byte* host = nullptr;  // null: the entry cannot be read, `refusal` says why
  WalkFault::Kind refusal = WalkFault::Kind::kNoMemory;  // kNoMemory or kSecondStage
};

// What a space says to the wish to set A or D in an entry.
enum class EntryUpdate : std::uint8_t {
  kAllowed,
  kSkipped,  // read-only memory: the walk goes on without
  kRefused,  // the second stage refuses the write: the walk ends with kSecondStage
};

// Where a walk finds its tables. The space keeps whatever it wants to tell about a refusal.
template <typename S>
concept TableSpace = requires(S& space, OutputAddress at, Access access, Translation& translation) {
  // Whether walks set A and D. False for a walk that only looks.
  { S::kUpdates } -> std::convertible_to<bool>;
  // The entry at `at`, for reading.
  { space.Find(at) } -> std::same_as<TableEntry>;
  // Whether A or D may be set in the entry at `at`, which Find found.
  { space.PrepareUpdate(at) } -> std::same_as<EntryUpdate>;
  // The last stage, asked after the rights have been judged and before A and D are set: false if
  // the output address itself is refused (the walk ends with kSecondStage).
  { space.Finish(translation, access) } -> std::same_as<bool>;
};

// What to walk.
struct WalkRequest {
  OutputAddress table = {};  // the root table
  Level level = Level::kPml4;
  InputAddress address = {};
  Access access = Access::Read(Privilege::kSupervisor);
  std::uint32_t pkru = 0;  // judge user pages and supervisor pages if the format has keys
  std::uint32_t pkrs = 0;
  // The AND of the entries that lead to `table`, execute-disable inverted. All of them have A.
  std::uint64_t granted = ~std::uint64_t{0};
};

// A space that remembers tables below the root, as paging-structure caches do.
template <typename S>
concept RememberingSpace = TableSpace<S> && requires(S& space, WalkRequest& request, Level level,
                                                     OutputAddress table, std::uint64_t granted) {
  // Makes `request` one that begins at a lower table; false if none is known.
  { space.Resume(request) } -> std::same_as<bool>;
  // `table`, of `level`, may be remembered, with what leads to it.
  space.Remember(level, table, granted);
};

// A layout known when the walk is compiled: the fast one.
template <EntryLayout kLayout>
struct FixedLayout {
  static constexpr EntryLayout kValue = kLayout;
  static constexpr const EntryLayout& Of(const PageFormat&) { return kValue; }
};

// The layout of whatever format the walk is given.
struct AnyLayout {
  static constexpr const EntryLayout& Of(const PageFormat& format) { return format.layout; }
};

// Tables in guest memory that are addressed by guest physical addresses as they stand.
template <bool kUpdating>
class GuestTableSpace {
 public:
  static constexpr bool kUpdates = kUpdating;

  // What `attributes` (may be null) refuse ends the walk with kSecondStage.
  explicit GuestTableSpace(const GuestMemory& memory, const MemoryAttributes* attributes = nullptr)
      : memory_(&memory),
        attributes_(attributes != nullptr && attributes->any() ? attributes : nullptr) {}

  inline TableEntry Find(OutputAddress at) {
    const Gfn gfn = GfnOf(GpaOf(at));
    if (attributes_ != nullptr && Refused(at, Access::Read(Privilege::kSupervisor))) {
      return {.refusal = WalkFault::Kind::kSecondStage};
    }
    if (slot_ == nullptr || !slot_->Contains(gfn)) slot_ = memory_->Find(gfn);
    if (slot_ == nullptr) return {};
    return {.host = slot_->HostOf(GpaOf(at))};
  }
  inline EntryUpdate PrepareUpdate(OutputAddress at) {
    if (attributes_ != nullptr && Refused(at, Access::Write(Privilege::kSupervisor))) {
      return EntryUpdate::kRefused;
    }
    const MemorySlot* slot = memory_->Find(GfnOf(GpaOf(at)));
    return slot != nullptr && !slot->read_only ? EntryUpdate::kAllowed : EntryUpdate::kSkipped;
  }
  inline bool Finish(Translation&, Access) const { return true; }

  // The first table access that an attribute has refused, or would have but for its policy.
  const std::optional<AttributeViolation>& violation() const { return violation_; }

 private:
  [[gnu::cold]] bool Refused(OutputAddress at, Access access) {
    const MemoryAttribute attribute = attributes_->Of(GfnOf(GpaOf(at)));
    if (!attribute.Refuses(access)) return false;
    const bool logs = attribute.policy == ViolationPolicy::kLog;
    if (!violation_ || !logs) violation_ = {GpaOf(at), access, Stage::kTable, attribute};
    return !logs;
  }

  const GuestMemory* memory_;
  const MemoryAttributes* attributes_;
  std::optional<AttributeViolation> violation_;
  const MemorySlot* slot_ = nullptr;  // of the last entry: a walk's tables are often neighbours
};

// Tables in this process's own memory, addressed by where they are: those made of SPTEs.
template <bool kUpdating>
struct HostTableSpace {
  static constexpr bool kUpdates = kUpdating;

  inline TableEntry Find(OutputAddress at) const {
    return {.host = reinterpret_cast<std::byte*>(at.bits())};
  }
  inline EntryUpdate PrepareUpdate(OutputAddress) const { return EntryUpdate::kAllowed; }
  inline bool Finish(Translation&, Access) const { return true; }
};

// The entry at `host`, which others may be changing.
inline std::uint64_t LoadEntry(std::byte* host, unsigned entry_bytes) {
  if (entry_bytes == 4) {
    return std::atomic_ref(*reinterpret_cast<std::uint32_t*>(host)).load(std::memory_order_acquire);
  }
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(host)).load(std::memory_order_acquire);
}

}  // namespace pagesaw

namespace pagesaw::detail {

// Replaces `expected` at `host`; false if the entry is no longer `expected`.
inline bool ReplaceEntry(std::byte* host, unsigned entry_bytes, std::uint64_t expected,
                         std::uint64_t desired) {
  if (entry_bytes == 4) {
    auto expected4 = static_cast<std::uint32_t>(expected);
    return std::atomic_ref(*reinterpret_cast<std::uint32_t*>(host))
        .compare_exchange_strong(expected4, static_cast<std::uint32_t>(desired));
  }
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(host))
      .compare_exchange_strong(expected, desired);
}

// Address bits 39:32 of a 4 MiB page stand in bits 20:13 of its entry.
// [intel/vol3] "32-Bit Paging"
inline std::uint64_t Pse36Bits(std::uint64_t entry) { return (entry & 0x1f'e000) << 19; }

// Walks once. `Result` is empty in `done` if an entry changed under the walk.
template <typename Layout, TableSpace Space>
class Walk {
 public:
  inline Walk(const PageFormat& format, const WalkRequest& request, Space& space, WalkTrace* trace)
      : format_(format), request_(request), space_(space), trace_(trace) {}

  // `last_try`: an entry that changes meanwhile keeps its A and D as they are.
  inline WalkResult Run(bool last_try, bool& lost_race);

 private:
  // The entries met, root first. Left as it is until an entry is met.
  struct Path {
    std::byte* host[kMaxLevels];
    std::uint64_t at[kMaxLevels];
    std::uint64_t entry[kMaxLevels];
    unsigned depth = 0;
  };

  WalkResult UpdateAccessedDirty(const Path& path, std::uint64_t dirty, Translation& translation,
                                 bool last_try, bool& lost_race);

  inline const EntryLayout& layout() const { return Layout::Of(format_); }

  [[gnu::cold]] WalkFault Fault(WalkFault::Kind kind, Level level) const {
    std::uint32_t code = request_.access.code_bits();
    if (!format_.reports_fetch) code &= ~PageFaultCode::kFetch;
    if (kind == WalkFault::Kind::kMalformed) {
      code |= PageFaultCode::kPresent | PageFaultCode::kReserved;
    } else if (kind == WalkFault::Kind::kRights) {
      code |= PageFaultCode::kPresent;
    } else if (kind == WalkFault::Kind::kProtectionKey) {
      code |= PageFaultCode::kPresent | PageFaultCode::kProtectionKey;
    }
    return {.kind = kind,
            .level = level,
            .code = PageFaultCode(code),
            .address = request_.address,
            .rights = kind == WalkFault::Kind::kNotPresent ? Rights() : rights()};
  }
  [[gnu::cold]] WalkFault TableFault(WalkFault::Kind kind, Level level, OutputAddress at) const {
    WalkFault fault = Fault(kind, level);
    fault.stage = Stage::kTable;
    fault.stage_address = at;
    return fault;
  }
  inline Rights rights() const { return DecodeRights(layout(), granted_); }

  [[gnu::cold]] void Note(Level level, OutputAddress at, std::uint64_t entry) const {
    const bool present = (entry & layout().present) != 0;
    trace_->Add({.level = level,
                 .entry_address = at,
                 .entry = entry,
                 .rights = present ? OwnRights(entry, level) : Rights(),
                 .present = present,
                 .leaf = present && format_.IsLeaf(entry, level),
                 .malformed = present && format_.IsMalformed(entry, level)});
  }

  Rights OwnRights(std::uint64_t entry, Level level) const {
    const bool shadow_stack = format_.IsLeaf(entry, level) && format_.IsShadowStackLeaf(entry);
    return format_.RightsOf(entry) | Rights(shadow_stack ? Rights::kShadowStack : 0);
  }

  // Whether every entry of `path` above its leaf grants writing.
  [[gnu::cold]] bool WritableAbove(const Path& path) const {
    std::uint64_t granted = request_.granted;
    for (unsigned i = 0; i + 1 < path.depth; ++i) granted &= path.entry[i];
    return (granted & layout().write) != 0;
  }

  inline bool KeyRefuses(std::uint64_t leaf, Rights rights) const {
    return format_.ProtectionKeyFault(leaf, rights, request_.access, request_.pkru, request_.pkrs);
  }

  inline OutputAddress LeafAddress(std::uint64_t leaf, Level level) const {
    const EntryLayout& l = layout();
    const std::uint64_t offset_mask = LevelBytes(level, l.index_bits) - 1;
    std::uint64_t page = leaf & l.address & ~offset_mask;
    if (l.entry_bytes == 4 && level != Level::kPt) page |= Pse36Bits(leaf);
    return OutputAddress(page | (request_.address.bits() & offset_mask));
  }

  const PageFormat& format_;
  const WalkRequest& request_;
  Space& space_;
  WalkTrace* trace_;
  std::uint64_t granted_ = request_.granted;  // AND of the entries met, XD inverted
};

template <typename Layout, TableSpace Space>
inline WalkResult Walk<Layout, Space>::Run(bool last_try, bool& lost_race) {
  using Kind = WalkFault::Kind;
  const EntryLayout& l = layout();
  Path path;
  std::uint64_t common = ~std::uint64_t{0};
  OutputAddress table = request_.table;
  Level level = request_.level;
  std::uint64_t entry = 0;

  // A physical address that the tree cannot reach is not mapped, rather than mapped again.
  if (format_.second_stage &&
      request_.address.bits() >> (LevelShift(level, l.index_bits) + l.index_bits) != 0) {
    return Fault(Kind::kNotPresent, level);
  }
  for (;; level = Below(level)) {
    const unsigned index = IndexAt(request_.address, level, l.index_bits);
    const OutputAddress at(table.bits() + std::uint64_t{index} * l.entry_bytes);
    const TableEntry found = space_.Find(at);
    if (found.host == nullptr) return TableFault(found.refusal, level, at);
    entry = LoadEntry(found.host, l.entry_bytes);
    if (trace_ != nullptr) Note(level, at, entry);
    if ((entry & l.present) == 0) return Fault(Kind::kNotPresent, level);
    granted_ &= entry ^ l.no_execute;
    if (format_.IsMalformed(entry, level)) return Fault(Kind::kMalformed, level);
    path.host[path.depth] = found.host;
    path.at[path.depth] = at.bits();
    path.entry[path.depth++] = entry;
    common &= entry;
    if (level == Level::kPt || (entry & l.large) != 0) break;
    table = OutputAddress(entry & l.address);
    if constexpr (RememberingSpace<Space>) {
      const bool accessed = (common & l.accessed) == l.accessed || !format_.accessed_dirty;
      if (accessed && l.index_bits == 9) space_.Remember(Below(level), table, granted_);
    }
  }

  Translation translation = {LeafAddress(entry, level), level, rights(), entry};
  if (format_.IsShadowStackLeaf(entry) && WritableAbove(path)) {
    translation.rights = translation.rights | Rights(Rights::kShadowStack);
  }
  if (format_.protection_key_mask != 0 && KeyRefuses(entry, translation.rights)) {
    return Fault(Kind::kProtectionKey, level);
  }
  if (format_.PermissionFault(translation.rights, request_.access)) {
    WalkFault fault = Fault(Kind::kRights, level);
    fault.rights = translation.rights;
    return fault;
  }
  if (!space_.Finish(translation, request_.access)) {
    WalkFault fault = Fault(Kind::kSecondStage, level);
    fault.stage_address = translation.output;
    return fault;
  }

  if constexpr (Space::kUpdates) {
    const std::uint64_t dirty = request_.access.is_write() ? l.dirty : 0;
    const bool complete = (common & l.accessed) == l.accessed && (entry & dirty) == dirty;
    if (!complete && format_.accessed_dirty) {
      return UpdateAccessedDirty(path, dirty, translation, last_try, lost_race);
    }
  }
  return translation;
}

// Sets A from the root down, and D in the leaf if `dirty` says so.
template <typename Layout, TableSpace Space>
WalkResult Walk<Layout, Space>::UpdateAccessedDirty(const Path& path, std::uint64_t dirty,
                                                    Translation& translation, bool last_try,
                                                    bool& lost_race) {
  const EntryLayout& l = layout();
  for (unsigned i = 0; i < path.depth; ++i) {
    const bool leaf = i + 1 == path.depth;
    const std::uint64_t wanted = l.accessed | (leaf ? dirty : 0);
    if ((wanted & ~path.entry[i]) == 0) continue;
    const OutputAddress at(path.at[i]);
    switch (space_.PrepareUpdate(at)) {
      case EntryUpdate::kSkipped:
        continue;
      case EntryUpdate::kRefused:
        return TableFault(WalkFault::Kind::kSecondStage,
                          static_cast<Level>(Number(request_.level) - i), at);
      case EntryUpdate::kAllowed:
        break;
    }
    if (ReplaceEntry(path.host[i], l.entry_bytes, path.entry[i], path.entry[i] | wanted)) {
      if (leaf) translation.leaf |= wanted;
    } else if (!last_try) {
      lost_race = true;
      return translation;
    }
  }
  return translation;
}

}  // namespace pagesaw::detail

export namespace pagesaw {

// Walks the tables that `request` names, whose entries look as `format` says, for one access.
// Priority of what is found: from the root down the space's refusal of an entry, not present,
// malformed; then the protection key and the rights; then the space's refusal of the output.
// A walk that loses an entry to somebody else's change while setting A or D starts again. A guest
// that never stops changing an entry makes the walk leave that entry's bits alone in the end.
// [intel/vol3] "Paging"; [amd/vol2] "Page Translation and Protection"
template <typename Layout, TableSpace Space>
inline WalkResult WalkTables(const PageFormat& format, const WalkRequest& request, Space& space,
                             WalkTrace* trace = nullptr) {
  constexpr unsigned kTries = 64;
  for (unsigned tries = 1;; ++tries) {
    if (trace != nullptr) trace->Clear();
    bool lost_race = false;
    const WalkResult result =
        detail::Walk<Layout, Space>(format, request, space, trace).Run(tries == kTries, lost_race);
    if (!lost_race) return result;
  }
}

// The same walk, from the lowest table that the space remembers. Only what such a walk finds
// counts: what it refuses, an upper entry may have been changed to grant meanwhile.
template <typename Layout, RememberingSpace Space>
inline WalkResult WalkFromRemembered(const PageFormat& format, const WalkRequest& request,
                                     Space& space) {
  WalkRequest rest = request;
  for (bool resumed = space.Resume(rest);; resumed = false) {
    const WalkResult result = WalkTables<Layout>(format, rest, space);
    if (result || !resumed) return result;
    rest = request;
  }
}

}  // namespace pagesaw
