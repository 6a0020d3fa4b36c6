module;
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
module pagesaw.mmu.tdp_walker;

import pagesaw.mmu.legacy_format;
import pagesaw.mmu.linear_walk;
import pagesaw.mmu.logged_tables;
import pagesaw.mmu.second_stage_rights;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

// Asks before D is set.
class NestedTableSpace : public LoggedTableSpace {
 public:
  NestedTableSpace(const GuestMemory& memory, const DirtyLogs* logs,
                   const MemoryAttributes* attributes, const NestedPaging& nested,
                   const TdpWalker::LogDirty& log_dirty, Gpa address)
      : LoggedTableSpace(memory, logs, attributes),
        dirty_(nested.logs_dirty && nested.format.accessed_dirty ? nested.format.layout.dirty : 0),
        log_dirty_(log_dirty),
        address_(address) {}

  inline bool Finish(Translation& translation, Access access) {
    const bool gets_dirty = access.is_write() && (translation.leaf & dirty_) != dirty_;
    if (dirty_ == 0 || !gets_dirty || !log_dirty_) return true;
    log_full_ = !log_dirty_(address_);
    return !log_full_;
  }
  bool log_full() const { return log_full_; }

 private:
  const std::uint64_t dirty_;
  const TdpWalker::LogDirty& log_dirty_;
  const Gpa address_;
  bool log_full_ = false;
};

template <TableSpace Space>
WalkResult WalkFrom(const PageFormat& format, const WalkRequest& request, Space& space,
                    WalkTrace* trace) {
  if (format.layout == kLegacy64Layout) {
    return WalkTables<FixedLayout<kLegacy64Layout>>(format, request, space, trace);
  }
  return WalkTables<AnyLayout>(format, request, space, trace);
}

// The root is four PDPTEs of PAE paging, which lie in memory and grant everything.
// [amd/vol2] "Nested Paging", "Legacy PAE Mode"
template <TableSpace Space>
WalkResult WalkPdptes(const NestedPaging& nested, WalkRequest request, Space& space,
                      WalkTrace* trace) {
  WalkFault fault = {.level = Level::kPdpt, .address = request.address};
  const std::uint64_t index = request.address.bits() >> 30;
  if (index > 3) return fault;
  const OutputAddress at(nested.root.bits() + 8 * index);
  const TableEntry found = space.Find(at);
  if (found.host == nullptr) {
    fault.kind = found.refusal;
    fault.stage = Stage::kTable;
    fault.stage_address = at;
    return fault;
  }
  // What the walk begins with reaches a GiB, and a second stage refuses addresses beyond.
  request.address = InputAddress(request.address.bits() & 0x3fff'ffff);
  const WalkResult result =
      WalkFromPdpte(LoadEntry(found.host, 8), at, nested.format, request, space, trace);
  if (result) return result;
  fault = result.fault();
  fault.address = InputAddress(request.address.bits() | index << 30);
  return fault;
}

template <TableSpace Space>
WalkResult WalkNested(const NestedPaging& nested, InputAddress address, Access access, Space& space,
                      WalkTrace* trace) {
  const WalkRequest request = {.table = OutputAddress(nested.root.bits()),
                               .level = nested.level,
                               .address = address,
                               .access = JudgedBySecondStage(nested.format, access)};
  if (trace != nullptr) trace->Clear();
  return nested.root_has_pdptes ? WalkPdptes(nested, request, space, trace)
                                : WalkFrom(nested.format, request, space, trace);
}

}  // namespace

TdpWalker::TdpWalker(const GuestMemory& memory, const DirtyLogs* logs,
                     const MemoryAttributes* attributes, LogDirty log_dirty)
    : memory_(memory), logs_(logs), attributes_(attributes), log_dirty_(std::move(log_dirty)) {}

void TdpWalker::Reset(const NestedPaging& nested) { nested_ = nested; }

WalkResult TdpWalker::Walk(InputAddress address, Access access) {
  NestedTableSpace space(memory_, logs_, attributes_, nested_, log_dirty_, Gpa(address.bits()));
  const WalkResult result = WalkNested(nested_, address, access, space, nullptr);
  violation_ = space.violation();
  log_full_ = space.log_full();
  return result;
}

WalkResult TdpWalker::Inspect(InputAddress address, Access access, WalkTrace* trace) const {
  GuestTableSpace<false> space(memory_);
  return WalkNested(nested_, address, access, space, trace);
}

}  // namespace pagesaw
