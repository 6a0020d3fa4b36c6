// `cpu_walk`: the walker of the linear addresses of whatever runs now. A value: it is initialised
// again whenever the paging state changes, which costs a few tens of nanoseconds.
module;
#include <cstdint>
#include <optional>
#include <string_view>
export module pagesaw.mmu.cpu_walker;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.memory_attributes;

export namespace pagesaw {

// Addresses are given as they are after segmentation and linear-address masking. All calls belong
// to one thread, but for `Inspect` beside `Walk`; who looks from elsewhere makes a walker of his
// own.
class CpuWalker final : public PageWalker {
 public:
  // Walks tables in `memory`. `logs` hears of the pages in which a walk set A or D; `Walk` obeys
  // `attributes`, `Inspect` looks whatever they say. All must outlive the walker, the latter two
  // may be null. Without paging until Reset.
  explicit CpuWalker(const GuestMemory& memory, const DirtyLogs* logs = nullptr,
                     const MemoryAttributes* attributes = nullptr);
  CpuWalker(const GuestMemory& memory, const PagingState& state);

  // Takes `state` for what is walked from now on.
  void Reset(const PagingState& state);

  const PagingState& state() const { return state_; }

  std::string_view name() const override { return "cpu_walk"; }
  const PageFormat& format() const override { return format_; }
  unsigned root_level() const override;
  std::uint64_t root_register() const override { return state_.cr3; }
  WalkResult Walk(InputAddress address, Access access) override;
  std::optional<AttributeViolation> attribute_violation() const override { return violation_; }
  WalkResult Inspect(InputAddress address, Access access, WalkTrace* trace) const override;

 private:
  const GuestMemory* memory_;
  const DirtyLogs* logs_ = nullptr;
  const MemoryAttributes* attributes_ = nullptr;
  PagingState state_;
  PageFormat format_;
  std::optional<AttributeViolation> violation_;
};

}  // namespace pagesaw
