// The memory attributes of a VM: a sparse map from ranges of guest frames to what the host lets the
// guest do there. Whoever makes an SPTE, or touches guest memory in the guest's name, asks it.
module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <vector>
export module pagesaw.mmu.memory_attributes;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;

export namespace pagesaw {

// Frames `first` and `count` - 1 more, whose attribute is not the unrestricted one.
struct AttributeRange {
  Gfn first = {};
  std::uint64_t count = 0;
  MemoryAttribute attribute = {};

  constexpr std::uint64_t last() const { return first.number + (count - 1); }
  constexpr bool operator==(const AttributeRange&) const = default;
};

// Any thread may read while another changes it. As long as nothing is restricted, a read costs one
// load.
class MemoryAttributes {
 public:
  // A map of more ranges than its limit is refused.
  static constexpr std::size_t kMaxRanges = 65'536;
  explicit MemoryAttributes(std::size_t limit = kMaxRanges) : limit_(limit) {}

  enum class Change : std::uint8_t {
    kNone,        // everything was so before
    kWidened,     // nobody may do less than before
    kRestricted,  // some frames lost rights, or are to be logged from now on
    kRefused,     // there would be more ranges than the limit; nothing has changed
  };

  bool any() const { return any_.load(std::memory_order_acquire); }

  // The attribute of `gfn`.
  inline MemoryAttribute Of(Gfn gfn) const { return any() ? Find(gfn) : MemoryAttribute{}; }

  // Whether one translation may serve `count` frames from `first`: they share an attribute, under
  // which no single frame's accesses are to be noted.
  bool Uniform(Gfn first, std::uint64_t count) const;

  // What is allowed in the end in every one of `count` frames from `first`.
  Rights LeastRights(Gfn first, std::uint64_t count) const;

  // Every range, by ascending frame; neighbours differ.
  std::vector<AttributeRange> List() const;

  // Gives `count` frames (at least 1) from `first` an attribute, whatever they had. Whoever
  // restricts takes SPTEs away afterwards (`ShadowPages::AttributesChanged`).
  Change Set(Gfn first, std::uint64_t count, const MemoryAttribute& attribute);

 private:
  using Table = std::vector<AttributeRange>;

  MemoryAttribute Find(Gfn gfn) const;
  // The first range that ends at `frame` or behind it.
  Table::const_iterator RangeAt(std::uint64_t frame) const;
  bool Restricts(const AttributeRange& change) const;

  const std::size_t limit_;
  std::atomic<bool> any_ = false;
  mutable std::shared_mutex mutex_;
  Table table_;  // by ascending frame, disjoint
};

}  // namespace pagesaw
