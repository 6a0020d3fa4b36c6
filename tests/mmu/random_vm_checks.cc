module;
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>
module pagesaw.tests.mmu.random_vm;

import pagesaw.core.access;
import pagesaw.core.guest_memory;
import pagesaw.core.page_walker;
import pagesaw.cpu.core;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.spte;
import pagesaw.mmu.walk;
import pagesaw.tests.mmu.oracle_words;

namespace pagesaw {
namespace {

// Outcomes of one access beyond which it is not worth telling them apart.
constexpr unsigned kMaxOutcomes = 512;

const char* NameOf(Outcome::Kind kind) {
  static constexpr const char* kNames[] = {"host", "guest fault", "device", "nothing"};
  return kNames[static_cast<unsigned>(kind)];
}

}  // namespace

// -- what must be

unsigned RandomVm::PcidOf(const Cpu& cpu) {
  const PagingState state = StateOf(cpu);
  return (state.cr4 & kCr4Pcide) != 0 ? static_cast<unsigned>(state.cr3 & 0xfff) : 0;
}

std::uint64_t RandomVm::Since(const Cpu& cpu, std::uint64_t linear) const {
  const unsigned pcid = PcidOf(cpu);
  std::uint64_t since = cpu.all_since;
  if (const auto space = cpu.space_since.find(pcid); space != cpu.space_since.end()) {
    since = std::max(since, space->second);
  }
  if (const auto page = cpu.page_since.find({pcid, linear >> 12}); page != cpu.page_since.end()) {
    since = std::max(since, page->second);
  }
  return since;
}

std::uint64_t RandomVm::MemoryAt(std::uint64_t address) const {
  const bool memory = memory_.Find(GfnOf(Gpa(address))) != nullptr;
  return memory ? memory_.Read<std::uint64_t>(Gpa(address)) : ~std::uint64_t{0};
}

// What lies in no memory: the processor that walks it reads the empty bus; our walker, whose fault
// the guest gets where its tables are shadowed, finds nothing.
std::uint64_t RandomVm::WordAt(std::uint64_t address) const {
  const bool memory = memory_.Find(GfnOf(Gpa(address))) != nullptr;
  return memory || !shadows() ? MemoryAt(address) : 0;
}

std::optional<std::uint64_t> RandomVm::GpaOfHost(std::uint64_t host) const {
  for (const MemorySlot& slot : memory_.Slots()) {
    const std::uint64_t offset = host - reinterpret_cast<std::uintptr_t>(slot.host);
    if (offset < slot.page_count * kPageBytes) return GpaOf(slot.first).bits() + offset;
  }
  return std::nullopt;
}

Outcome RandomVm::OutcomeOf(const oracle::Verdict& verdict, Asked asked) const {
  if (verdict.fault) return {Outcome::Kind::kGuestFault, verdict.code};
  const MemorySlot* slot = memory_.Find(GfnOf(Gpa(verdict.physical)));
  if (slot == nullptr || (slot->read_only && asked.kind == Asked::Kind::kWrite)) {
    return {Outcome::Kind::kDevice, verdict.physical};
  }
  return {Outcome::Kind::kHost,
          reinterpret_cast<std::uintptr_t>(slot->HostOf(Gpa(verdict.physical)))};
}

// Every entry may be any of the values that it has had since the vCPU last invalidated.
RandomVm::AllowedOutcomes RandomVm::Allowed(const Cpu& cpu, std::uint64_t linear,
                                            Asked asked) const {
  AllowedOutcomes allowed;
  const oracle::Processor processor = OracleProcessor(StateOf(cpu));
  const std::uint64_t since = Since(cpu, linear);
  struct Pick {
    std::size_t taken = 0;
    std::size_t count = 1;
  };
  std::vector<Pick> picks;  // of each entry on the way
  for (unsigned tries = 0;; ++tries) {
    if (tries == kMaxOutcomes) {
      allowed.complete = false;
      return allowed;
    }
    std::size_t depth = 0;
    const auto read = [&](std::uint64_t at, unsigned bytes) {
      const std::uint64_t word = at & ~std::uint64_t{7};
      const std::vector<std::uint64_t> values = history_.Since(since, word, WordAt(word));
      if (depth == picks.size()) picks.push_back({.count = values.size()});
      const std::uint64_t value = values[picks[depth++].taken];
      return bytes == 4 ? value >> (8 * (at & 4)) & 0xffff'ffff : value;
    };
    allowed.outcomes.push_back(
        OutcomeOf(oracle::Translate(processor, linear, OracleAccess(asked), read), asked));
    while (!picks.empty() && picks.back().taken + 1 == picks.back().count) picks.pop_back();
    if (picks.empty()) return allowed;
    ++picks.back().taken;
    allowed.certain = false;
  }
}

// A in every entry and D in the leaf of a write, except where memory cannot be written.
bool RandomVm::HasAccessedDirty(const Cpu& cpu, std::uint64_t linear, Asked asked) const {
  WalkTrace trace;
  const PagingState state = StateOf(cpu);
  (void)CpuWalker(memory_, state)
      .Inspect(InputAddress(linear), Access::Read(Privilege::kSupervisor), &trace);
  for (const WalkStep& step : trace.steps()) {
    if (state.mode() == PagingMode::kPae && step.level == Level::kPdpt) continue;
    const MemorySlot* slot = memory_.Find(GfnOf(GpaOf(step.entry_address)));
    if (slot == nullptr || slot->read_only) continue;
    const bool dirty = step.leaf && asked.kind == Asked::Kind::kWrite;
    const std::uint64_t wanted = 0x20 | (dirty ? 0x40 : 0);
    if ((step.entry & wanted) != wanted) return false;
  }
  return true;
}

// -- all SPTEs

std::optional<std::string> RandomVm::CheckAllSptes() const {
  for (const Cpu& cpu : cpus_) {
    if (cpu.cpu->mmu().roots_obsolete()) continue;
    for (const RootInfo& root : cpu.cpu->mmu().Roots()) {
      if (!root.current) continue;
      const ShadowPage& page = *ShadowPages::PageAt(root.root.table);
      if (auto complaint = CheckSptesBelow(cpu, page, page, 0)) return complaint;
    }
  }
  const ShadowPages::Lock lock = pages_.Acquire();
  return pages_.Audit();
}

std::optional<std::string> RandomVm::CheckSptesBelow(const Cpu& cpu, const ShadowPage& root,
                                                     const ShadowPage& page,
                                                     std::uint64_t address) const {
  const SpteCodec& codec = pages_.codec();
  const Level level = page.role.level;
  for (unsigned i = 0; i < kSptesPerPage; ++i) {
    const std::uint64_t spte = ShadowPages::Load(&page.sptes[i]);
    if (!SpteCodec::IsLive(spte)) continue;
    const std::uint64_t below = address | std::uint64_t{i} << LevelShift(level);
    const auto complaint =
        codec.IsLink(spte, level)
            ? CheckSptesBelow(cpu, root, *ShadowPages::PageAt(codec.Target(spte)), below)
            : CheckLeaf(cpu, root, below, level);
    if (complaint) return complaint;
  }
  return std::nullopt;
}

std::optional<std::string> RandomVm::CheckLeaf(const Cpu& cpu, const ShadowPage& root,
                                               std::uint64_t address, Level level) const {
  const PagingState state = StateOf(cpu);
  if (shadows() && state.long_mode()) {
    const unsigned shift = 64 - state.linear_bits();
    address = static_cast<std::uint64_t>(static_cast<std::int64_t>(address << shift) >> shift);
  }
  // One page of a large one stands for all.
  address += 0x5123 & (LevelBytes(level) - 1);
  for (const Asked::Kind kind : {Asked::Kind::kRead, Asked::Kind::kWrite, Asked::Kind::kFetch}) {
    for (const Asked::By by :
         {Asked::By::kUser, Asked::By::kSupervisor, Asked::By::kSupervisorWithAc}) {
      const Asked asked = {.kind = kind, .by = by};
      // Protection keys are the processor's: they change without the MMU's knowing.
      HostTableSpace<false> space;
      const WalkResult walk = WalkTables<AnyLayout>(cpu.cpu->mmu().format(),
                                                    {.table = OutputAddress(root.table().bits()),
                                                     .level = root.role.level,
                                                     .address = InputAddress(address),
                                                     .access = AccessOf(asked),
                                                     .pkru = state.pkru,
                                                     .pkrs = state.pkrs},
                                                    space);
      if (!walk) continue;
      const Outcome got = {Outcome::Kind::kHost, walk->output.bits()};
      AllowedOutcomes allowed;
      if (shadows()) {
        allowed = Allowed(cpu, address, asked);
      } else {
        allowed.outcomes.push_back(OutcomeOf({.physical = address}, asked));
      }
      const bool listed = std::find(allowed.outcomes.begin(), allowed.outcomes.end(), got) !=
                          allowed.outcomes.end();
      if (allowed.complete && !listed) {
        return Words(cpu, address, asked, "(by an SPTE)", got, allowed);
      }
    }
  }
  return std::nullopt;
}

// -- for people

std::string RandomVm::Words(const Cpu& cpu, std::uint64_t linear, Asked asked, const char* what,
                            Outcome got, const AllowedOutcomes& allowed) const {
  static constexpr const char* kKindNames[] = {"read", "write", "fetch"};
  static constexpr const char* kByNames[] = {"user", "supervisor", "supervisor with AC",
                                             "implicit"};
  char text[200];
  std::snprintf(
      text, sizeof(text), "vCPU %u, %s %s of %#llx %s: %s %#llx, want",
      static_cast<unsigned>(&cpu - cpus_.data()), kByNames[static_cast<unsigned>(asked.by)],
      kKindNames[static_cast<unsigned>(asked.kind)], static_cast<unsigned long long>(linear), what,
      pagesaw::NameOf(got.kind), static_cast<unsigned long long>(got.value));
  std::string words = text;
  for (std::size_t i = 0; i < allowed.outcomes.size() && i < 8; ++i) {
    std::snprintf(text, sizeof(text), "%s %s %#llx", i == 0 ? "" : " or",
                  pagesaw::NameOf(allowed.outcomes[i].kind),
                  static_cast<unsigned long long>(allowed.outcomes[i].value));
    words += text;
  }
  WalkTrace trace;
  const Access read = Access::Read(Privilege::kSupervisor);
  (void)CpuWalker(memory_, StateOf(cpu)).Inspect(InputAddress(linear), read, &trace);
  for (const WalkStep& step : trace.steps()) {
    std::snprintf(text, sizeof(text), "\n  level %u at %#llx: %#llx", Number(step.level),
                  static_cast<unsigned long long>(step.entry_address.bits()),
                  static_cast<unsigned long long>(step.entry));
    words += text;
  }
  return words;
}

std::string RandomVm::Describe() const {
  const PagingState state = StateOf(*current_);
  char text[240];
  std::snprintf(text, sizeof(text),
                "%s, %zu vCPUs, M %u; vCPU %td: cr0 %#llx cr3 %#llx cr4 %#llx efer %#llx pkru %#x "
                "pkrs %#x",
                NameOf(kind_), cpus_.size(), state.features.physical_bits, current_ - cpus_.data(),
                static_cast<unsigned long long>(state.cr0),
                static_cast<unsigned long long>(state.cr3),
                static_cast<unsigned long long>(state.cr4),
                static_cast<unsigned long long>(state.efer), state.pkru, state.pkrs);
  return text;
}

}  // namespace pagesaw
