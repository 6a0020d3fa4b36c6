// Registers and accesses of a vCPU as the oracle names them.
module;
#include <algorithm>
#include <cstdint>
#include <iterator>
export module pagesaw.tests.mmu.oracle_words;

import pagesaw.core.paging_state;
import pagesaw.mmu.paging_oracle;
import pagesaw.tests.mmu.virtual_cpu;

export namespace pagesaw {

inline oracle::Access OracleAccess(Asked asked) {
  return {.write = asked.kind == Asked::Kind::kWrite,
          .fetch = asked.kind == Asked::Kind::kFetch,
          .user = asked.by == Asked::By::kUser,
          .with_ac = asked.by == Asked::By::kSupervisorWithAc};
}

inline oracle::Processor OracleProcessor(const PagingState& state) {
  const auto on = [](std::uint64_t word, std::uint64_t bit) { return (word & bit) != 0; };
  oracle::Processor p;
  p.levels = !on(state.cr0, kCr0Pg)      ? 0
             : !on(state.cr4, kCr4Pae)   ? 2
             : !on(state.efer, kEferLma) ? 3
             : !on(state.cr4, kCr4La57)  ? 4
                                         : 5;
  p.maxphyaddr = state.features.physical_bits;
  p.pse = on(state.cr4, kCr4Pse);
  p.nxe = on(state.efer, kEferNxe);
  p.wp = on(state.cr0, kCr0Wp);
  p.smep = on(state.cr4, kCr4Smep);
  p.smap = on(state.cr4, kCr4Smap);
  p.pke = on(state.cr4, kCr4Pke);
  p.pks = on(state.cr4, kCr4Pks);
  p.pkru = state.pkru;
  p.pkrs = state.pkrs;
  p.pages_1g = state.features.gib_pages;
  p.pse36_bits = state.features.pse36_bits;
  p.root_bit8_mbz = state.features.root_bit8_reserved;
  p.root = state.cr3;
  std::copy(state.pdptes.begin(), state.pdptes.end(), std::begin(p.pdpte));
  return p;
}

}  // namespace pagesaw
