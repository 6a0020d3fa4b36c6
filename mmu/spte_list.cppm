// A set of SPTEs that have something in common: those that map one frame (an rmap entry), or those
// that link one shadow page (its parents). One costs nothing, many a chain of blocks.
module;
#include <cstddef>
#include <cstdint>
export module pagesaw.mmu.spte_list;

export namespace pagesaw {

class SpteList {
 public:
  SpteList() = default;
  ~SpteList() { Clear(); }
  SpteList(const SpteList&) = delete;
  SpteList& operator=(const SpteList&) = delete;

  constexpr bool empty() const { return value_ == 0; }
  std::size_t size() const;
  // Some SPTE of a list that is not empty: the one that is cheapest to remove.
  std::uint64_t* Some() const;

  // Adds `spte`, which is not in the list.
  void Add(std::uint64_t* spte);
  // Removes `spte`, which is in the list. Costs a search of the chain.
  void Remove(std::uint64_t* spte);
  void Clear();

  // Calls `visit(spte)` for each. The list must not change meanwhile.
  template <typename Visit>
  void ForEach(Visit visit) const {
    if (value_ == 0) return;
    if ((value_ & kMany) == 0) return visit(reinterpret_cast<std::uint64_t*>(value_));
    for (const Block* block = head(); block != nullptr; block = block->next) {
      for (unsigned i = 0; i < block->count; ++i) visit(block->sptes[i]);
    }
  }

 private:
  static constexpr unsigned kPerBlock = 13;
  static constexpr std::uintptr_t kMany = 1;

  // Only the first block of a chain is ever not full.
  struct Block {
    Block* next = nullptr;
    std::uint32_t count = 0;
    std::uint64_t total = 0;  // of the chain from here on
    std::uint64_t* sptes[kPerBlock];
  };
  static_assert(sizeof(Block) == 128);

  Block* head() const { return reinterpret_cast<Block*>(value_ & ~kMany); }
  void SetHead(Block* block) { value_ = reinterpret_cast<std::uintptr_t>(block) | kMany; }

  std::uintptr_t value_ = 0;  // 0, the one SPTE, or the first block and kMany
};

}  // namespace pagesaw
