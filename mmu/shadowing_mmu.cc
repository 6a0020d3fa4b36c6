module;
#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>
module pagesaw.mmu.shadowing_mmu;

import pagesaw.mmu.attribute_limit;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.page_size;
import pagesaw.mmu.second_stage_rights;
import pagesaw.mmu.spte;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

// Addresses of this process have fewer bits, so that a reserved one is left to mark MMIO.
constexpr unsigned kSptePhysicalBits = 51;
constexpr unsigned kTries = 4;

enum FormatBit : unsigned { kWp = 1, kSmep = 2, kSmap = 4, kPke = 8, kPks = 16, kCet = 32 };

unsigned FormatIndex(const PagingState& state) {
  const std::uint64_t judging = JudgingBits(state);
  return (state.write_protect() || !state.paging() ? kWp : 0) |
         ((judging & kCr4Smep) != 0 ? kSmep : 0) | ((judging & kCr4Smap) != 0 ? kSmap : 0) |
         ((judging & kCr4Pke) != 0 ? kPke : 0) | ((judging & kCr4Pks) != 0 ? kPks : 0) |
         ((judging & kCr4Cet) != 0 ? kCet : 0);
}

// W=0 refuses every write, whatever the guest's WP: an SPTE that may be written by a supervisor
// alone says so. Only what keys refuse depends on it.
PageFormat MakeFormat(unsigned bits) {
  PagingFeatures features;
  features.physical_bits = kSptePhysicalBits;
  return MakeLegacyFormat(
      {.mode = PagingMode::k5Level,
       .features = features,
       .permissions = {.split_execute = (bits & kSmep) != 0, .smap = (bits & kSmap) != 0},
       .keys = {.user_keys = (bits & kPke) != 0,
                .supervisor_keys = (bits & kPks) != 0,
                .write_protect = (bits & kWp) != 0},
       .shadow_stacks = (bits & kCet) != 0});
}

// A page of a tree of our own under a guest's large page, or without guest tables.
ShadowRole DirectRole(Level level, Rights access, bool nested, std::uint8_t protection_key) {
  return {.level = level,
          .direct = true,
          .access = access,
          .guest_mode = nested,
          .protection_key = protection_key};
}

bool IsGlue(const ShadowPage& page) { return !page.shared; }

}  // namespace

PageFormat LinearSpteFormat() { return MakeFormat(kWp); }

std::unique_ptr<ShadowingMmu> ShadowingMmu::Make(ShadowPages& pages, const GuestMemory& memory,
                                                 const GuestTables& tables, PageWalker& walker) {
  const ShadowPages::Lock lock = pages.Acquire();
  ShadowPage* empty = pages.MakePrivateRoot({.level = Level::kPml5});
  if (empty == nullptr) return nullptr;
  std::unique_ptr<ShadowingMmu> mmu(
      new ShadowingMmu(pages, memory, tables, walker, nullptr, empty));
  for (unsigned bits = 0; bits < kFormatCount; ++bits) mmu->formats_.push_back(MakeFormat(bits));
  mmu->format_index_ = FormatIndex(mmu->state_);
  return mmu;
}

std::unique_ptr<ShadowingMmu> ShadowingMmu::MakeNested(ShadowPages& pages,
                                                       const GuestMemory& memory,
                                                       const GuestTables& tables,
                                                       TdpWalker& walker) {
  const ShadowPages::Lock lock = pages.Acquire();
  const ShadowRole role = {.level = Level::kPml5, .guest_mode = true};
  ShadowPage* empty = pages.MakePrivateRoot(role);
  if (empty == nullptr) return nullptr;
  std::unique_ptr<ShadowingMmu> mmu(
      new ShadowingMmu(pages, memory, tables, walker, &walker, empty));
  mmu->formats_.push_back(pages.CodecOf(role).format());
  mmu->nested_.emplace();
  return mmu;
}

ShadowingMmu::ShadowingMmu(ShadowPages& pages, const GuestMemory& memory, const GuestTables& tables,
                           PageWalker& walker, const TdpWalker* tdp_walker, ShadowPage* empty_root)
    : pages_(pages),
      memory_(memory),
      tables_(tables),
      walker_(walker),
      tdp_walker_(tdp_walker),
      empty_root_(empty_root) {}

ShadowingMmu::~ShadowingMmu() {
  ShadowPages::Lock lock = pages_.Acquire();
  Release(lock, current_);
  for (CachedRoot& root : previous_) Release(lock, root);
  pages_.ReleaseRoot(lock, empty_root_);
}

