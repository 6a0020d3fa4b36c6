// Walks of a guest's tables for people: what a processor would walk for an access, stage by stage,
// and every access to guest memory on its way. Nothing is changed, and nothing is obeyed that is
// not the guest's: whether slots and attributes allow the accesses met is for others to say.
module;
#include <vector>
export module pagesaw.mmu.walk_inspection;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;

export namespace pagesaw {

// How nested tables translate one address that a walk of a guest's guest meets.
struct NestedWalk {
  Stage stage = Stage::kFinal;  // kTable: an entry of the guest's own tables lies there
  Level level = Level::kPt;     // kTable: of that entry
  InputAddress address = {};
  Access access = Access::Read(Privilege::kUser);  // as nested tables judge it
  WalkResult result = WalkFault{};
  WalkTrace trace = {};
};

// An access to guest memory, which is that of the hypervisor where paging is nested.
struct MetAccess {
  Gpa gpa = {};
  Access access = Access::Read(Privilege::kSupervisor);
  Stage stage = Stage::kFinal;  // kTable: to an entry of a table, of whichever stage
};

struct InspectedWalk {
  WalkResult result = WalkFault{};
  WalkTrace trace = {};
  std::vector<NestedWalk> nested;  // in the order in which a processor makes them
  // In that order, too: reads of entries and, if nothing was refused, writes of A and D and the one
  // access that was asked for.
  std::vector<MetAccess> met;
};

// Walks the tables of a processor in `state` for the linear address `address`. `nested`, which may
// be null, translates the addresses that those tables hold; a walk that it refuses ends with
// kSecondStage, and the last of `InspectedWalk::nested` says why.
InspectedWalk InspectLinear(const GuestMemory& memory, const PagingState& state,
                            const NestedPaging* nested, InputAddress address, Access access);

// Walks nested tables for a physical address of a guest's guest.
InspectedWalk InspectPhysical(const GuestMemory& memory, const NestedPaging& nested,
                              InputAddress address, Access access);

// What the hypervisor is to hear of `walk`, which its tables refused. `linear`, which may be null:
// the walk of a linear address by a processor in `state` that met it last.
NestedFault NestedFaultOf(const NestedWalk& walk, const InspectedWalk* linear,
                          const PagingState& state);

}  // namespace pagesaw
