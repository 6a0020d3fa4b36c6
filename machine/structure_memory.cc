module;
#include <vector>
module pagesaw.machine.structure_memory;

import pagesaw.core.memory_attribute;

namespace pagesaw {

bool FrameAllows(const GuestMemory& memory, const MemoryAttributes& attributes, Gfn gfn,
                 Rights rights) {
  const MemorySlot* const slot = memory.Find(gfn);
  if (slot == nullptr || (rights.write() && slot->read_only)) return false;
  const MemoryAttribute attribute = attributes.Of(gfn);
  return attribute.rights.Covers(rights) || attribute.policy == ViolationPolicy::kLog;
}

const MemorySlot* StructureMemory::Find(Gfn gfn) const {
  constexpr Rights kBoth(Rights::kRead | Rights::kWrite);
  return FrameAllows(memory_, *attributes_, gfn, kBoth) ? memory_.Find(gfn) : nullptr;
}

}  // namespace pagesaw
