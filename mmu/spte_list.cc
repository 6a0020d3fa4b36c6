module;
#include <cassert>
#include <cstddef>
#include <cstdint>
module pagesaw.mmu.spte_list;

namespace pagesaw {

std::size_t SpteList::size() const {
  if (value_ == 0) return 0;
  return (value_ & kMany) == 0 ? 1 : head()->total;
}

std::uint64_t* SpteList::Some() const {
  if ((value_ & kMany) == 0) return reinterpret_cast<std::uint64_t*>(value_);
  return head()->sptes[head()->count - 1];
}

void SpteList::Add(std::uint64_t* spte) {
  if (value_ == 0) {
    value_ = reinterpret_cast<std::uintptr_t>(spte);
    return;
  }
  if ((value_ & kMany) == 0) {
    auto* block = new Block{.count = 1, .total = 1, .sptes = {}};
    block->sptes[0] = reinterpret_cast<std::uint64_t*>(value_);
    SetHead(block);
  }
  if (head()->count == kPerBlock) {
    SetHead(new Block{.next = head(), .total = head()->total, .sptes = {}});
  }
  head()->sptes[head()->count++] = spte;
  ++head()->total;
}

void SpteList::Remove(std::uint64_t* spte) {
  if ((value_ & kMany) == 0) {
    assert(value_ == reinterpret_cast<std::uintptr_t>(spte));
    value_ = 0;
    return;
  }
  Block* first = head();
  std::uint64_t* const last = first->sptes[first->count - 1];
  bool found = false;
  for (Block* block = first; block != nullptr && !found; block = block->next) {
    for (unsigned i = 0; i < block->count && !found; ++i) {
      if (block->sptes[i] != spte) continue;
      block->sptes[i] = last;
      found = true;
    }
  }
  assert(found);
  --first->total;
  if (--first->count == 0) {
    Block* next = first->next;
    delete first;
    if (next == nullptr) {
      value_ = 0;
      return;
    }
    SetHead(next);
  }
  if (head()->total == 1) {
    Block* only = head();
    value_ = reinterpret_cast<std::uintptr_t>(only->sptes[0]);
    delete only;
  }
}

void SpteList::Clear() {
  if ((value_ & kMany) != 0) {
    for (Block* block = head(); block != nullptr;) {
      Block* next = block->next;
      delete block;
      block = next;
    }
  }
  value_ = 0;
}

}  // namespace pagesaw