ShadowRole ShadowingMmu::root_role() const {
  const ShadowPages::Lock lock = pages_.Acquire();
  return KeyNow().role;
}

// -- roots

RootKey ShadowingMmu::KeyNow() const {
  return nested_ ? RootKeyFor(*nested_, nested_format_, memory_) : RootKeyFor(state_);
}

// Whether the root table is in memory. What PDPTEs name is looked at when it is used.
bool ShadowingMmu::HasTable(const RootKey& key) const {
  return key.mode == PagingMode::kNone || key.mode == PagingMode::kPae ||
         memory_.Find(GfnOf(Gpa(key.bases[0]))) != nullptr;
}

void ShadowingMmu::Release(ShadowPages::Lock& lock, CachedRoot& root) {
  ShadowPage* page = std::exchange(root, CachedRoot{}).page;
  if (page != nullptr && page != empty_root_) pages_.ReleaseRoot(lock, page);
}

ShadowPage* ShadowingMmu::MakeRoot(ShadowPages::Lock& lock, const RootKey& key) {
  if (!HasTable(key) || !pages_.EnsureRoom(lock)) return empty_root_;
  if (key.role.guest_mode && key.role.nested_format == 0) return empty_root_;
  const bool glue = key.is_glue();
  ShadowPage* page = glue ? pages_.MakePrivateRoot(key.role)
                          : pages_.FindOrMake(GfnOf(Gpa(key.bases[0])), key.role);
  if (page == nullptr) return empty_root_;
  if (!glue) pages_.HoldRoot(*page);
  return page;
}

// Makes the root of `key` the current one, from the cache if it is there.
void ShadowingMmu::SwitchRoot(ShadowPages::Lock& lock, const RootKey& key) {
  for (CachedRoot& root : previous_) {
    if (root.page != nullptr && pages_.IsObsolete(*root.page)) Release(lock, root);
  }
  if (current_.page != nullptr &&
      (pages_.IsObsolete(*current_.page) || current_.page == empty_root_)) {
    Release(lock, current_);
  }
  const std::uint16_t pcid = nested_ ? nested_->tag : state_.pcid();
  if (current_.page != nullptr && current_.key == key && current_.pcid == pcid) return;
  if (current_.trusted_until == kAlways) current_.trusted_until = pages_.fill_clock();
  const auto found = std::find_if(previous_.begin(), previous_.end(), [&](const CachedRoot& root) {
    return root.page != nullptr && root.key == key && root.pcid == pcid;
  });
  if (found != previous_.end()) {
    std::swap(current_, *found);
    std::rotate(previous_.begin(), found, found + 1);
    return;
  }
  if (current_.page != nullptr) {
    Release(lock, previous_.back());
    std::rotate(previous_.begin(), previous_.end() - 1, previous_.end());
    previous_.front() = std::exchange(current_, CachedRoot{});
  }
  // What others have put under it this vCPU cannot have cached.
  current_ = {.page = MakeRoot(lock, key), .key = key, .pcid = pcid};
}

ShadowRoot ShadowingMmu::Root() {
  ShadowPages::Lock lock = pages_.Acquire();
  root_stale_ = false;
  root_epoch_ = pages_.root_epoch();
  SwitchRoot(lock, KeyNow());
  current_.root_register = nested_ ? nested_->root_register : state_.cr3;
  current_.table = nested_ ? nested_->root : Gpa();
  const std::uint64_t since = std::exchange(current_.trusted_until, kAlways);
  if (since != kAlways) pages_.Sync(lock, *current_.page, since);
  last_used_ = pages_.fill_clock();
  pages_.Commit(lock);
  return {.table = current_.page->table(), .level = current_.page->role.level};
}

void ShadowingMmu::PagingChanged(const PagingState& state, const Invalidation& invalidation) {
  const ShadowPages::Lock lock = pages_.Acquire();
  state_ = state;
  format_index_ = FormatIndex(state);
  root_stale_ = true;
  Distrust(invalidation);
}

// What others have made under the root since this vCPU was last seen to use it, it may not have
// been able to cache: who runs when is known no better.
void ShadowingMmu::NestedPagingChanged(const NestedPaging& nested) {
  const ShadowPages::Lock lock = pages_.Acquire();
  if (nested_format_ == 0 || nested.format != nested_->format) {
    nested_format_ = tables_.NumberOf(nested.format);
  }
  nested_ = nested;
  if (current_.trusted_until == kAlways) current_.trusted_until = last_used_;
  root_stale_ = true;
}

