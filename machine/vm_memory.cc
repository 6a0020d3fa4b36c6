module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_format.h>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <utility>
#include <vector>
module pagesaw.machine.vm_memory;

namespace pagesaw {

absl::Status VmMemory::MakeRam(std::uint64_t bytes, std::uint64_t limit_bytes) {
  auto made = GuestRam::Create(bytes);
  if (!made.ok()) return made.status();
  ram_ = *std::move(made);
  limit_bytes_ = limit_bytes;
  for (const RamRange& range : RamLayout(bytes)) {
    absl::Status status = slots_.Add({.id = ram_slots_++,
                                      .first = GfnOf(range.base),
                                      .page_count = range.bytes >> kPageShift,
                                      .host = ram_->host() + range.offset});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::uint64_t VmMemory::ResidentBytes() const {
  const auto hold = Hold();
  std::uint64_t bytes = ram_->ResidentBytes();
  for (const auto& [id, backing] : added_) bytes += backing->ResidentBytes();
  return bytes;
}

absl::Status VmMemory::Read(Gpa gpa, std::span<std::byte> bytes) const {
  const auto hold = Hold();
  return slots_.Read(gpa, bytes);
}

absl::Status VmMemory::Write(Gpa gpa, std::span<const std::byte> bytes) const {
  const auto hold = Hold();
  return slots_.Write(gpa, bytes);
}

// -- slots

absl::StatusOr<MemorySlot> VmMemory::Find(std::uint32_t id) const {
  for (const MemorySlot& slot : slots_.Slots()) {
    if (slot.id == id) return slot;
  }
  return absl::NotFoundError(absl::StrFormat("slot %d: there is none", id));
}

absl::Status VmMemory::CheckNotRam(std::uint32_t id) const {
  if (!IsRam(id)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("slot %d: it is RAM that the VM was made with, which stays where it is", id));
}

absl::Status VmMemory::CheckPlace(std::uint32_t id, Gpa base, std::uint64_t bytes) const {
  if (bytes == 0 || bytes % kPageBytes != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "slot %d: size of %d bytes: must be a positive multiple of %d", id, bytes, kPageBytes));
  }
  if (base.bits() % kPageBytes != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "slot %d: address 0x%x: must be a multiple of %d", id, base.bits(), kPageBytes));
  }
  const std::uint64_t end = base.bits() + bytes;
  const bool below = end >= base.bits() && end <= kDeviceWindowBase;
  if (below || base.bits() >= kHighRamBase) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("slot %d: address 0x%x, %d bytes: reaches into 0x%x to 0x%x, where the "
                      "machine has its devices",
                      id, base.bits(), bytes, kDeviceWindowBase, kHighRamBase - 1));
}

void VmMemory::Changed(const MemorySlot& slot) {
  mmu_->ZapFrames(slot.first, slot.page_count);
  users_.ForgetMemory();
}

absl::StatusOr<MemorySlot> VmMemory::Add(const NewSlot& wanted) {
  if (absl::Status status = CheckPlace(wanted.id, wanted.base, wanted.bytes); !status.ok()) {
    return status;
  }
  const std::lock_guard lock(change_);
  std::uint64_t bytes = wanted.bytes;
  const std::vector<MemorySlot> present = slots_.Slots();
  for (const MemorySlot& other : present) bytes += other.page_count * kPageBytes;
  if (bytes > limit_bytes_ || bytes < wanted.bytes || present.size() >= kMaxSlots) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("slot %d: %d bytes more: a VM may have %d slots and %d bytes of memory",
                        wanted.id, wanted.bytes, kMaxSlots, limit_bytes_));
  }
  auto backing = GuestRam::Create(wanted.bytes);
  if (!backing.ok()) return backing.status();
  const MemorySlot slot = {.id = wanted.id,
                           .first = GfnOf(wanted.base),
                           .page_count = wanted.bytes >> kPageShift,
                           .host = (*backing)->host(),
                           .read_only = wanted.read_only};
  if (absl::Status status = slots_.Add(slot); !status.ok()) return status;
  {
    const std::lock_guard use(backings_);
    added_[wanted.id] = *std::move(backing);
  }
  Changed(slot);  // whoever found no memory there remembers that
  return slot;
}

absl::Status VmMemory::Delete(std::uint32_t id) {
  const std::lock_guard lock(change_);
  const auto slot = Find(id);
  if (!slot.ok()) return slot.status();
  if (absl::Status status = CheckNotRam(id); !status.ok()) return status;
  if (absl::Status status = slots_.Remove(id); !status.ok()) return status;
  if (ForgetLog(id)) mmu_->StopDirtyLog(id);
  Changed(*slot);
  // Nobody can reach it any more but who reads memory right now.
  const std::lock_guard use(backings_);
  added_.erase(id);
  return absl::OkStatus();
}

