// `tdp_walk`: the walker of the physical addresses of a guest's guest, by the tables that its
// hypervisor, which is our guest, has made for it. What they look like is a value; a walk of them
// is the walk of any tables. It never recurses: these tables lie in the hypervisor's physical
// memory.
module;
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
export module pagesaw.mmu.tdp_walker;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.memory_attributes;

export namespace pagesaw {

class TdpWalker final : public PageWalker {
 public:
  // Is asked before D is set for an address where NestedPaging::logs_dirty: false forbids it.
  using LogDirty = std::function<bool(Gpa)>;

  // Walks tables in `memory`; `logs` and `attributes`, which may be null, are as for CpuWalker. All
  // must outlive the walker. Nothing is mapped until Reset.
  explicit TdpWalker(const GuestMemory& memory, const DirtyLogs* logs = nullptr,
                     const MemoryAttributes* attributes = nullptr, LogDirty log_dirty = {});

  // Takes `nested` for what is walked from now on.
  void Reset(const NestedPaging& nested);
  const NestedPaging& nested() const { return nested_; }

  std::string_view name() const override { return "tdp_walk"; }
  const PageFormat& format() const override { return nested_.format; }
  unsigned root_level() const override { return Number(nested_.level); }
  std::uint64_t root_register() const override { return nested_.root_register; }
  // A Walk that ends with kSecondStage was refused by an attribute, or by LogDirty: `log_full`.
  WalkResult Walk(InputAddress address, Access access) override;
  std::optional<AttributeViolation> attribute_violation() const override { return violation_; }
  WalkResult Inspect(InputAddress address, Access access, WalkTrace* trace) const override;

  // Whether the last Walk ended because LogDirty forbade to set D.
  bool log_full() const { return log_full_; }

 private:
  const GuestMemory& memory_;
  const DirtyLogs* const logs_;
  const MemoryAttributes* const attributes_;
  const LogDirty log_dirty_;
  NestedPaging nested_;
  std::optional<AttributeViolation> violation_;
  bool log_full_ = false;
};

}  // namespace pagesaw