void ShadowingMmu::InvalidateNested(const NestedInvalidation& invalidation) {
  using Scope = NestedInvalidation::Scope;
  const ShadowPages::Lock lock = pages_.Acquire();
  const auto distrust = [&](CachedRoot& root) {
    if ((invalidation.scope == Scope::kRoot && root.table != invalidation.root) ||
        (invalidation.scope == Scope::kTag && root.pcid != invalidation.tag)) {
      return;
    }
    root.trusted_until = 0;
  };
  distrust(current_);
  for (CachedRoot& root : previous_) distrust(root);
  root_stale_ = true;
}

void ShadowingMmu::Invalidate(const Invalidation& invalidation) {
  ShadowPages::Lock lock = pages_.Acquire();
  if (invalidation.scope == Invalidation::Scope::kAddress) {
    InvalidateAddress(invalidation.linear);
    pages_.Commit(lock);
  } else {
    Distrust(invalidation);
  }
}

// Roots of what is invalidated are brought up to date before they are used again. Those that are no
// longer known are as if they were new.
void ShadowingMmu::Distrust(const Invalidation& invalidation) {
  using Scope = Invalidation::Scope;
  const auto distrust = [&](CachedRoot& root) {
    const bool one_space = invalidation.scope == Scope::kAddressSpace;
    if (!one_space || root.pcid == invalidation.pcid) root.trusted_until = 0;
  };
  if (invalidation.scope == Scope::kNothing) return;
  distrust(current_);
  for (CachedRoot& root : previous_) distrust(root);
  if (current_.trusted_until == 0) root_stale_ = true;
}

// Under all roots: a global translation is of every PCID, and the other trees are soon searched.
// Only pages that are unsync can have SPTEs that their entries do not back.
void ShadowingMmu::InvalidateAddress(Gva linear) {
  const SpteCodec& codec = CodecHere();
  const auto invalidate = [&](ShadowPage* page) {
    while (page != nullptr) {
      const unsigned index = IndexAt(linear, page->role.level);
      const std::uint64_t spte = ShadowPages::Load(&page->sptes[index]);
      if (codec.IsLink(spte, page->role.level)) {
        page = ShadowPages::PageAt(codec.Target(spte));
        continue;
      }
      if (page->unsync && spte != 0) pages_.Set(*page, index, 0);
      return;
    }
  };
  invalidate(current_.page);
  for (const CachedRoot& root : previous_) invalidate(root.page);
}

// -- faults

// A leaf that lost its write right to a log says what the guest's tables grant without it.
bool ShadowingMmu::RegrantWrite(const MmuFault& fault) {
  if (!fault.access.is_write() || current_.page == nullptr) return false;
  const ShadowPages::SptePlace place = pages_.FindUnlocked(*current_.page, fault.address);
  return pages_.RegrantUnlocked(place, fault.access) == FaultOutcome::kFixed;
}

FaultResolution ShadowingMmu::HandleFault(const MmuFault& fault) {
  FaultResolution resolution;
  if (RegrantWrite(fault)) {
    resolution.outcome = FaultOutcome::kFixed;
    pages_.counters().Count(resolution.outcome);
    return resolution;
  }
  const WalkResult walk = walker_.Walk(fault.address, fault.access);
  resolution.violation = walker_.attribute_violation();
  if (tdp_walker_ != nullptr && tdp_walker_->log_full()) {
    resolution = {
        .outcome = FaultOutcome::kGuestFault, .guest_fault = walk.fault(), .log_full = true};
  } else if (!walk && walk.fault().kind == WalkFault::Kind::kSecondStage) {
    // Not the guest's fault: its tables are not to be read, or not to be written.
    resolution.outcome = FaultOutcome::kAttributeViolation;
    resolution.gpa = GpaOf(walk.fault().stage_address);
  } else if (!walk) {
    resolution = {.outcome = FaultOutcome::kGuestFault, .guest_fault = walk.fault()};
  } else {
    ShadowPages::Lock lock = pages_.Acquire();
    for (unsigned tries = 0; tries < kTries; ++tries) {
      resolution.outcome = Map(lock, fault.address, fault.access, resolution);
      last_used_ = pages_.fill_clock();
      const bool again = resolution.outcome == FaultOutcome::kRetry && pages_.NeedsCommit();
      pages_.Commit(lock);
      if (!again) break;
    }
  }
  pages_.counters().Count(resolution.outcome);
  return resolution;
}

