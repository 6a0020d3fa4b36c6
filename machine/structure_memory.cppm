// Guest memory for those that reach it without SPTEs and yet in the guest's name: devices, and
// processors at the control structures of a hypervisor in the guest. What slots and attributes
// keep from the guest, they keep from these.
module;
#include <vector>
export module pagesaw.machine.structure_memory;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.mmu.memory_attributes;

export namespace pagesaw {

// Whether all of `rights`, of R and W, are the guest's in frame `gfn`.
bool FrameAllows(const GuestMemory& memory, const MemoryAttributes& attributes, Gfn gfn,
                 Rights rights);

// Has only the frames that the guest may read and write.
class StructureMemory final : public GuestMemory {
 public:
  // `memory` outlives this.
  explicit StructureMemory(const GuestMemory& memory) : memory_(memory) {}

  // To be called before anything is looked for. `attributes` outlives the last search.
  void Attach(const MemoryAttributes& attributes) { attributes_ = &attributes; }

  const MemorySlot* Find(Gfn gfn) const override;
  std::vector<MemorySlot> Slots() const override { return memory_.Slots(); }

 private:
  const GuestMemory& memory_;
  const MemoryAttributes* attributes_ = nullptr;
};

}  // namespace pagesaw
