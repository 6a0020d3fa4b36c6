// What virtualization extensions of every vendor read in the memory of a hypervisor. Other
// processors may be writing there meanwhile.
module;
#include <cstdint>
#include <optional>
export module pagesaw.core.guest_structures;

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_mode;

export namespace pagesaw {

// The 8 bytes at `gpa`, a multiple of 8; nothing where there is no memory.
std::optional<std::uint64_t> LoadWord(VirtHost& host, Gpa gpa);

// Bit number `bit` of the bitmap at `bitmap`. Reads as 1 where there is no memory.
bool BitmapBit(VirtHost& host, Gpa bitmap, std::uint64_t bit);

// Whether a processor in `state` has PDPTE registers: in PAE paging.
bool UsesPdptes(const CpuState& state);

// Loads `state.pdptes` from where CR3 says, if it uses them. False: one has reserved bits set, or
// there is no memory.
// [intel/vol3] "PDPTE Registers"; [amd/vol2] "Legacy PAE Mode"
bool LoadPdptes(VirtHost& host, CpuState& state);

}  // namespace pagesaw