// What the guest's tables say is read again here, under the lock and through the shadow pages,
// whose tables the guest cannot change unseen. The walk before was for faults, A and D.
FaultOutcome ShadowingMmu::Map(ShadowPages::Lock& lock, InputAddress address, Access access,
                               FaultResolution& resolution) {
  if (!pages_.EnsureRoom(lock)) return FaultOutcome::kRetry;
  // PDPTEs in memory, which nobody watches, may have changed.
  const bool other_pdptes = nested_ && nested_->root_has_pdptes && current_.key != KeyNow();
  if (roots_obsolete() || current_.page == empty_root_ || other_pdptes) {
    root_stale_ = true;
    return FaultOutcome::kRetry;
  }
  Path path;
  if (!FindPath(address, path)) return path.failure;
  // A table that is shadowed from now on may have been written through some TLB until now.
  if (pages_.NeedsCommit()) return FaultOutcome::kRetry;
  const bool paging = current_.key.mode != PagingMode::kNone;
  const Access as_walked = nested_ ? JudgedBySecondStage(walker_.format(), access) : access;
  if (paging && walker_.format().PermissionFault(path.rights, as_walked)) {
    return FaultOutcome::kRetry;
  }
  if (access.is_write() && !path.leaf.dirty) return FaultOutcome::kRetry;

  const Gpa gpa(GpaOf(path.leaf.gfn).bits() + OffsetIn(address, path.leaf_level));
  resolution.gpa = gpa;
  const MemoryAttribute attribute = pages_.AttributeOf(GfnOf(gpa));
  const Access judged = JudgedByAttribute(access, path);
  if (attribute.Refuses(judged)) {
    const bool logs = attribute.policy == ViolationPolicy::kLog;
    // A table on the way may have something to be noted; what is refused comes first.
    if (!resolution.violation || !logs) {
      resolution.violation = {.gpa = gpa, .access = judged, .attribute = attribute};
    }
    if (!logs) return FaultOutcome::kAttributeViolation;
  }
  const MemorySlot* slot = memory_.Find(GfnOf(gpa));
  if (slot == nullptr) {
    // The mark of a device grants everything.
    return attribute.unrestricted() ? MarkMmio(path, address, gpa) : FaultOutcome::kMmio;
  }
  // No SPTE can say that a shadow stack may be read and not written.
  if (slot->read_only && (access.is_write() || access.is_shadow_stack())) {
    return FaultOutcome::kMmio;
  }
  const FaultOutcome outcome = MapMemory(path, address, access, *slot, gpa, attribute);
  if (outcome == FaultOutcome::kAttributeViolation) {
    resolution.violation = {.gpa = gpa, .access = access, .attribute = attribute};
  }
  if (outcome == FaultOutcome::kWriteProtected) {
    resolution.host = Hpa(reinterpret_cast<std::uintptr_t>(slot->HostOf(gpa)));
  }
  return outcome;
}

// What entry `index` of the table that `page` shadows says. A root of registers has PDPTEs, or the
// four quarters of a 32-bit directory.
std::optional<ShadowedEntry> ShadowingMmu::ReadEntry(const ShadowPage& page, unsigned index) const {
  if (!IsGlue(page)) return tables_.Read(page.gfn, page.role, index);
  if (index >= current_.key.bases.size()) return std::nullopt;
  const bool pae = current_.key.mode == PagingMode::kPae;
  const std::uint64_t base = current_.key.bases[pae ? index : 0];
  if (pae) {
    const PageFormat& format = tables_.FormatOf(page.role);
    if (!format.IsPresent(base) || format.IsMalformed(base, Level::kPdpt)) return std::nullopt;
  }
  return ShadowedEntry{.gfn = GfnOf(Gpa(base & kLegacy64Layout.address)), .rights = Rights::All()};
}

ShadowRole ShadowingMmu::ChildRole(const ShadowPage& page, unsigned index,
                                   const ShadowedEntry& entry) const {
  ShadowRole role = page.role;
  role.level = Below(page.role.level);
  role.access = page.role.access & entry.rights;
  if (role.has_4_byte_entries) {
    role.quadrant = static_cast<std::uint8_t>(IsGlue(page) ? index : index & 1);
  }
  return role;
}

