// Guest memory for tests: slots of ordinary memory, entries written and read by address.
module;
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <vector>
export module pagesaw.mmu.test_memory;

import pagesaw.core.address;
import pagesaw.core.guest_memory;

export namespace pagesaw {

class TestMemory final : public GuestMemory {
 public:
  TestMemory() = default;
  // One slot of `bytes` bytes from address 0.
  explicit TestMemory(std::uint64_t bytes) { AddSlot(Gpa(0), bytes); }

  // Adds zeroed memory whose host address is aligned like `alignment`; returns the slot. What is
  // before and behind it cannot be touched.
  const MemorySlot& AddSlot(Gpa first, std::uint64_t bytes, bool read_only = false,
                            std::uint64_t alignment = 2u << 20) {
    const Block& block = blocks_.emplace_back(bytes + 3 * alignment);
    const std::uint64_t start = RoundUp(block.start() + kPageBytes, alignment);
    auto* host = reinterpret_cast<std::byte*>(start);
    if (mprotect(host, bytes, PROT_READ | PROT_WRITE) != 0) std::abort();
    return AddSlotOver(first, bytes, host, read_only);
  }

  // Adds a slot over memory of the caller's.
  const MemorySlot& AddSlotOver(Gpa first, std::uint64_t bytes, std::byte* host,
                                bool read_only = false) {
    slots_.push_back({.id = next_id_++,
                      .first = GfnOf(first),
                      .page_count = bytes / kPageBytes,
                      .host = host,
                      .read_only = read_only});
    active_.push_back(&slots_.back());
    return slots_.back();
  }

  // Removes the slot that holds `gfn`; its memory stays until the end.
  void RemoveSlot(Gfn gfn) {
    std::erase_if(active_, [gfn](const MemorySlot* slot) { return slot->Contains(gfn); });
  }

  const MemorySlot* Find(Gfn gfn) const override {
    for (const MemorySlot* slot : active_) {
      if (slot->Contains(gfn)) return slot;
    }
    return nullptr;
  }
  std::vector<MemorySlot> Slots() const override {
    std::vector<MemorySlot> result;
    result.reserve(active_.size());
    for (const MemorySlot* slot : active_) result.push_back(*slot);
    return result;
  }

  // `at` is aligned like T.
  template <typename T>
  void Write(Gpa at, T value) {
    *reinterpret_cast<T*>(Find(GfnOf(at))->HostOf(at)) = value;
  }
  template <typename T>
  T Read(Gpa at) const {
    return *reinterpret_cast<const T*>(Find(GfnOf(at))->HostOf(at));
  }

 private:
  // Addresses that nobody else uses, and nobody may until they are made accessible.
  class Block {
   public:
    explicit Block(std::uint64_t bytes)
        : bytes_(bytes),
          start_(
              mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
      if (start_ == MAP_FAILED) std::abort();
    }
    ~Block() { munmap(start_, bytes_); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    std::uint64_t start() const { return reinterpret_cast<std::uintptr_t>(start_); }

   private:
    std::uint64_t bytes_;
    void* start_;
  };

  static std::uint64_t RoundUp(std::uint64_t bytes, std::uint64_t to) {
    return (bytes + to - 1) / to * to;
  }

  std::deque<Block> blocks_;
  std::deque<MemorySlot> slots_;
  std::vector<const MemorySlot*> active_;
  std::uint32_t next_id_ = 0;
};

}  // namespace pagesaw
