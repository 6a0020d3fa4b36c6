// For tests: what a vCPU could have cached, by when it was in which address space and what has been
// invalidated since.
module;
#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>
export module pagesaw.mmu.test_history;

import pagesaw.core.address;
import pagesaw.core.paging_state;

export namespace pagesaw {

// When a vCPU could cache translations that it may still use.
class TranslationHistory {
 public:
  // Registers are loaded at `now`; what `invalidation` says is forgotten.
  void Enter(const PagingState& state, std::uint64_t now, const Invalidation& invalidation) {
    if (!spans_.empty()) spans_.back().end = now;
    Erase(invalidation);
    spans_.push_back({state.pcid(), Base(state), now, ~std::uint64_t{0}});
  }
  void Forget(const PagingState& state, std::uint64_t now, const Invalidation& invalidation) {
    if (invalidation.scope != Invalidation::Scope::kAddress) return Enter(state, now, invalidation);
    forgotten_[{invalidation.pcid, invalidation.linear.bits() >> 12}] = now;
  }
  // Whether `linear` could be cached in the current address space after `from` and before `to`.
  bool CouldCache(const PagingState& state, std::uint64_t linear, std::uint64_t from,
                  std::uint64_t to) const {
    const auto forgotten = forgotten_.find({state.pcid(), linear >> 12});
    const std::uint64_t first = forgotten == forgotten_.end() ? 0 : forgotten->second;
    return std::any_of(spans_.begin(), spans_.end(), [&](const Span& span) {
      return span.pcid == state.pcid() && span.base == Base(state) &&
             std::max(span.start, first) < to && span.end > from;
    });
  }

 private:
  struct Span {
    std::uint16_t pcid = 0;
    std::uint64_t base = 0;
    std::uint64_t start = 0;
    std::uint64_t end = 0;
  };

  static std::uint64_t Base(const PagingState& state) { return state.cr3 >> 12; }

  void Erase(const Invalidation& invalidation) {
    if (invalidation.scope == Invalidation::Scope::kEverything) {
      spans_.clear();
      forgotten_.clear();
    } else if (invalidation.scope == Invalidation::Scope::kAddressSpace) {
      const auto pcid = invalidation.pcid;
      std::erase_if(spans_, [=](const Span& span) { return span.pcid == pcid; });
      std::erase_if(forgotten_, [=](const auto& entry) { return entry.first.first == pcid; });
    }
  }

  std::vector<Span> spans_;  // by time; the last is open
  // By PCID and page: when translations were last invalidated one by one.
  std::map<std::pair<std::uint16_t, std::uint64_t>, std::uint64_t> forgotten_;
};

}  // namespace pagesaw
