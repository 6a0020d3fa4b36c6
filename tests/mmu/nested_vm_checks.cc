module;
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>
module pagesaw.tests.mmu.nested_vm;

import pagesaw.core.access;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.core.page_walker;
import pagesaw.mmu.walk;
import pagesaw.tests.mmu.oracle_words;

namespace pagesaw {
namespace {

// Outcomes of one access beyond which it is not worth telling them apart.
constexpr unsigned kMaxOutcomes = 1024;

const char* NameOf(Outcome::Kind kind) {
  static constexpr const char* kNames[] = {"host",    "guest fault",  "device",
                                           "nothing", "nested fault", "refused by the host"};
  return kNames[static_cast<unsigned>(kind)];
}

struct Pick {
  std::size_t taken = 0;
  std::size_t count = 1;
};

Access HostAccess(const oracle::Access& access) {
  return access.write ? Access::Write(Privilege::kUser) : Access::Read(Privilege::kUser);
}

}  // namespace

// Memory as the oracle sees it for one vCPU: every entry may be any of the values that it has had
// since the vCPU last invalidated it.
class NestedVm::World {
 public:
  World(const NestedVm& vm, const Cpu& cpu, std::uint64_t linear)
      : vm_(vm),
        cpu_(cpu),
        in_l2_(in_l2(cpu)),
        linear_since_(vm.LinearSince(cpu, linear)),
        nested_since_(vm.NestedSince(cpu)) {}

  // Begins with the first of all combinations of values, or goes on to the next. False: there is
  // none.
  bool Next() {
    depth_ = 0;
    if (!begun_) return begun_ = true;
    while (!picks_.empty() && picks_.back().taken + 1 == picks_.back().count) picks_.pop_back();
    if (picks_.empty()) return false;
    ++picks_.back().taken;
    return true;
  }
  // Whether any entry read has had more values than one.
  bool certain() const { return certain_; }
  // Entries that were read are described there, for people.
  void DescribeTo(std::string* text) { text_ = text; }

  std::uint64_t ReadNested(std::uint64_t at, unsigned bytes, bool pdpte) {
    return Read(vm_.told_, nested_since_.told, at, bytes, false,
                pdpte ? 0 : cpu_.nesting.accessed_dirty());
  }
  std::uint64_t ReadGuest(std::uint64_t at, unsigned bytes, bool pdpte) {
    // Tables of L1's own are shadowed where it runs on one stage.
    const bool shadowed = !in_l2_ && !vm_.two_stages_;
    // Where A or D is missing another access is made, which may be refused.
    const bool plain = !in_l2_ || cpu_.nesting.stage.tables_are_written;
    const std::uint64_t ignored = plain && !pdpte ? 0x60 : 0;
    return shadowed ? Read(vm_.told_, linear_since_.told, at, bytes, false, ignored)
                    : Read(vm_.untold_, linear_since_.untold, at, bytes, true, ignored);
  }
  bool Forbids(std::uint64_t at, const oracle::Access& access) const {
    const MemoryAttribute attribute = vm_.attributes_.Of(GfnOf(Gpa(at)));
    return attribute.policy != ViolationPolicy::kLog && attribute.Refuses(HostAccess(access));
  }
  // SPTEs that cannot say what is left say less.
  bool ForbidsFetch(std::uint64_t at, bool user_page, bool user) const {
    const MemoryAttribute attribute = vm_.attributes_.Of(GfnOf(Gpa(at)));
    if (attribute.policy == ViolationPolicy::kLog) return false;
    const bool xs = attribute.rights.exec_supervisor(), xu = attribute.rights.exec_user();
    if (!in_l2_ && !vm_.two_stages_) return user_page ? !xu : !xs;
    const bool needed = vm_.kind_.FetchIsUser(user_page, user) ? xu : xs;
    if (!needed || !vm_.kind_.splits_execute) return !xs || !xu;
    return vm_.kind_.amd && !xu;
  }
  bool IsMemory(std::uint64_t at, bool write) const {
    const MemorySlot* slot = vm_.memory_.Find(GfnOf(Gpa(at)));
    return slot != nullptr && !(write && slot->read_only);
  }
  bool log_full() const { return cpu_.log_full; }

 private:
  std::uint64_t Read(const EntryHistory& history, std::uint64_t since, std::uint64_t at,
                     unsigned bytes, bool by_hardware, std::uint64_t accessed_dirty) {
    const std::uint64_t word = at & ~std::uint64_t{7};
    std::vector<std::uint64_t> values = history.Since(since, word, vm_.WordAt(word, by_hardware));
    if (values.size() > 1) certain_ = false;
    // A and D decide nothing unless somebody refuses to have them set.
    const bool decide = vm_.attributes_.any() || cpu_.nesting.stage.logs_dirty;
    std::vector<std::uint64_t> entries;
    for (std::uint64_t value : values) {
      if (bytes == 4) value = value >> (8 * (at & 4)) & 0xffff'ffff;
      if (!decide) value |= bytes == 4 ? accessed_dirty & 0xffff'ffff : accessed_dirty;
      if (std::find(entries.begin(), entries.end(), value) == entries.end()) {
        entries.push_back(value);
      }
    }
    if (text_ != nullptr) Describe(by_hardware, at, entries);
    if (depth_ == picks_.size()) picks_.push_back({.count = entries.size()});
    return entries[picks_[depth_++].taken];
  }

