module;
#include <absl/status/status.h>
#include <absl/strings/str_format.h>
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>
module pagesaw.machine.memory_slots;

namespace pagesaw {
namespace {

constexpr std::uint64_t kFrameLimit = std::uint64_t{1} << 40;  // 52 bits of address

bool IsWordAligned(const std::byte* at) { return (reinterpret_cast<std::uintptr_t>(at) & 7) == 0; }

std::atomic_ref<std::uint64_t> Word(std::byte* at) {
  return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(at));
}

std::atomic_ref<std::byte> Byte(std::byte* at) { return std::atomic_ref<std::byte>(*at); }

// The guest may read and write meanwhile: every access is atomic.
void CopyOut(std::byte* guest, std::byte* out, std::uint64_t count) {
  while (count > 0) {
    if (count >= 8 && IsWordAligned(guest)) {
      const std::uint64_t word = Word(guest).load(std::memory_order_relaxed);
      std::memcpy(out, &word, 8);
      guest += 8, out += 8, count -= 8;
    } else {
      *out = Byte(guest).load(std::memory_order_relaxed);
      ++guest, ++out, --count;
    }
  }
}

void CopyIn(std::byte* guest, const std::byte* in, std::uint64_t count) {
  while (count > 0) {
    if (count >= 8 && IsWordAligned(guest)) {
      std::uint64_t word = 0;
      std::memcpy(&word, in, 8);
      Word(guest).store(word, std::memory_order_relaxed);
      guest += 8, in += 8, count -= 8;
    } else {
      Byte(guest).store(*in, std::memory_order_relaxed);
      ++guest, ++in, --count;
    }
  }
}

// Reading a page that was never written maps the host's shared zero page, which costs nothing.
void ClearBytes(std::byte* guest, std::uint64_t count) {
  while (count > 0) {
    if (count >= 8 && IsWordAligned(guest)) {
      if (Word(guest).load(std::memory_order_relaxed) != 0) {
        Word(guest).store(0, std::memory_order_relaxed);
      }
      guest += 8, count -= 8;
    } else {
      if (Byte(guest).load(std::memory_order_relaxed) != std::byte{0}) {
        Byte(guest).store(std::byte{0}, std::memory_order_relaxed);
      }
      ++guest, --count;
    }
  }
}

// Calls `copy(host, offset, bytes)` for each piece of a range that lies in slots whole.
template <typename Copy>
void ForEachPiece(const SlotTable& slots, Gpa gpa, std::uint64_t byte_count, Copy copy) {
  std::uint64_t done = 0;
  while (done < byte_count) {
    const Gpa at(gpa.bits() + done);
    const MemorySlot* slot = slots.Find(GfnOf(at));
    if (slot == nullptr) return;  // removed meanwhile
    const std::uint64_t room =
        slot->page_count * kPageBytes - (at.bits() - GpaOf(slot->first).bits());
    const std::uint64_t piece = std::min(room, byte_count - done);
    copy(slot->HostOf(at), done, piece);
    done += piece;
  }
}

}  // namespace

std::vector<RamRange> RamLayout(std::uint64_t memory_bytes) {
  const std::uint64_t low = std::min(memory_bytes, kLowRamMaxBytes);
  std::vector<RamRange> ranges = {{.base = Gpa(0), .bytes = low, .offset = 0}};
  if (memory_bytes > low) {
    ranges.push_back({.base = Gpa(kHighRamBase), .bytes = memory_bytes - low, .offset = low});
  }
  return ranges;
}

SlotTable::SlotTable() { Publish({}); }
SlotTable::~SlotTable() = default;

void SlotTable::Publish(Table table) {
  tables_.push_back(std::make_unique<const Table>(std::move(table)));
  current_.store(tables_.back().get(), std::memory_order_release);
}

