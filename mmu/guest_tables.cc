module;
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>
module pagesaw.mmu.guest_tables;

import pagesaw.mmu.legacy_format;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

constexpr unsigned kSpteCount = 512;

// The index of the guest entry behind SPTE `index`. Two SPTEs of 2 MiB stand for one 4-byte entry
// of 4 MiB; a table of 4-byte entries has several shadow pages, one for each quadrant.
unsigned GuestIndex(const ShadowRole& role, unsigned index) {
  if (!role.has_4_byte_entries) return index;
  if (role.level == Level::kPt) return role.quadrant * kSpteCount + index;
  return role.quadrant * (kSpteCount / 2) + index / 2;
}

// [intel/vol3] "32-Bit Paging": bits 20:13 of a 4 MiB page's entry are address bits 39:32.
Gfn LeafGfn(const PageFormat& format, const ShadowRole& role, std::uint64_t entry, unsigned index) {
  const EntryLayout& layout = format.layout;
  const std::uint64_t size = LevelBytes(role.level, layout.index_bits);
  std::uint64_t page = entry & layout.address & ~(size - 1);
  if (role.has_4_byte_entries && role.level != Level::kPt) {
    page |= (entry & 0x1f'e000) << 19;
    page |= (index & 1) * LevelBytes(Level::kPd);
  }
  return GfnOf(Gpa(page));
}

}  // namespace

GuestTables::GuestTables(const GuestMemory& memory, const PagingFeatures& features,
                         const MemoryAttributes* attributes)
    : memory_(memory), attributes_(attributes) {
  for (bool no_execute : {false, true}) {
    const auto make = [&](PagingMode mode, bool pse) {
      return MakeLegacyFormat({.mode = mode,
                               .features = features,
                               .page_size_extensions = pse,
                               .permissions = {.no_execute = no_execute},
                               .shadow_stacks = true});
    };
    formats_[no_execute] = {make(PagingMode::k32Bit, true), make(PagingMode::k32Bit, false),
                            make(PagingMode::kPae, true), make(PagingMode::k5Level, true)};
  }
}

std::uint8_t GuestTables::NumberOf(const PageFormat& format) const {
  const auto found = std::find_if(nested_formats_.begin(), nested_formats_.end(),
                                  [&](const auto& known) { return *known == format; });
  const auto index = static_cast<std::size_t>(found - nested_formats_.begin());
  if (index == kMaxNestedFormats) return 0;
  if (found == nested_formats_.end()) {
    nested_formats_.push_back(std::make_unique<const PageFormat>(format));
  }
  return static_cast<std::uint8_t>(index + 1);
}

const PageFormat& GuestTables::FormatOf(const ShadowRole& role) const {
  if (role.nested_format != 0) return *nested_formats_[role.nested_format - 1u];
  const auto& formats = formats_[role.no_execute];
  if (role.has_4_byte_entries) return formats[role.large_off ? 1 : 0];
  return formats[role.long_mode ? 3 : 2];
}

GuestTables::Table GuestTables::Open(Gfn gfn, const ShadowRole& role) const {
  Table table;
  table.format_ = &FormatOf(role);
  table.role_ = &role;
  if (attributes_ != nullptr && attributes_->any()) {
    const MemoryAttribute attribute = attributes_->Of(gfn);
    if (!attribute.rights.read() && attribute.policy != ViolationPolicy::kLog) return table;
  }
  if (const MemorySlot* slot = memory_.Find(gfn)) {
    table.host_ = slot->HostOf(GpaOf(gfn));
    table.read_only_ = slot->read_only;
  }
  return table;
}

[[gnu::always_inline]] inline std::optional<ShadowedEntry> GuestTables::Table::ReadInline(
    unsigned index) const {
  if (host_ == nullptr) return std::nullopt;
  const PageFormat& format = *format_;
  const ShadowRole& role = *role_;
  const EntryLayout& layout = format.layout;
  std::byte* host = host_ + std::size_t{GuestIndex(role, index)} * layout.entry_bytes;
  const std::uint64_t entry = LoadEntry(host, layout.entry_bytes);
  if (!format.IsPresent(entry) || format.IsMalformed(entry, role.level)) return std::nullopt;
  // Without A no SPTE may stand for it: the next use has to be seen. Tables in read-only memory
  // never get it.
  if ((entry & layout.accessed) == 0 && !read_only_ && format.accessed_dirty) return std::nullopt;
  const bool leaf = format.IsLeaf(entry, role.level);
  if (!leaf) {
    return ShadowedEntry{.gfn = GfnOf(Gpa(entry & layout.address)),
                         .rights = format.RightsOf(entry)};
  }
  const bool dirty = (entry & layout.dirty) != 0 || read_only_ || !format.accessed_dirty;
  const Rights shadow_stack(format.IsShadowStackLeaf(entry) ? Rights::kShadowStack : 0);
  const std::uint64_t key = role.long_mode ? entry >> kProtectionKeyShift & 15 : 0;
  return ShadowedEntry{.gfn = LeafGfn(format, role, entry, index),
                       .rights = format.RightsOf(entry) | shadow_stack,
                       .leaf = true,
                       .dirty = dirty,
                       .protection_key = static_cast<std::uint8_t>(key)};
}

std::optional<ShadowedEntry> GuestTables::Table::Read(unsigned index) const {
  return ReadInline(index);
}

bool GuestTables::Table::Backs(unsigned index, const ShadowedEntry& entry) const {
  const std::optional<ShadowedEntry> now = ReadInline(index);
  return now && entry.StillHolds(*now);
}

GuestTables::Range GuestTables::Covering(const ShadowRole& role, std::uint64_t offset,
                                         std::uint64_t bytes) {
  const std::uint64_t entry_bytes = role.has_4_byte_entries ? 4 : 8;
  std::uint64_t first = offset / entry_bytes;
  std::uint64_t end = (offset + bytes + entry_bytes - 1) / entry_bytes;
  if (role.has_4_byte_entries) {
    const std::uint64_t per_page = role.level == Level::kPt ? kSpteCount : kSpteCount / 2;
    const std::uint64_t start = role.quadrant * per_page;
    first = std::clamp(first, start, start + per_page) - start;
    end = std::clamp(end, start, start + per_page) - start;
    if (role.level != Level::kPt) {
      first *= 2;
      end *= 2;
    }
  }
  return {.first = static_cast<unsigned>(first), .count = static_cast<unsigned>(end - first)};
}

}  // namespace pagesaw
