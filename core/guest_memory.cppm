// What a virtual machine has as memory: slots of guest frames backed by memory of this process.
// Who may change the slots, and when, is decided by whoever implements the interface.
module;
#include <cstddef>
#include <cstdint>
#include <vector>
export module pagesaw.core.guest_memory;

import pagesaw.core.address;

export namespace pagesaw {

// A range of guest frames backed by host memory. `host` is page aligned.
struct MemorySlot {
  std::uint32_t id = 0;
  Gfn first = {};
  std::uint64_t page_count = 0;
  std::byte* host = nullptr;
  bool read_only = false;  // guest writes do not reach the memory: they are device accesses

  constexpr bool Contains(Gfn gfn) const { return gfn.number - first.number < page_count; }
  // The host memory of `gpa`, whose frame the slot must contain.
  inline std::byte* HostOf(Gpa gpa) const { return host + (gpa.bits() - GpaOf(first).bits()); }
};

class GuestMemory {
 public:
  virtual ~GuestMemory() = default;

  // The slot that holds `gfn`, or null. Safe on any thread while slots change; the slot stays
  // readable for as long as the GuestMemory exists, its backing until the slot's removal has
  // flushed every processor of the VM.
  virtual const MemorySlot* Find(Gfn gfn) const = 0;

  // Every slot, by ascending frame.
  virtual std::vector<MemorySlot> Slots() const = 0;
};

// Host memory of `bytes` bytes from `gpa` that lie in one slot, or null. `for_write` refuses
// read-only slots.
inline std::byte* HostRange(const GuestMemory& memory, Gpa gpa, std::uint64_t bytes,
                            bool for_write) {
  const MemorySlot* slot = memory.Find(GfnOf(gpa));
  if (slot == nullptr || (for_write && slot->read_only)) return nullptr;
  const std::uint64_t offset = gpa.bits() - GpaOf(slot->first).bits();
  if (bytes > slot->page_count * kPageBytes - offset) return nullptr;
  return slot->host + offset;
}

}  // namespace pagesaw
