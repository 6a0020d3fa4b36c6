module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>
module pagesaw.mmu.direct_mmu;

import pagesaw.mmu.attribute_limit;
import pagesaw.mmu.page_size;
import pagesaw.mmu.spte;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

constexpr unsigned kTriesForRoom = 4;

alignas(kPageBytes) constexpr std::uint64_t kEmptyTable[kSptesPerPage] = {};

ShadowRole RootRole(const PageFormat& format, Level level) {
  const bool split = format.layout.splits_execute() || format.user_pages_refuse_supervisor_fetch;
  const Rights access = format.user_pages_refuse_supervisor_fetch
                            ? Rights::All().Without(Rights::kUser)
                            : Rights::All();
  return {.level = level, .direct = true, .access = access, .smep = split};
}

}  // namespace

std::unique_ptr<DirectMmu> DirectMmu::Make(ShadowPages& pages, const GuestMemory& memory,
                                           const PageWalker& cpu_walk, Level root_level) {
  const ShadowRole role = RootRole(pages.codec().format(), root_level);
  ShadowPages::Lock lock = pages.Acquire();
  ShadowPage* root = pages.AcquireRoot(role);
  if (root == nullptr) return nullptr;
  lock.unlock();
  return std::unique_ptr<DirectMmu>(new DirectMmu(pages, memory, cpu_walk, role, root));
}

DirectMmu::DirectMmu(ShadowPages& pages, const GuestMemory& memory, const PageWalker& walker,
                     const ShadowRole& role, ShadowPage* root)
    : pages_(pages),
      memory_(memory),
      walker_(walker),
      role_(role),
      root_(root),
      root_generation_(pages.tree_generation()) {}

DirectMmu::~DirectMmu() {
  ShadowPages::Lock lock = pages_.Acquire();
  if (root_ != nullptr) pages_.ReleaseRoot(lock, root_);
}

// Takes the root of the trees as they are now.
void DirectMmu::Reload(ShadowPages::Lock& lock) {
  if (root_ != nullptr && !pages_.IsObsolete(*root_)) return;
  if (root_ != nullptr) pages_.ReleaseRoot(lock, std::exchange(root_, nullptr));
  for (unsigned tries = 0; tries < kTriesForRoom && !pages_.EnsureRoom(lock); ++tries) {
  }
  root_ = pages_.AcquireRoot(role_);
}

OutputAddress DirectMmu::RootTable() const {
  if (root_ != nullptr) return OutputAddress(root_->table().bits());
  return OutputAddress(reinterpret_cast<std::uintptr_t>(kEmptyTable));
}

// Where the root cannot be had, an empty table makes the next access fault, which then says so.
ShadowRoot DirectMmu::Root() {
  ShadowPages::Lock lock = pages_.Acquire();
  root_generation_ = pages_.tree_generation();
  Reload(lock);
  return {.table = Hpa(RootTable().bits()), .level = role_.level};
}

bool DirectMmu::Reaches(Gpa gpa) const { return gpa.bits() >> LevelShift(Above(role_.level)) == 0; }

FaultResolution DirectMmu::HandleFault(const MmuFault& fault) {
  const Gpa gpa(fault.address.bits());
  FaultResolution resolution = {.gpa = gpa};
  std::optional<FaultOutcome> known;
  if (Reaches(gpa)) known = ResolveUnlocked(gpa, fault.access);
  if (known) {
    resolution.outcome = *known;
  } else {
    ShadowPages::Lock lock = pages_.Acquire();
    resolution.outcome = Map(lock, gpa, fault, resolution);
    pages_.Commit(lock);
  }
  pages_.counters().Count(resolution.outcome);
  return resolution;
}

// What the SPTEs as they are say already, or do once they have back what was taken from them to see
// this access. Without the lock a table may be freed under us and become another page's: a leaf
// found there at worst makes the guest fault again, and an MMIO SPTE says whose it is.
std::optional<FaultOutcome> DirectMmu::ResolveUnlocked(Gpa gpa, Access access) const {
  if (roots_obsolete() || root_ == nullptr) return std::nullopt;
  const ShadowPages::SptePlace place = pages_.FindUnlocked(*root_, InputOf(gpa));
  const std::optional<MmioSpte> mmio = pages_.codec().DecodeMmio(ShadowPages::Load(place.spte));
  if (!mmio) return pages_.RegrantUnlocked(place, access);
  const bool valid = mmio->gfn == GfnOf(gpa) && mmio->generation == pages_.generation();
  return valid ? std::optional(FaultOutcome::kMmio) : std::nullopt;
}

