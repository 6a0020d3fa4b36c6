// The memory of a virtual machine: RAM that it is made with and slots that come and go, be they
// moved or made read-only, while its vCPUs run; and who looks out for writes to them.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>
export module pagesaw.machine.vm_memory;

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.machine.guest_ram;
import pagesaw.machine.memory_slots;
import pagesaw.machine.vm_parts;
export import pagesaw.mmu.dirty_log;

export namespace pagesaw {

// From here to 4 GiB the machine has its devices: no slot may lie there.
inline constexpr std::uint64_t kDeviceWindowBase = 0xfec0'0000;
inline constexpr unsigned kMaxSlots = 128;

// Whoever may hold what was made from memory, or an address of it, without asking for the slot
// again: the processors and those who handle their exits.
class MemoryUsers {
 public:
  virtual ~MemoryUsers() = default;
  // Returns when nobody holds anything from before the call.
  virtual void ForgetMemory() = 0;
};

struct NewSlot {
  std::uint32_t id = 0;
  Gpa base = {};
  std::uint64_t bytes = 0;
  bool read_only = false;
};

// What was written in a slot since it was last asked for.
struct DirtyPages {
  MemorySlot slot;
  DirtyLogMethod method = DirtyLogMethod::kDirtyBits;
  std::vector<std::uint64_t> words;  // bit i % 64 of word i / 64 is page i of the slot
  std::uint64_t count = 0;           // of bits set
};

// Any thread may make any call; calls that change something wait for one another. Errors name the
// slot and what was wrong: NotFound for an id that no slot has.
class VmMemory {
 public:
  explicit VmMemory(MemoryUsers& users) : users_(users) {}
  VmMemory(const VmMemory&) = delete;
  VmMemory& operator=(const VmMemory&) = delete;

  // The RAM of a new VM. ResourceExhausted if the host refuses. All slots together may not become
  // larger than `limit_bytes`.
  absl::Status MakeRam(std::uint64_t bytes, std::uint64_t limit_bytes);
  // Who maps it. To be said once, before anything below; outlives this.
  void Attach(VmMmu& mmu) { mmu_ = &mmu; }

  const SlotTable& slots() const { return slots_; }
  std::uint64_t ResidentBytes() const;

  // Copies bytes as SlotTable does, and keeps backings where they are meanwhile.
  absl::Status Read(Gpa gpa, std::span<std::byte> bytes) const;
  absl::Status Write(Gpa gpa, std::span<const std::byte> bytes) const;
  // For whoever reads the guest's memory by host addresses, on a thread that is no vCPU's.
  std::shared_lock<std::shared_mutex> Hold() const { return std::shared_lock(backings_); }

  absl::StatusOr<MemorySlot> Find(std::uint32_t id) const;
  bool IsRam(std::uint32_t id) const { return id < ram_slots_; }

  // A slot of zeroes. InvalidArgument: an id or frames that are taken, sizes and addresses that are
  // no multiples of 4096 or out of reach. ResourceExhausted: the limit, or the host.
  absl::StatusOr<MemorySlot> Add(const NewSlot& slot);
  // What was in it is lost. FailedPrecondition for RAM that the VM was made with.
  absl::Status Delete(std::uint32_t id);
  // The same memory at another address. As Add and Delete; FailedPrecondition while it is logged.
  absl::StatusOr<MemorySlot> Move(std::uint32_t id, Gpa base);
  // Writes to a read-only slot are device accesses that no device takes.
  absl::StatusOr<MemorySlot> SetReadOnly(std::uint32_t id, bool read_only);

  // Dirty logging of a slot. Start: by D bits where SPTEs keep them, if no method is given;
  // FailedPrecondition if it is logged already, or the format keeps no D for the method. The
  // others: FailedPrecondition if it is not logged.
  absl::StatusOr<DirtyLogMethod> StartDirtyLog(std::uint32_t id,
                                               std::optional<DirtyLogMethod> method);
  absl::Status StopDirtyLog(std::uint32_t id);
  absl::StatusOr<DirtyPages> TakeDirtyLog(std::uint32_t id);
  std::optional<DirtyLogMethod> DirtyLogOf(std::uint32_t id) const;

  // How many pages of the slot were accessed by SPTEs since they were mapped or last asked for.
  absl::StatusOr<std::uint64_t> TakeWorkingSet(std::uint32_t id);

 private:
  absl::Status CheckPlace(std::uint32_t id, Gpa base, std::uint64_t bytes) const;
  absl::Status CheckNotRam(std::uint32_t id) const;
  bool ForgetLog(std::uint32_t id);
  void Changed(const MemorySlot& slot);

  MemoryUsers& users_;
  VmMmu* mmu_ = nullptr;
  SlotTable slots_;
  std::uint64_t limit_bytes_ = 0;
  std::uint32_t ram_slots_ = 0;  // the first ids are those of the RAM

  mutable std::mutex change_;           // one change at a time
  mutable std::shared_mutex backings_;  // held to use or to unmap them
  std::unique_ptr<GuestRam> ram_;
  std::map<std::uint32_t, std::unique_ptr<GuestRam>> added_;
  mutable std::mutex logs_mutex_;
  std::map<std::uint32_t, DirtyLogMethod> logs_;
};

}  // namespace pagesaw