  void Describe(bool guest, std::uint64_t at, const std::vector<std::uint64_t>& entries) {
    char text[80];
    std::snprintf(text, sizeof(text), "\n  %s %#llx:", guest ? "guest's entry at" : "  nested at",
                  static_cast<unsigned long long>(at));
    *text_ += text;
    for (const std::uint64_t entry : entries) {
      std::snprintf(text, sizeof(text), " %#llx", static_cast<unsigned long long>(entry));
      *text_ += text;
    }
  }

  const NestedVm& vm_;
  const Cpu& cpu_;
  std::string* text_ = nullptr;
  const bool in_l2_;
  const Moment linear_since_, nested_since_;
  std::vector<Pick> picks_;  // of each entry on the way
  std::size_t depth_ = 0;
  bool begun_ = false;
  bool certain_ = true;
};

// -- what must be

NestedVm::Moment NestedVm::LinearSince(const Cpu& cpu, std::uint64_t linear) const {
  Moment since = cpu.linear_since;
  if (const auto page = cpu.page_since.find(linear >> 12); page != cpu.page_since.end()) {
    since = {std::max(since.told, page->second.told), std::max(since.untold, page->second.untold)};
  }
  return since;
}

NestedVm::Moment NestedVm::NestedSince(const Cpu& cpu) const {
  Moment since = cpu.nested_since;
  const NestedPaging& nested = cpu.nesting.paging;
  if (const auto root = cpu.root_since.find(nested.root.bits()); root != cpu.root_since.end()) {
    since.told = std::max(since.told, root->second.told);
  }
  if (const auto tag = cpu.tag_since.find(nested.tag); tag != cpu.tag_since.end()) {
    since.told = std::max(since.told, tag->second.told);
  }
  return since;
}

// Where there is no memory a processor's walk reads the empty bus, and walks of ours find nothing.
std::uint64_t NestedVm::WordAt(std::uint64_t address, bool by_hardware) const {
  const bool memory = memory_.Find(GfnOf(Gpa(address))) != nullptr;
  if (memory) return memory_.Read<std::uint64_t>(Gpa(address));
  return by_hardware ? ~std::uint64_t{0} : 0;
}

std::optional<std::uint64_t> NestedVm::GpaOfHost(std::uint64_t host) const {
  for (const MemorySlot& slot : memory_.Slots()) {
    const std::uint64_t offset = host - reinterpret_cast<std::uintptr_t>(slot.host);
    if (offset < slot.page_count * kPageBytes) return GpaOf(slot.first).bits() + offset;
  }
  return std::nullopt;
}

Outcome NestedVm::OutcomeOf(const oracle::Ending& ending, Asked asked) const {
  using Kind = oracle::Ending::Kind;
  switch (ending.kind) {
    case Kind::kPageFault:
      return {Outcome::Kind::kGuestFault, ending.value};
    case Kind::kNested:
      return {Outcome::Kind::kNestedFault, ending.value, ending.info};
    case Kind::kForbidden:
      return {Outcome::Kind::kRefused, ending.value};
    case Kind::kArrives:
      break;
  }
  const MemorySlot* slot = memory_.Find(GfnOf(Gpa(ending.value)));
  if (slot == nullptr || (slot->read_only && asked.kind == Asked::Kind::kWrite)) {
    return {Outcome::Kind::kDevice, ending.value};
  }
  return {Outcome::Kind::kHost, reinterpret_cast<std::uintptr_t>(slot->HostOf(Gpa(ending.value)))};
}

NestedVm::AllowedOutcomes NestedVm::Allowed(const Cpu& cpu, std::uint64_t linear,
                                            Asked asked) const {
  AllowedOutcomes allowed;
  const oracle::Processor processor = OracleProcessor(StateOf(cpu));
  const oracle::SecondStage none;
  World world(*this, cpu, linear);
  oracle::TwoStageWalk walk(processor, in_l2(cpu) ? cpu.nesting.stage : none, world);
  for (unsigned tries = 0; world.Next(); ++tries) {
    if (tries == kMaxOutcomes) {
      allowed.complete = false;
      return allowed;
    }
    for (const oracle::Ending& ending : walk.Run(linear, OracleAccess(asked))) {
      const Outcome outcome = OutcomeOf(ending, asked);
      if (std::find(allowed.outcomes.begin(), allowed.outcomes.end(), outcome) ==
          allowed.outcomes.end()) {
        allowed.outcomes.push_back(outcome);
      }
    }
    if (tries == 0) allowed.uses = walk.uses();
  }
  allowed.certain = world.certain();
  return allowed;
}

// Except where memory cannot be written.
bool NestedVm::HasUsed(const std::vector<oracle::Use>& uses) const {
  return std::all_of(uses.begin(), uses.end(), [this](const oracle::Use& use) {
    const MemorySlot* slot = memory_.Find(GfnOf(Gpa(use.at)));
    if (slot == nullptr || slot->read_only) return true;
    std::uint64_t entry = memory_.Read<std::uint64_t>(Gpa(use.at & ~std::uint64_t{7}));
    if (use.bytes == 4) entry >>= 8 * (use.at & 4);
    return (entry & use.set) == use.set;
  });
}

NestedVm::Complaint NestedVm::CheckedAccess(Cpu& cpu, std::uint64_t linear, Asked asked) {
  const AllowedOutcomes before = Allowed(cpu, linear, asked);
  bool from_tlb = false;
  const Outcome got = MakeAccess(cpu, linear, asked, from_tlb);
  ++accesses_;
  // Setting A or D may change the very entries that were used, where a table names itself.
  const AllowedOutcomes after = Allowed(cpu, linear, asked);
  if (Complaint complaint = NoteUpdates(cpu)) return complaint;
  if (!before.complete || !after.complete) {
    ++unchecked_;
    return std::nullopt;
  }
  const auto lists = [got](const AllowedOutcomes& allowed) {
    return std::find(allowed.outcomes.begin(), allowed.outcomes.end(), got) !=
           allowed.outcomes.end();
  };
  // Or they have changed on the way.
  if (!lists(before) && !lists(after) && !lists(Allowed(cpu, linear, asked))) {
    return Words(cpu, linear, asked, from_tlb ? "(by the TLB)" : "(by a walk)", got, before);
  }
  if (before.certain && after.certain && got.kind == Outcome::Kind::kHost &&
      before.outcomes == after.outcomes && !HasUsed(after.uses)) {
    return Words(cpu, linear, asked, "without A or D", got, before);
  }
  return std::nullopt;
}

// -- all SPTEs

std::optional<std::string> NestedVm::CheckAllSptes() const {
  for (const Cpu& cpu : cpus_) {
    if (!in_l2(cpu) || cpu.cpu->mmu().roots_obsolete()) continue;
    for (const RootInfo& root : cpu.cpu->mmu().Roots()) {
      if (!root.current) continue;
      const ShadowPage& page = *ShadowPages::PageAt(root.root.table);
      if (auto complaint = CheckSptesBelow(cpu, page, page, 0)) return complaint;
    }
  }
  const ShadowPages::Lock lock = pages_.Acquire();
  return pages_.Audit();
}

NestedVm::Complaint NestedVm::CheckSptesBelow(const Cpu& cpu, const ShadowPage& root,
                                              const ShadowPage& page, std::uint64_t address) const {
  const Level level = page.role.level;
  for (unsigned i = 0; i < kSptesPerPage; ++i) {
    const std::uint64_t spte = ShadowPages::Load(&page.sptes[i]);
    if (!SpteCodec::IsLive(spte)) continue;
    const std::uint64_t below = address | std::uint64_t{i} << LevelShift(level);
    const auto complaint =
        nested_codec_.IsLink(spte, level)
            ? CheckSptesBelow(cpu, root, *ShadowPages::PageAt(nested_codec_.Target(spte)), below)
            : CheckLeaf(cpu, root, below, level);
    if (complaint) return complaint;
  }
  return std::nullopt;
}

// Nested tables and attributes allow all that SPTEs grant.
NestedVm::Complaint NestedVm::CheckLeaf(const Cpu& cpu, const ShadowPage& root,
                                        std::uint64_t address, Level level) const {
  // One page of a large one stands for all.
  address += 0x5123 & (LevelBytes(level) - 1);
  for (const Asked::Kind kind : {Asked::Kind::kRead, Asked::Kind::kWrite, Asked::Kind::kFetch}) {
    for (const Asked::By by : {Asked::By::kUser, Asked::By::kSupervisor}) {
      const Asked asked = {.kind = kind, .by = by};
      // The mode that is the SPTEs': of the linear address, of the access, or none.
      if (by == Asked::By::kSupervisor && kind_.FetchIsUser(false, false)) continue;
      HostTableSpace<false> space;
      const WalkResult found = WalkTables<AnyLayout>(nested_codec_.format(),
                                                     {.table = OutputAddress(root.table().bits()),
                                                      .level = root.role.level,
                                                      .address = InputAddress(address),
                                                      .access = AccessOf(asked)},
                                                     space);
      if (!found) continue;
      const bool user = by == Asked::By::kUser;
      const oracle::Access access = {
          .write = kind == Asked::Kind::kWrite, .fetch = kind == Asked::Kind::kFetch, .user = user};
      const Outcome got = {Outcome::Kind::kHost, found->output.bits()};
      AllowedOutcomes allowed;
      const oracle::Processor processor = OracleProcessor(cpu.l2);
      World world(*this, cpu, 0);
      oracle::TwoStageWalk walk(processor, cpu.nesting.stage, world);
      for (unsigned tries = 0; allowed.complete && world.Next(); ++tries) {
        allowed.complete = tries < kMaxOutcomes;
        const std::optional<std::uint64_t> physical = walk.RunSecond(address, access, user);
        if (!physical || (access.fetch ? world.ForbidsFetch(*physical, user, user)
                                       : world.Forbids(*physical, access))) {
          continue;
        }
        allowed.outcomes.push_back(
            OutcomeOf({.kind = oracle::Ending::Kind::kArrives, .value = *physical}, asked));
      }
      const bool listed = std::find(allowed.outcomes.begin(), allowed.outcomes.end(), got) !=
                          allowed.outcomes.end();
      if (allowed.complete && !listed) {
        return Words(cpu, address, asked, "(by an SPTE, physical)", got, allowed);
      }
    }
  }
  return std::nullopt;
}

// -- for people

std::string NestedVm::Words(const Cpu& cpu, std::uint64_t linear, Asked asked, const char* what,
                            Outcome got, const AllowedOutcomes& allowed) const {
  static constexpr const char* kKindNames[] = {"read", "write", "fetch"};
  static constexpr const char* kByNames[] = {"user", "supervisor", "supervisor with AC",
                                             "implicit"};
  char text[240];
  const auto describe = [&](const char* before, const Outcome& outcome) {
    std::snprintf(text, sizeof(text), "%s %s %#llx %#llx", before, pagesaw::NameOf(outcome.kind),
                  static_cast<unsigned long long>(outcome.value),
                  static_cast<unsigned long long>(outcome.detail));
    return std::string(text);
  };
  std::snprintf(text, sizeof(text),
                "vCPU %u in L%u, %s %s of %#llx %s:", static_cast<unsigned>(&cpu - cpus_.data()),
                in_l2(cpu) ? 2u : 1u, kByNames[static_cast<unsigned>(asked.by)],
                kKindNames[static_cast<unsigned>(asked.kind)],
                static_cast<unsigned long long>(linear), what);
  std::string words = text;
  words += describe("", got) + ", want";
  for (std::size_t i = 0; i < allowed.outcomes.size() && i < 8; ++i) {
    words += describe(i == 0 ? "" : " or", allowed.outcomes[i]);
  }
  words += "\nnow:";
  const AllowedOutcomes now = Allowed(cpu, linear, asked);
  for (const Outcome& outcome : now.outcomes) words += describe("", outcome);
  const oracle::Processor processor = OracleProcessor(StateOf(cpu));
  const oracle::SecondStage none;
  World world(*this, cpu, linear);
  world.DescribeTo(&words);
  (void)world.Next();
  (void)oracle::TwoStageWalk(processor, in_l2(cpu) ? cpu.nesting.stage : none, world)
      .Run(linear, OracleAccess(asked));
  return words;
}

std::string NestedVm::Describe() const {
  const Cpu& cpu = *current_;
  const PagingState& state = cpu.l2;
  const NestedPaging& nested = cpu.nesting.paging;
  char text[400];
  std::snprintf(
      text, sizeof(text),
      "%s, L1 on %u stages, %zu vCPUs, M %u; vCPU %td in L%u: L2 cr0 %#llx cr3 %#llx "
      "cr4 %#llx efer %#llx pkru %#x pkrs %#x; root %#llx of level %u, %s, A and D %d, "
      "log %d%s, tag %u",
      NameOf(kind_.amd * 2u + kind_.splits_execute), two_stages_ ? 2u : 1u, cpus_.size(),
      state.features.physical_bits, current_ - cpus_.data(), in_l2(cpu) ? 2u : 1u,
      static_cast<unsigned long long>(state.cr0), static_cast<unsigned long long>(state.cr3),
      static_cast<unsigned long long>(state.cr4), static_cast<unsigned long long>(state.efer),
      state.pkru, state.pkrs, static_cast<unsigned long long>(nested.root.bits()),
      Number(nested.level),
      cpu.nesting.stage.ept.mode_based_execute || cpu.nesting.stage.npt.guest_mode_execute_trap
          ? "split"
          : "plain",
      nested.format.accessed_dirty, nested.logs_dirty, cpu.log_full ? " (full)" : "", nested.tag);
  return text;
}

}  // namespace pagesaw