// The slots and the attributes are looked at under the MMU lock: whoever changes them zaps
// afterwards, under that lock, what was made from the old ones.
FaultOutcome DirectMmu::Map(ShadowPages::Lock& lock, Gpa gpa, const MmuFault& fault,
                            FaultResolution& resolution) {
  if (!pages_.EnsureRoom(lock)) return FaultOutcome::kRetry;
  Reload(lock);
  if (root_ == nullptr) return FaultOutcome::kOutOfMemory;
  const MemoryAttribute attribute = pages_.AttributeOf(GfnOf(gpa));
  if (attribute.Refuses(fault.access)) {
    resolution.violation = {
        .gpa = gpa, .access = fault.access, .stage = fault.stage, .attribute = attribute};
    if (attribute.policy != ViolationPolicy::kLog) return FaultOutcome::kAttributeViolation;
  }
  const MemorySlot* slot = memory_.Find(GfnOf(gpa));
  if (slot == nullptr) {
    // The mark of a device grants everything.
    return Reaches(gpa) && attribute.unrestricted() ? MarkMmio(gpa) : FaultOutcome::kMmio;
  }
  if (!Reaches(gpa) || (slot->read_only && fault.access.is_write())) return FaultOutcome::kMmio;
  const FaultOutcome outcome = MapMemory(*slot, gpa, fault.access, attribute);
  if (outcome == FaultOutcome::kWriteProtected) {
    resolution.host = Hpa(reinterpret_cast<std::uintptr_t>(slot->HostOf(gpa)));
  }
  return outcome;
}

// The table at `level` for `gpa`, linked from the root; null if there is no memory for it. A larger
// leaf in the way goes.
ShadowPage* DirectMmu::Descend(Gpa gpa, Level level) {
  const SpteCodec& codec = pages_.codec();
  ShadowPage* page = root_;
  while (page->role.level != level) {
    const unsigned index = IndexAt(gpa, page->role.level);
    const std::uint64_t spte = ShadowPages::Load(&page->sptes[index]);
    if (codec.IsLink(spte, page->role.level)) {
      page = ShadowPages::PageAt(codec.Target(spte));
      continue;
    }
    ShadowRole role = role_;
    role.level = Below(page->role.level);
    ShadowPage* child = pages_.Make(GfnOf(AlignDown(gpa, page->role.level)), role);
    if (child == nullptr) return nullptr;
    pages_.Link(*page, index, *child);
    page = child;
  }
  return page;
}

FaultOutcome DirectMmu::MapMemory(const MemorySlot& slot, Gpa gpa, Access access,
                                  const MemoryAttribute& attribute) {
  const SpteCodec& codec = pages_.codec();
  Level level = LargestPage(codec, slot, gpa, role_.level);
  while (!pages_.LargePageAllowed(GfnOf(AlignDown(gpa, level)), level)) level = Below(level);
  ShadowPage* page = Descend(gpa, level);
  if (page == nullptr) return FaultOutcome::kOutOfMemory;
  const unsigned index = IndexAt(gpa, level);
  const std::uint64_t old = ShadowPages::Load(&page->sptes[index]);
  const bool mapped = codec.IsLiveLeaf(old, level);
  // Another vCPU may have been here first.
  if (mapped && codec.Allows(old, access)) return FaultOutcome::kSpurious;
  const Rights limit = LeafLimit(codec, attribute, access, mapped ? old : 0);
  // A table for nested paging may stand there: its writes are to be seen.
  const bool may_write =
      limit.write() && pages_.MayBeWritten(GfnOf(gpa), access.is_write() && level == Level::kPt);
  const auto host = reinterpret_cast<std::uintptr_t>(slot.HostOf(AlignDown(gpa, level)));
  LeafSpte leaf = {.page = Hpa(host),
                   .level = level,
                   .rights = limit,
                   .host_writable = !slot.read_only,
                   .mmu_writable = may_write};
  pages_.PrepareForLog(leaf, GfnOf(gpa), access.is_write());
  const std::uint64_t spte = codec.Leaf(leaf);
  if (spte != old) pages_.Set(*page, index, spte);
  return access.is_write() && !may_write ? FaultOutcome::kWriteProtected : FaultOutcome::kFixed;
}

FaultOutcome DirectMmu::MarkMmio(Gpa gpa) {
  const std::uint64_t marker =
      pages_.codec().Mmio({.gfn = GfnOf(gpa), .generation = pages_.generation()});
  if (marker == 0) return FaultOutcome::kMmio;
  // Without room for the marker the next access comes here again.
  if (ShadowPage* page = Descend(gpa, Level::kPt)) {
    pages_.Set(*page, IndexAt(gpa, Level::kPt), marker);
  }
  return FaultOutcome::kMmio;
}

WalkResult DirectMmu::Inspect(InputAddress address, Access access, WalkTrace* trace) const {
  HostTableSpace<false> space;
  const ShadowPages::Lock lock = pages_.Acquire();
  const WalkRequest request = {
      .table = RootTable(), .level = role_.level, .address = address, .access = access};
  return WalkTables<AnyLayout>(format(), request, space, trace);
}

std::vector<RootInfo> DirectMmu::Roots() const {
  const ShadowPages::Lock lock = pages_.Acquire();
  return {{.root = {.table = Hpa(RootTable().bits()), .level = role_.level},
           .role = role_,
           .current = true}};
}

}  // namespace pagesaw
