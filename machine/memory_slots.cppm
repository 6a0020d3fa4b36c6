// The memory slots of a VM, and bulk access to what they hold. Lookups read one immutable table
// without locks; a change publishes a new one.
module;
#include <absl/status/status.h>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>
export module pagesaw.machine.memory_slots;

import pagesaw.core.address;
import pagesaw.core.guest_memory;

export namespace pagesaw {

// RAM reaches up to here; the rest of it lies above 4 GiB. Between them is room for devices.
inline constexpr std::uint64_t kLowRamMaxBytes = std::uint64_t{3} << 30;
inline constexpr std::uint64_t kHighRamBase = std::uint64_t{4} << 30;

// A piece of RAM: where the guest sees it, and where it lies in its backing.
struct RamRange {
  Gpa base;
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;
};

// How `memory_bytes` of RAM are laid out.
std::vector<RamRange> RamLayout(std::uint64_t memory_bytes);

class SlotTable final : public GuestMemory {
 public:
  SlotTable();
  ~SlotTable() override;
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;

  // InvalidArgument: an empty or unaligned slot, an id that is taken, frames beyond 2^40, or frames
  // that another slot has.
  absl::Status Add(const MemorySlot& slot);
  // Puts `slot` in the place of the one with its id. NotFound for an unknown id, else as Add.
  absl::Status Replace(const MemorySlot& slot);
  // NotFound for an unknown id. The caller flushes processors before it gives the backing up.
  absl::Status Remove(std::uint32_t id);

  const MemorySlot* Find(Gfn gfn) const override;
  std::vector<MemorySlot> Slots() const override;

  // Copies bytes, across slots. OutOfRange if one of them lies in no slot; nothing is copied then.
  // Aligned quadwords are copied whole, so that a table entry is never seen torn. `Write` is the
  // host's: it does not respect read-only slots.
  absl::Status Read(Gpa gpa, std::span<std::byte> bytes) const;
  absl::Status Write(Gpa gpa, std::span<const std::byte> bytes) const;
  // The same for `byte_count` zeroes, without touching pages that are zero because never written.
  absl::Status Clear(Gpa gpa, std::uint64_t byte_count) const;

 private:
  using Table = std::vector<MemorySlot>;  // by ascending frame

  static absl::Status Insert(Table& table, const MemorySlot& slot);
  absl::Status CheckRange(Gpa gpa, std::uint64_t byte_count) const;
  void Publish(Table table);

  std::atomic<const Table*> current_;
  std::mutex change_;
  // Every table there ever was: a slot found stays readable. Grows with changes by the host only.
  std::vector<std::unique_ptr<const Table>> tables_;
};

}  // namespace pagesaw
