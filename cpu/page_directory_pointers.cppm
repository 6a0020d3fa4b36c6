// The four PDPTE registers of PAE paging: when they are loaded, from where, and what is refused.
module;
#include <array>
#include <cstdint>
export module pagesaw.cpu.page_directory_pointers;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// Reads the PDPTEs at `cr3` if a processor with `cr0`, `cr4` and the current EFER pages in PAE
// mode; else `pdptes` stays as it is. #GP(0) if a present one has a reserved bit. Where the
// processor's tables translate linear addresses it cannot reach guest-physical memory: it asks for
// each PDPTE by a kBus exit. [intel/vol3] "PDPTE Registers"
bool LoadPdptes(Core& core, std::uint64_t cr3, std::uint64_t cr0, std::uint64_t cr4,
                std::array<std::uint64_t, 4>& pdptes);

}  // namespace pagesaw::cpu
