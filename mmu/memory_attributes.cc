module;
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>
module pagesaw.mmu.memory_attributes;

namespace pagesaw {
namespace {

// What the guest can do in the end.
Rights Effective(const MemoryAttribute& attribute) {
  return attribute.policy == ViolationPolicy::kLog ? MemoryAttribute::kEverything
                                                   : attribute.rights;
}

// Appends `range`, or lets the last one grow.
void Append(std::vector<AttributeRange>& table, const AttributeRange& range) {
  if (range.attribute.unrestricted()) return;
  if (!table.empty() && table.back().attribute == range.attribute &&
      table.back().last() + 1 == range.first.number) {
    table.back().count += range.count;
  } else {
    table.push_back(range);
  }
}

}  // namespace

MemoryAttributes::Table::const_iterator MemoryAttributes::RangeAt(std::uint64_t frame) const {
  return std::lower_bound(
      table_.begin(), table_.end(), frame,
      [](const AttributeRange& range, std::uint64_t number) { return range.last() < number; });
}

MemoryAttribute MemoryAttributes::Find(Gfn gfn) const {
  const std::shared_lock lock(mutex_);
  const auto found = RangeAt(gfn.number);
  return found != table_.end() && found->first <= gfn ? found->attribute : MemoryAttribute{};
}

bool MemoryAttributes::Uniform(Gfn first, std::uint64_t count) const {
  if (!any() || count == 1) return true;
  const std::shared_lock lock(mutex_);
  const auto found = RangeAt(first.number);
  if (found == table_.end() || found->first.number > first.number + (count - 1)) return true;
  return found->first <= first && found->last() >= first.number + (count - 1) &&
         found->attribute.policy != ViolationPolicy::kLog;
}

Rights MemoryAttributes::LeastRights(Gfn first, std::uint64_t count) const {
  Rights rights = MemoryAttribute::kEverything;
  const std::shared_lock lock(mutex_);
  const std::uint64_t last = first.number + (count - 1);
  for (auto range = RangeAt(first.number); range != table_.end() && range->first.number <= last;
       ++range) {
    rights = rights & Effective(range->attribute);
  }
  return rights;
}

std::vector<AttributeRange> MemoryAttributes::List() const {
  const std::shared_lock lock(mutex_);
  return table_;
}

// Whether somebody may do less after `change`, or is to be watched.
bool MemoryAttributes::Restricts(const AttributeRange& change) const {
  const Rights after = change.attribute.rights;
  std::uint64_t frame = change.first.number;
  for (auto range = RangeAt(frame); frame <= change.last(); ++range) {
    const bool outside = range == table_.end() || range->first.number > frame;
    const Rights before = outside ? MemoryAttribute::kEverything : Effective(range->attribute);
    if (!after.Covers(before)) return true;
    if (outside) {
      if (range == table_.end()) return false;
      frame = range->first.number;
      if (frame > change.last()) return false;
      if (!after.Covers(Effective(range->attribute))) return true;
    }
    frame = range->last() + 1;
  }
  return false;
}

MemoryAttributes::Change MemoryAttributes::Set(Gfn first, std::uint64_t count,
                                               const MemoryAttribute& attribute) {
  const std::unique_lock lock(mutex_);
  const AttributeRange change = {first, count,
                                 attribute.unrestricted() ? MemoryAttribute{} : attribute};
  Table table;
  table.reserve(table_.size() + 2);
  auto range = table_.begin();
  for (; range != table_.end() && range->last() < first.number; ++range) Append(table, *range);
  if (range != table_.end() && range->first < first) {
    Append(table, {range->first, first.number - range->first.number, range->attribute});
  }
  Append(table, change);
  for (; range != table_.end(); ++range) {
    if (range->last() <= change.last()) continue;
    const std::uint64_t begin = std::max(range->first.number, change.last() + 1);
    Append(table, {Gfn{begin}, range->last() - begin + 1, range->attribute});
  }
  if (table.size() > limit_) return Change::kRefused;
  if (table == table_) return Change::kNone;
  const bool restricts = Restricts(change);
  table_ = std::move(table);
  any_.store(!table_.empty(), std::memory_order_release);
  return restricts ? Change::kRestricted : Change::kWidened;
}

}  // namespace pagesaw
