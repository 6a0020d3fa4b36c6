// How a hypervisor of chance translates its guest's physical addresses: in the words of the plugins
// and in those of the oracle.
module;
#include <cstdint>
export module pagesaw.tests.mmu.nesting;

import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.tests.mmu.choices;
import pagesaw.tests.mmu.two_stage_oracle;

export namespace pagesaw {

// What a VM offers to hypervisors.
struct NestingKind {
  bool amd = false;
  bool splits_execute = false;  // mode-based execute control, guest mode execute trap

  // The SPTEs of guests' guests.
  PageFormat SpteFormat() const;
  // Whether a fetch from a page, a user's or not, by user mode or not, counts as a user's to SPTEs.
  bool FetchIsUser(bool user_page, bool user) const {
    if (amd) return splits_execute ? user : true;
    return user_page;
  }
};

struct Nesting {
  NestedPaging paging;        // what the processor is given
  oracle::SecondStage stage;  // what it is to do

  // The bits of an 8-byte word of nested tables that are A and D.
  std::uint64_t accessed_dirty() const;
  // `fault` as the hypervisor is told of it: Ending::info.
  std::uint64_t InfoOf(const NestedFault& fault) const;
};

// Any that the VM offers on a processor with `features`, with a root among `tables_of_level` frames
// of each level from 5 down, which start at frame 0. A hypervisor seldom changes its mind: `habit`
// decides what `choices` do not.
Nesting AnyNesting(const NestingKind& kind, const PagingFeatures& features, std::uint64_t habit,
                   unsigned tables_of_level, Choices& choices);

}  // namespace pagesaw