absl::Status SlotTable::Insert(Table& table, const MemorySlot& slot) {
  if (slot.page_count == 0) {
    return absl::InvalidArgumentError(absl::StrFormat("slot %d: has no pages", slot.id));
  }
  if (slot.host == nullptr || reinterpret_cast<std::uintptr_t>(slot.host) % kPageBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("slot %d: its backing is not page aligned", slot.id));
  }
  if (slot.first.number >= kFrameLimit || slot.page_count > kFrameLimit - slot.first.number) {
    return absl::InvalidArgumentError(
        absl::StrFormat("slot %d: frames 0x%x and %d more reach beyond 52 address bits", slot.id,
                        slot.first.number, slot.page_count));
  }
  for (const MemorySlot& other : table) {
    if (other.id == slot.id) {
      return absl::InvalidArgumentError(absl::StrFormat("slot %d: the id is taken", slot.id));
    }
    if (other.Contains(slot.first) || slot.Contains(other.first)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("slot %d: overlaps slot %d", slot.id, other.id));
    }
  }
  table.push_back(slot);
  std::sort(table.begin(), table.end(),
            [](const MemorySlot& a, const MemorySlot& b) { return a.first < b.first; });
  return absl::OkStatus();
}

absl::Status SlotTable::Add(const MemorySlot& slot) {
  const std::lock_guard lock(change_);
  Table table = *current_.load(std::memory_order_relaxed);
  if (absl::Status status = Insert(table, slot); !status.ok()) return status;
  Publish(std::move(table));
  return absl::OkStatus();
}

absl::Status SlotTable::Replace(const MemorySlot& slot) {
  const std::lock_guard lock(change_);
  Table table = *current_.load(std::memory_order_relaxed);
  if (std::erase_if(table, [&](const MemorySlot& old) { return old.id == slot.id; }) == 0) {
    return absl::NotFoundError(absl::StrFormat("slot %d: there is none", slot.id));
  }
  if (absl::Status status = Insert(table, slot); !status.ok()) return status;
  Publish(std::move(table));
  return absl::OkStatus();
}

absl::Status SlotTable::Remove(std::uint32_t id) {
  const std::lock_guard lock(change_);
  Table table = *current_.load(std::memory_order_relaxed);
  if (std::erase_if(table, [id](const MemorySlot& slot) { return slot.id == id; }) == 0) {
    return absl::NotFoundError(absl::StrFormat("slot %d: there is none", id));
  }
  Publish(std::move(table));
  return absl::OkStatus();
}

const MemorySlot* SlotTable::Find(Gfn gfn) const {
  for (const MemorySlot& slot : *current_.load(std::memory_order_acquire)) {
    if (slot.Contains(gfn)) return &slot;
  }
  return nullptr;
}

std::vector<MemorySlot> SlotTable::Slots() const {
  return *current_.load(std::memory_order_acquire);
}

absl::Status SlotTable::CheckRange(Gpa gpa, std::uint64_t byte_count) const {
  std::uint64_t checked = 0;
  while (checked < byte_count) {
    const auto at = CheckedAdd(gpa, checked);
    const MemorySlot* slot = at.has_value() ? Find(GfnOf(*at)) : nullptr;
    if (slot == nullptr) {
      return absl::OutOfRangeError(absl::StrFormat("guest memory 0x%x, %d bytes: no RAM at 0x%x",
                                                   gpa.bits(), byte_count, gpa.bits() + checked));
    }
    checked += slot->page_count * kPageBytes - (at->bits() - GpaOf(slot->first).bits());
  }
  return absl::OkStatus();
}

absl::Status SlotTable::Read(Gpa gpa, std::span<std::byte> bytes) const {
  if (absl::Status status = CheckRange(gpa, bytes.size()); !status.ok()) return status;
  ForEachPiece(*this, gpa, bytes.size(),
               [bytes](std::byte* host, std::uint64_t offset, std::uint64_t count) {
                 CopyOut(host, bytes.data() + offset, count);
               });
  return absl::OkStatus();
}

absl::Status SlotTable::Write(Gpa gpa, std::span<const std::byte> bytes) const {
  if (absl::Status status = CheckRange(gpa, bytes.size()); !status.ok()) return status;
  ForEachPiece(*this, gpa, bytes.size(),
               [bytes](std::byte* host, std::uint64_t offset, std::uint64_t count) {
                 CopyIn(host, bytes.data() + offset, count);
               });
  return absl::OkStatus();
}

absl::Status SlotTable::Clear(Gpa gpa, std::uint64_t byte_count) const {
  if (absl::Status status = CheckRange(gpa, byte_count); !status.ok()) return status;
  ForEachPiece(*this, gpa, byte_count, [](std::byte* host, std::uint64_t, std::uint64_t count) {
    ClearBytes(host, count);
  });
  return absl::OkStatus();
}

}  // namespace pagesaw
