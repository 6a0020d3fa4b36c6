module;
#include <absl/container/flat_hash_map.h>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
module pagesaw.cpu.code_registry;

namespace pagesaw::cpu {
namespace {

// More changes at once than this: all code is forgotten instead.
constexpr std::size_t kMaxChanges = 64;

}  // namespace

using Member = CodeRegistry::Member;

Member::Member(CodeRegistry& registry, std::atomic<bool>& attention)
    : registry_(registry), attention_(attention) {
  while (index_ < kMaxProcessors && registry_.members_[index_] != nullptr) ++index_;
  if (index_ == kMaxProcessors) std::abort();  // our own bug: VMs have no more
  registry_.members_[index_] = this;
  registry_.member_count_.fetch_add(1);
}

Member::~Member() {
  registry_.members_[index_] = nullptr;
  registry_.member_count_.fetch_sub(1);
}

void Member::Enter() {
  if (registry_.alone()) return;
  const std::lock_guard lock(mutex_);
  running_ = true;
}

void Member::Leave() {
  if (registry_.alone()) return;
  CodeNews news;
  {
    const std::lock_guard lock(mutex_);
    running_ = false;
    // It stores nothing until it enters again, and drops its tags before it does.
    news.held = std::exchange(news_.held, {});
    if (!news.held.empty()) news_.drop_all_write_tags = true;
  }
  Confirm(news);
}

CodeNews Member::TakeNews() {
  const std::lock_guard lock(mutex_);
  has_news_.store(false, std::memory_order_relaxed);
  return std::exchange(news_, {});
}

void Member::Confirm(const CodeNews& news) {
  for (const CodeNews::HeldPage& held : news.held) {
    Shard& shard = registry_.ShardOf(held.page);
    const std::lock_guard lock(shard.mutex);
    const auto page = shard.pages.find(held.page);
    if (page == shard.pages.end() || page->second.serial != held.serial) continue;
    page->second.unconfirmed &= ~bit();
  }
}

bool Member::PostHeld(std::uint64_t page, std::uint64_t serial) {
  const std::lock_guard lock(mutex_);
  has_news_.store(true, std::memory_order_release);
  if (!running_) {
    news_.drop_all_write_tags = true;
    return false;
  }
  news_.held.push_back({page, serial});
  attention_.store(true);
  return true;
}

void Member::PostChange(std::uint64_t host, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (news_.changes.size() >= kMaxChanges) {
    news_.forget_all_code = true;
    news_.changes.clear();
  }
  if (!news_.forget_all_code) news_.changes.push_back({host, bytes});
  has_news_.store(true, std::memory_order_release);
  attention_.store(true);
}

void Member::Hold(std::uint64_t page) {
  Shard& shard = registry_.ShardOf(page);
  const std::lock_guard lock(shard.mutex);
  Page& entry = shard.pages[page];
  const bool first = entry.holders == 0;
  entry.holders |= bit();
  if (!first) return;
  entry.serial = registry_.next_serial_.fetch_add(1, std::memory_order_relaxed);
  entry.unconfirmed = 0;
  for (Member* member : registry_.members_) {
    if (member == nullptr || member == this) continue;
    if (member->PostHeld(page, entry.serial)) entry.unconfirmed |= member->bit();
  }
}

void Member::Release(std::uint64_t page) {
  Shard& shard = registry_.ShardOf(page);
  const std::lock_guard lock(shard.mutex);
  const auto entry = shard.pages.find(page);
  if (entry == shard.pages.end()) return;
  entry->second.holders &= ~bit();
  if (entry->second.holders == 0) shard.pages.erase(entry);
}

bool Member::IsSettled(std::uint64_t page) const {
  if (registry_.alone()) return true;
  const Shard& shard = registry_.ShardOf(page);
  const std::lock_guard lock(shard.mutex);
  const auto entry = shard.pages.find(page);
  return entry != shard.pages.end() && (entry->second.holders & bit()) != 0 &&
         (entry->second.unconfirmed & ~bit()) == 0;
}

bool Member::OthersHold(std::uint64_t page) const {
  if (registry_.alone()) return false;
  const Shard& shard = registry_.ShardOf(page);
  const std::lock_guard lock(shard.mutex);
  const auto entry = shard.pages.find(page);
  return entry != shard.pages.end() && (entry->second.holders & ~bit()) != 0;
}

void Member::Announce(std::uint64_t host, std::size_t bytes) {
  if (registry_.alone()) return;
  const std::uint64_t page = host >> 12;
  Shard& shard = registry_.ShardOf(page);
  const std::lock_guard lock(shard.mutex);
  const auto entry = shard.pages.find(page);
  if (entry == shard.pages.end() || (entry->second.holders & ~bit()) == 0) return;
  // The store comes after this: until the next look-up, what others read may be old.
  if (PostHeld(page, entry->second.serial)) entry->second.unconfirmed |= bit();
  for (std::uint64_t rest = entry->second.holders & ~bit(); rest != 0; rest &= rest - 1) {
    registry_.members_[static_cast<unsigned>(std::countr_zero(rest))]->PostChange(host, bytes);
  }
}

// Who holds the page from now on reads what is there now: whoever does so takes the same lock.
bool Member::Changed(std::uint64_t host, std::size_t bytes) {
  const std::uint64_t page = host >> 12;
  Shard& shard = registry_.ShardOf(page);
  const std::lock_guard lock(shard.mutex);
  const auto entry = shard.pages.find(page);
  if (entry == shard.pages.end() || (entry->second.holders & bit()) == 0) return false;
  PostChange(host, bytes);
  return true;
}

}  // namespace pagesaw::cpu
