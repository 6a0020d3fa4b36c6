// For tests: a processor that pages in one stage, by SPTEs alone and a TLB, and the vCPU's side of
// the shadow MMU that it faults into. It executes nothing: it makes accesses.
module;
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>
export module pagesaw.mmu.test_processor;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.test_expectation;
import pagesaw.mmu.walk;

export namespace pagesaw {

class TestProcessor {
 public:
  // All outlive it.
  TestProcessor(const GuestMemory& memory, const MemoryAttributes& attributes, ShadowPages& pages,
                const GuestTables& tables)
      : memory_(memory),
        walker_(memory, &pages.dirty_logs(), &attributes),
        mmu_(ShadowingMmu::Make(pages, memory, tables, walker_)) {}
  TestProcessor(const TestProcessor&) = delete;
  TestProcessor& operator=(const TestProcessor&) = delete;

  const PagingState& state() const { return state_; }
  ShadowMmu& mmu() { return *mmu_; }

  // Loads registers, which invalidates `scope` of the address space that is left or entered.
  void Load(const PagingState& state, const Invalidation& invalidation) {
    state_ = state;
    walker_.Reset(state);
    mmu_->PagingChanged(state, invalidation);
    Flush();
    LoadRoot();
  }
  // Loads registers that shadow MMUs need not hear of: those of protection keys.
  void LoadKeys(const PagingState& state) {
    state_ = state;
    walker_.Reset(state);
    Flush();
  }
  void Invalidate(const Invalidation& invalidation) {
    mmu_->Invalidate(invalidation);
    if (invalidation.scope == Invalidation::Scope::kAddress) {
      const std::uint64_t page = invalidation.linear.bits() >> 12;
      std::erase_if(tlb_, [&](const auto& entry) { return entry.first.first == page; });
    } else {
      Flush();
    }
    LoadRoot();
  }
  void Flush() { tlb_.clear(); }

  struct Result {
    Outcome outcome = {};
    bool from_tlb = false;
    // The SPTEs do not grant it: what is written there is to be told (GuestWrote).
    std::optional<Gpa> lent = {};
  };
  Result Run(std::uint64_t linear, Access access) {
    const auto key =
        std::pair(linear >> 12, access.permission_row() | (access.is_shadow_stack() ? 16u : 0));
    for (unsigned tries = 0; tries < 12; ++tries) {
      LoadRoot();
      if (const auto found = tlb_.find(key); found != tlb_.end()) {
        const std::uint64_t host = found->second.page.bits() | (linear & 0xfff);
        return {.outcome = {Outcome::Kind::kHost, host}, .from_tlb = true};
      }
      HostTableSpace<true> space;
      const WalkResult walk = WalkTables<AnyLayout>(mmu_->format(),
                                                    {.table = OutputAddress(root_.table.bits()),
                                                     .level = root_.level,
                                                     .address = InputAddress(linear),
                                                     .access = access,
                                                     .pkru = state_.pkru,
                                                     .pkrs = state_.pkrs},
                                                    space);
      if (walk) {
        tlb_.insert_or_assign(key,
                              Cached{Hpa(walk->output.bits() & ~std::uint64_t{0xfff}), access});
        return {.outcome = {Outcome::Kind::kHost, walk->output.bits()}};
      }
      const FaultResolution met =
          mmu_->HandleFault({.address = InputAddress(linear),
                             .access = access,
                             .malformed = walk.fault().kind == WalkFault::Kind::kMalformed,
                             .linear = Gva(linear)});
      switch (met.outcome) {
        case FaultOutcome::kGuestFault:
          return {.outcome = {Outcome::Kind::kGuestFault, met.guest_fault.code.bits()}};
        case FaultOutcome::kMmio:
          return {.outcome = {Outcome::Kind::kDevice, met.gpa.bits()}};
        case FaultOutcome::kAttributeViolation:
          return {.outcome = {Outcome::Kind::kViolation, met.violation->gpa.bits()}};
        case FaultOutcome::kWriteProtected:
          return {.outcome = {Outcome::Kind::kHost, met.host.bits()}, .lent = met.gpa};
        default:
          break;
      }
    }
    return {};
  }

  // A page that the TLB has, and what for.
  struct Cached {
    Hpa page = {};
    Access access = Access::Read(Privilege::kUser);
  };
  std::vector<Cached> Tlb() const {
    std::vector<Cached> entries;
    for (const auto& [key, entry] : tlb_) entries.push_back(entry);
    return entries;
  }

  // The entries and SPTEs on the way to `linear`, for people.
  std::string Trace(std::uint64_t linear, Access access) const {
    const auto add = [](std::string& words, const char* what, std::uint64_t at,
                        std::uint64_t entry) {
      char text[80];
      std::snprintf(text, sizeof(text), "\n  %s %#llx: %#llx", what,
                    static_cast<unsigned long long>(at), static_cast<unsigned long long>(entry));
      words += text;
    };
    std::string words;
    WalkTrace trace;
    (void)CpuWalker(memory_, state_).Inspect(InputAddress(linear), access, &trace);
    for (const WalkStep& step : trace.steps()) {
      add(words, "entry at", step.entry_address.bits(), step.entry);
    }
    (void)mmu_->Inspect(InputAddress(linear), access, &trace);
    for (const WalkStep& step : trace.steps()) {
      const ShadowPage* page = ShadowPages::PageAt(Hpa(step.entry_address.bits()));
      add(words, "SPTE of page", page->id, step.entry);
    }
    return words;
  }

 private:
  void LoadRoot() {
    if (!mmu_->roots_obsolete()) return;
    root_ = mmu_->Root();
    Flush();
  }

  const GuestMemory& memory_;
  PagingState state_;
  ShadowRoot root_;
  std::map<std::pair<std::uint64_t, unsigned>, Cached> tlb_;  // by linear page and kind of access
  CpuWalker walker_;
  std::unique_ptr<ShadowingMmu> mmu_;
};

}  // namespace pagesaw