// Finds the shadow pages of the guest tables that translate `address`, making those that are
// missing. Links nothing yet.
bool ShadowingMmu::FindPath(InputAddress address, Path& path) {
  ShadowPage* page = current_.page;
  for (;;) {
    page->writes = 0;
    const Level level = page->role.level;
    PathStep& step = path.steps[path.count++];
    step = {.page = page, .index = IndexAt(address, level)};
    path.leaf_level = level;
    path.rights = page->role.access;
    if (page->role.direct) {
      // No paging: a page as large as can be.
      path.leaf = {.gfn = GfnOf(Gpa(AlignDown(address, level).bits())),
                   .rights = page->role.access,
                   .leaf = true,
                   .dirty = true};
      return true;
    }
    const std::optional<ShadowedEntry> entry = ReadEntry(*page, step.index);
    if (!entry) return false;
    step.record = entry->Pack();
    path.rights = page->role.access & entry->rights;
    if (entry->leaf) {
      if (entry->rights.shadow_stack() && page->role.access.write()) {
        path.rights = path.rights | Rights(Rights::kShadowStack);
      }
      path.leaf = *entry;
      return true;
    }
    if (memory_.Find(entry->gfn) == nullptr) return false;
    page = pages_.FindOrMake(entry->gfn, ChildRole(*page, step.index, *entry));
    if (page == nullptr) {
      path.failure = FaultOutcome::kOutOfMemory;
      return false;
    }
  }
}

void ShadowingMmu::LinkIfNeeded(const PathStep& step, ShadowPage& child) {
  const std::uint64_t spte = ShadowPages::Load(&step.page->sptes[step.index]);
  if (CodecHere().IsLink(spte, step.page->role.level) &&
      CodecHere().Target(spte) == child.table()) {
    return;
  }
  // No processor can have known of this way: nothing stale may be found on it.
  pages_.ResyncBelow(child);
  pages_.Link(*step.page, step.index, child, step.record);
}

// Links the pages of `path`, and below a large page of the guest's pages of our own down to
// `level`, which grant `rights`.
bool ShadowingMmu::LinkPath(Path& path, InputAddress address, Level level, Rights rights) {
  for (unsigned i = 0; i + 1 < path.count; ++i) {
    LinkIfNeeded(path.steps[i], *path.steps[i + 1].page);
  }
  for (;;) {
    const PathStep& step = path.steps[path.count - 1];
    const Level above = step.page->role.level;
    if (above == level) return true;
    const std::uint64_t first = GpaOf(path.leaf.gfn).bits() +
                                (OffsetIn(address, path.leaf_level) & ~(LevelBytes(above) - 1));
    ShadowPage* child = pages_.FindOrMake(
        GfnOf(Gpa(first)),
        DirectRole(Below(above), rights, nested_.has_value(), path.leaf.protection_key));
    if (child == nullptr) return false;
    LinkIfNeeded(step, *child);
    path.steps[path.count++] = {.page = child, .index = IndexAt(address, child->role.level)};
  }
}

// `access` as the attribute of the page at the end of `path` judges it.
Access ShadowingMmu::JudgedByAttribute(Access access, const Path& path) const {
  return nested_ ? access : JudgedByPage(access, path.rights.user());
}

// What SPTEs may say of the page at the end of `path` for all that the guest's tables say. Where
// these are nested ones, what they grant depends on their format.
Rights ShadowingMmu::GrantedBy(const Path& path) const {
  Rights rights = path.rights;
  if (nested_) rights = GrantedBySecondStage(walker_.format(), rights) | Rights(Rights::kUser);
  return path.leaf.dirty ? rights : rights.Without(Rights::kWrite);
}

// With CR0.WP clear a supervisor writes what W=0 protects, and users must still not. The SPTE
// becomes a supervisor's own: writable, not a user's, and not executable where SMEP would have
// refused. Not where keys or SMAP would judge it by what it then seems to be. XU without XS and U
// says whose page it was: attributes judge it as that.
void ShadowingMmu::FlipForSupervisorWrite(Rights& rights) const {
  const ShadowRole& role = current_.key.role;
  const bool user = rights.user();
  if (user && role.smap_without_wp) return;
  rights = (rights | Rights(Rights::kWrite)).Without(Rights::kUser);
  if (user) rights = rights.Without(Rights::kExecSupervisor);
  if (user && role.smep) rights = rights.Without(Rights::kExecUser);
}

