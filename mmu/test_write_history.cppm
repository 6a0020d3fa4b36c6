// For tests: the writes to memory since some time, so that memory can be looked at as it was.
module;
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>
export module pagesaw.mmu.test_write_history;

export namespace pagesaw {

class WriteHistory {
 public:
  // A moment later than every one before.
  std::uint64_t Tick() { return ++now_; }

  // The eight bytes at `host` are about to be written; `unseen`: nobody will be told.
  void Add(std::byte* host, bool unseen) {
    auto* const at = reinterpret_cast<std::uint64_t*>(host);
    writes_.push_back({.time = Tick(), .at = at, .other = *at, .unseen = unseen});
  }
  std::size_t size() const { return writes_.size(); }
  void Clear() { writes_.clear(); }

  // Whether `holds(from, to)` for memory as it was between two moments, before a write that nobody
  // was told of or an earlier one. Memory is as it is now when this returns.
  template <typename Holds>
  bool EverHeld(Holds holds) {
    bool found = false;
    bool unseen = false;
    std::size_t undone = 0;
    while (!found && undone < writes_.size()) {
      Write& write = writes_[writes_.size() - ++undone];
      write.Swap();
      unseen = unseen || write.unseen;
      const std::uint64_t from =
          undone < writes_.size() ? writes_[writes_.size() - undone - 1].time : 0;
      found = unseen && holds(from, write.time);
    }
    for (; undone != 0; --undone) writes_[writes_.size() - undone].Swap();
    return found;
  }

 private:
  struct Write {
    std::uint64_t time = 0;
    std::uint64_t* at = nullptr;
    std::uint64_t other = 0;  // what was there before; while it is undone, what was written
    bool unseen = false;

    void Swap() { std::swap(*at, other); }
  };

  std::vector<Write> writes_;
  std::uint64_t now_ = 0;
};

}  // namespace pagesaw
