// How large a page may be that maps a piece of a memory slot.
export module pagesaw.mmu.page_size;

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.mmu.spte;

export namespace pagesaw {

// The level of the largest leaf around `gpa` that lies in `slot`, is aligned in guest and host
// memory, and is not above `level_max`.
Level LargestPage(const SpteCodec& codec, const MemorySlot& slot, Gpa gpa, Level level_max);

}  // namespace pagesaw