FaultOutcome ShadowingMmu::MapMemory(Path& path, InputAddress address, Access access,
                                     const MemorySlot& slot, Gpa gpa,
                                     const MemoryAttribute& attribute) {
  const SpteCodec& codec = CodecHere();
  Level level = LargestPage(codec, slot, gpa, path.leaf_level);
  while (!pages_.LargePageAllowed(GfnOf(AlignDown(gpa, level)), level)) level = Below(level);

  Rights rights = GrantedBy(path);
  // Where the flip must not be, each write is made for the guest.
  if (!nested_ && access.is_write() && !access.is_shadow_stack() && !rights.write()) {
    FlipForSupervisorWrite(rights);
  }
  // Shadow pages go by what the guest grants, so that they can be shared; attributes bind leaves.
  if (!LinkPath(path, address, level, rights)) return FaultOutcome::kOutOfMemory;
  const PathStep& last = path.steps[path.count - 1];
  const std::uint64_t old = ShadowPages::Load(&last.page->sptes[last.index]);
  const bool user_page = path.rights.user();
  Rights limit = LeafLimit(codec, attribute, JudgedByAttribute(access, path),
                           codec.IsLiveLeaf(old, level) ? old : 0);
  if (limit.write()) limit = limit | Rights(Rights::kShadowStack);
  rights = rights & limit;
  if (!nested_) rights = OfPage(rights, user_page);
  const bool may_write = (rights.write() || rights.shadow_stack()) &&
                         pages_.MayBeWritten(GfnOf(gpa), access.is_write() && level == Level::kPt);
  const auto host = reinterpret_cast<std::uintptr_t>(slot.HostOf(AlignDown(gpa, level)));
  LeafSpte leaf = {.page = Hpa(host),
                   .level = level,
                   .rights = rights,
                   .host_writable = !slot.read_only,
                   .mmu_writable = may_write,
                   .protection_key = path.leaf.protection_key};
  pages_.PrepareForLog(leaf, GfnOf(gpa), access.is_write() || access.is_shadow_stack());
  const std::uint64_t spte = codec.Leaf(leaf);
  // Attributes were set with the SPTEs of the guest itself in mind. Those of a guest's guest may
  // not be able to say what is left: then it cannot be done.
  if (nested_ && access.is_fetch() && !attribute.unrestricted() && !codec.Allows(spte, access)) {
    return FaultOutcome::kAttributeViolation;
  }
  const bool new_spte = old != spte;
  if (new_spte) pages_.Set(*last.page, last.index, spte, last.record);
  const bool granted = access.is_shadow_stack() ? codec.IsShadowStack(spte)
                                                : !access.is_write() || codec.IsWritable(spte);
  if (!granted) return FaultOutcome::kWriteProtected;
  return new_spte ? FaultOutcome::kFixed : FaultOutcome::kSpurious;
}

FaultOutcome ShadowingMmu::MarkMmio(Path& path, InputAddress address, Gpa gpa) {
  const std::uint64_t marker = CodecHere().Mmio({.gfn = GfnOf(gpa),
                                                 .write = path.rights.write(),
                                                 .user = path.rights.user(),
                                                 .generation = pages_.generation()});
  // Pages of our own on the way may map memory as well: they grant what they would for memory.
  // Without room for the marker the next access comes here again.
  if (marker != 0 && LinkPath(path, address, Level::kPt, GrantedBy(path))) {
    const PathStep& last = path.steps[path.count - 1];
    pages_.Set(*last.page, last.index, marker, last.record);
  }
  return FaultOutcome::kMmio;
}

// -- for people

WalkResult ShadowingMmu::Inspect(InputAddress address, Access access, WalkTrace* trace) const {
  HostTableSpace<false> space;
  const ShadowPages::Lock lock = pages_.Acquire();
  const ShadowPage* root = current_.page != nullptr ? current_.page : empty_root_;
  const WalkRequest request = {.table = OutputAddress(root->table().bits()),
                               .level = root->role.level,
                               .address = address,
                               .access = access,
                               .pkru = state_.pkru,
                               .pkrs = state_.pkrs};
  return WalkTables<AnyLayout>(format(), request, space, trace);
}

std::vector<RootInfo> ShadowingMmu::Roots() const {
  std::vector<RootInfo> roots;
  const ShadowPages::Lock lock = pages_.Acquire();
  const auto add = [&](const CachedRoot& root, bool current) {
    if (root.page == nullptr) return;
    roots.push_back({.root = {.table = root.page->table(), .level = root.page->role.level},
                     .role = root.page->role,
                     .root_register = root.root_register,
                     .current = current});
  };
  add(current_, true);
  for (const CachedRoot& root : previous_) add(root, false);
  return roots;
}

}  // namespace pagesaw