absl::StatusOr<MemorySlot> VmMemory::Move(std::uint32_t id, Gpa base) {
  const std::lock_guard lock(change_);
  const auto slot = Find(id);
  if (!slot.ok()) return slot.status();
  if (absl::Status status = CheckNotRam(id); !status.ok()) return status;
  if (absl::Status status = CheckPlace(id, base, slot->page_count * kPageBytes); !status.ok()) {
    return status;
  }
  if (DirtyLogOf(id).has_value()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("slot %d: its writes are logged by where it is: stop that first", id));
  }
  MemorySlot moved = *slot;
  moved.first = GfnOf(base);
  if (absl::Status status = slots_.Replace(moved); !status.ok()) return status;
  mmu_->ZapFrames(moved.first, moved.page_count);
  Changed(*slot);
  return moved;
}

absl::StatusOr<MemorySlot> VmMemory::SetReadOnly(std::uint32_t id, bool read_only) {
  const std::lock_guard lock(change_);
  const auto slot = Find(id);
  if (!slot.ok()) return slot.status();
  MemorySlot changed = *slot;
  changed.read_only = read_only;
  if (absl::Status status = slots_.Replace(changed); !status.ok()) return status;
  Changed(changed);
  return changed;
}

// -- writes and accesses

absl::StatusOr<DirtyLogMethod> VmMemory::StartDirtyLog(std::uint32_t id,
                                                       std::optional<DirtyLogMethod> method) {
  const std::lock_guard lock(change_);
  const auto slot = Find(id);
  if (!slot.ok()) return slot.status();
  if (DirtyLogOf(id).has_value()) {
    return absl::FailedPreconditionError(absl::StrFormat("slot %d: is logged already", id));
  }
  const bool has_dirty_bits = mmu_->KeepsDirtyBits();
  const DirtyLogMethod chosen =
      method.value_or(has_dirty_bits ? DirtyLogMethod::kDirtyBits : DirtyLogMethod::kWriteProtect);
  if (!mmu_->StartDirtyLog(*slot, chosen)) {
    return absl::FailedPreconditionError(
        absl::StrFormat("slot %d: SPTEs of this format keep no D to log writes by", id));
  }
  const std::lock_guard logs(logs_mutex_);
  logs_[id] = chosen;
  return chosen;
}

// False if there is none.
bool VmMemory::ForgetLog(std::uint32_t id) {
  const std::lock_guard logs(logs_mutex_);
  return logs_.erase(id) != 0;
}

absl::Status VmMemory::StopDirtyLog(std::uint32_t id) {
  const std::lock_guard lock(change_);
  if (const auto slot = Find(id); !slot.ok()) return slot.status();
  if (!ForgetLog(id)) {
    return absl::FailedPreconditionError(absl::StrFormat("slot %d: is not logged", id));
  }
  mmu_->StopDirtyLog(id);
  return absl::OkStatus();
}

absl::StatusOr<DirtyPages> VmMemory::TakeDirtyLog(std::uint32_t id) {
  const std::lock_guard lock(change_);
  const auto slot = Find(id);
  if (!slot.ok()) return slot.status();
  const std::optional<DirtyLogMethod> method = DirtyLogOf(id);
  auto words = method.has_value() ? mmu_->TakeDirtyLog(id) : std::nullopt;
  if (!words.has_value()) {
    return absl::FailedPreconditionError(absl::StrFormat("slot %d: is not logged", id));
  }
  DirtyPages pages = {.slot = *slot, .method = *method, .words = *std::move(words)};
  for (const std::uint64_t word : pages.words) {
    pages.count += static_cast<std::uint64_t>(std::popcount(word));
  }
  return pages;
}

std::optional<DirtyLogMethod> VmMemory::DirtyLogOf(std::uint32_t id) const {
  const std::lock_guard logs(logs_mutex_);
  const auto found = logs_.find(id);
  if (found == logs_.end()) return std::nullopt;
  return found->second;
}

absl::StatusOr<std::uint64_t> VmMemory::TakeWorkingSet(std::uint32_t id) {
  const std::lock_guard lock(change_);
  const auto slot = Find(id);
  if (!slot.ok()) return slot.status();
  return mmu_->TestAndClearYoung(slot->first, slot->page_count);
}

}  // namespace pagesaw
