module;
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>
module pagesaw.mmu.dirty_log;

namespace pagesaw {

DirtyLog::DirtyLog(const MemorySlot& slot, DirtyLogMethod method)
    : slot_(slot),
      method_(method),
      words_(std::make_unique<std::atomic<std::uint64_t>[]>(word_count())) {}

DirtyLogs::~DirtyLogs() = default;

std::span<const std::shared_ptr<DirtyLog>> DirtyLogs::logs() const {
  const Table* table = current_.load(std::memory_order_acquire);
  if (table == nullptr) return {};
  return *table;
}

void DirtyLogs::Publish(Table table) {
  const bool none = table.empty();
  tables_.push_back(std::make_unique<const Table>(std::move(table)));
  current_.store(none ? nullptr : tables_.back().get());
  // Whoever begins to mark from now on sees the new table. If one is marking, the next change
  // frees what this one leaves.
  if (markers_.load() == 0) tables_.erase(tables_.begin(), tables_.end() - 1);
}

void DirtyLogs::Start(const MemorySlot& slot, DirtyLogMethod method) {
  Table table(logs().begin(), logs().end());
  table.push_back(std::make_shared<DirtyLog>(slot, method));
  Publish(std::move(table));
}

void DirtyLogs::Stop(std::uint32_t slot_id) {
  Table table(logs().begin(), logs().end());
  std::erase_if(table, [slot_id](const auto& log) { return log->slot().id == slot_id; });
  Publish(std::move(table));
}

DirtyLog* DirtyLogs::Find(std::uint32_t slot_id) const {
  for (const auto& log : logs()) {
    if (log->slot().id == slot_id) return log.get();
  }
  return nullptr;
}

DirtyLog* DirtyLogs::FindFrame(Gfn gfn) const {
  for (const auto& log : logs()) {
    if (log->slot().Contains(gfn)) return log.get();
  }
  return nullptr;
}

bool DirtyLogs::AnyIn(Gfn first, std::uint64_t count) const {
  for (const auto& log : logs()) {
    const MemorySlot& slot = log->slot();
    if (slot.Contains(first) || slot.first.number - first.number < count) return true;
  }
  return false;
}

template <typename Visit>
void DirtyLogs::ForEachUnlocked(Visit visit) const {
  if (empty()) return;
  markers_.fetch_add(1);
  if (const Table* table = current_.load()) {
    for (const auto& log : *table) visit(*log);
  }
  markers_.fetch_sub(1);
}

void DirtyLogs::Mark(Gpa gpa, std::uint64_t bytes) const {
  if (bytes == 0) return;
  const std::uint64_t first = GfnOf(gpa).number;
  const std::uint64_t last = (gpa.bits() + (bytes - 1)) >> kPageShift;
  ForEachUnlocked([=](DirtyLog& log) {
    const MemorySlot& slot = log.slot();
    const std::uint64_t begin = std::max(first, slot.first.number);
    const std::uint64_t end = std::min(last + 1, slot.first.number + slot.page_count);
    for (std::uint64_t gfn = begin; gfn < end; ++gfn) log.Mark(gfn - slot.first.number);
  });
}

void DirtyLogs::MarkHost(Hpa host) const {
  ForEachUnlocked([host](DirtyLog& log) {
    const MemorySlot& slot = log.slot();
    const auto start = reinterpret_cast<std::uintptr_t>(slot.host);
    const std::uint64_t page = (host.bits() - start) >> kPageShift;
    if (host.bits() >= start && page < slot.page_count) log.Mark(page);
  });
}

}  // namespace pagesaw
