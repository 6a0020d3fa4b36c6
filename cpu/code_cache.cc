module;
#include <absl/container/flat_hash_map.h>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <new>
#include <vector>
module pagesaw.cpu.code_cache;

import pagesaw.cpu.dispatch;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t PageOf(std::uint64_t host) { return host >> 12; }

// The 64-byte lines of its page that [host, host + bytes) touches, as a mask. `bytes` is not 0 and
// the range does not leave the page.
constexpr std::uint64_t LinesOf(std::uint64_t host, std::size_t bytes) {
  const unsigned first = host >> 6 & 63;
  const unsigned last = (host + bytes - 1) >> 6 & 63;
  return (~std::uint64_t{0} >> (63 - last)) & (~std::uint64_t{0} << first);
}

}  // namespace

void Forgotten(Core& core, const Op* op) [[clang::preserve_none]] {
  core.rip = core.RipOf(op);
  core.budget += op->remaining;
  [[clang::musttail]] return Leave(core, op);
}

void CodeCache::FreeArena::operator()(Op* ops) const { ::operator delete(ops); }

CodeCache::CodeCache(CodeRegistry::Member* member)
    : member_(member), arena_(static_cast<Op*>(::operator new(kMaxOps * sizeof(Op)))) {}
CodeCache::~CodeCache() = default;

Block* CodeCache::Find(const std::byte* host, CodeMode mode) {
  const auto it = by_address_.find(KeyOf(host, mode));
  return it == by_address_.end() ? nullptr : it->second;
}

Op* CodeCache::Reserve(std::size_t ops) {
  if (used_ + ops > kMaxOps || pages_.size() >= kMaxPages) Clear();
  return arena_.get() + used_;
}

bool CodeCache::Hold(const std::byte* host) {
  const std::uint64_t page = PageOf(reinterpret_cast<std::uint64_t>(host));
  if (!pages_.try_emplace(page).second) return false;
  if (member_ != nullptr) member_->Hold(page);
  return true;
}

bool CodeCache::MayKeep(const std::byte* host) const {
  return member_ == nullptr || member_->IsSettled(PageOf(reinterpret_cast<std::uint64_t>(host)));
}

Block* CodeCache::Keep(const std::byte* host, std::size_t bytes, CodeMode mode, Op* ops,
                       std::size_t used, std::uint32_t instructions) {
  used_ += used;
  blocks_.push_back(Block{ops, static_cast<std::uint32_t>(used), instructions});
  Block* block = &blocks_.back();
  const std::uint64_t key = KeyOf(host, mode);
  by_address_[key] = block;
  const auto address = reinterpret_cast<std::uint64_t>(host);
  Page& page = pages_[PageOf(address)];
  page.blocks.push_back(key);
  page.code_lines |= LinesOf(address, bytes);
  return block;
}

void CodeCache::Clear() {
  by_address_.clear();
  if (member_ != nullptr) {
    for (const auto& [page, unused] : pages_) member_->Release(page);
  }
  pages_.clear();
  blocks_.clear();
  used_ = 0;
  ++generation_;
}

bool CodeCache::HoldsCode(std::uint64_t host) const {
  return pages_.contains(PageOf(host)) || (member_ != nullptr && member_->OthersHold(PageOf(host)));
}

void CodeCache::Changed(std::uint64_t host, std::size_t bytes) {
  if (member_ != nullptr) member_->Announce(host, bytes);
  Forget(host, bytes);
}

void CodeCache::Forget(std::uint64_t host, std::size_t bytes) {
  const auto it = pages_.find(PageOf(host));
  if (it == pages_.end() || (it->second.code_lines & LinesOf(host, bytes)) == 0) return;
  for (const std::uint64_t key : it->second.blocks) {
    const auto block = by_address_.find(key);
    // The ops stay where they are, so that whoever executes them comes out by himself.
    for (std::uint32_t i = 0; i < block->second->op_count; ++i) {
      block->second->ops[i].run = &Forgotten;
    }
    by_address_.erase(block);
  }
  if (member_ != nullptr) member_->Release(PageOf(host));
  pages_.erase(it);
  ++generation_;
}

}  // namespace pagesaw::cpu
