// What hardware does when its TLB misses: walks the tables that the processor was given and, where
// those are a second stage, the guest's own tables through them. Sets A and D in both.
module;
#include <cstddef>
#include <cstdint>
export module pagesaw.cpu.hardware_walk;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// Where a linear page is, and what may be done there without walking again.
struct HostPage {
  std::uint64_t host = 0;    // of the very byte
  Level level = Level::kPt;  // of the page that INVLPG would name
  bool keyed = false;        // the rights rest on protection key `key`
  std::uint8_t key = 0;
  bool readable = false;
  bool writable = false;  // allowed, and dirty in every table
};

// Notes in the TLB what forgetting the entry of `bank` for `linear` in `page` takes.
void NoteInTlb(Core& core, TlbBank& bank, std::uint64_t linear, const HostPage& page);

// Translates `linear` for `access`. On failure false, and `core.stop` says why: a page fault for
// the guest, or an exit with ExitReason::kTableFault whose `bus` is not filled in.
bool WalkHardware(Core& core, std::uint64_t linear, Access access, HostPage& page);

// In guest mode with nested paging: the page at `gpa` of the guest's physical space in host memory,
// as the tables that the processor was given translate it; null in `host` if there is no memory.
// False: they refuse the access, and an exit with ExitReason::kTableFault tells.
bool LocateBehindSecondStage(Core& core, Gpa gpa, bool write, std::byte*& host);

}  // namespace pagesaw::cpu
