module;
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>
module pagesaw.mmu.walk_inspection;

import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.linear_walk;
import pagesaw.mmu.second_stage_rights;
import pagesaw.mmu.tdp_walker;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

constexpr Access kRead = Access::Read(Privilege::kSupervisor);
constexpr Access kWrite = Access::Write(Privilege::kSupervisor);

bool NeedsUpdate(const WalkStep& step, const PageFormat& format, Access access) {
  const EntryLayout& layout = format.layout;
  const std::uint64_t dirty = step.leaf && access.is_write() ? layout.dirty : 0;
  return format.accessed_dirty && ((layout.accessed | dirty) & ~step.entry) != 0;
}

void AddReads(std::span<const WalkStep> steps, std::vector<MetAccess>& met) {
  for (const WalkStep& step : steps) {
    met.push_back({GpaOf(step.entry_address), kRead, Stage::kTable});
  }
}

// A and D, which are set once nothing is refused.
void AddUpdates(std::span<const WalkStep> steps, const PageFormat& format, Access access,
                std::vector<MetAccess>& met) {
  for (const WalkStep& step : steps) {
    if (!NeedsUpdate(step, format, access)) continue;
    met.push_back({GpaOf(step.entry_address), kWrite, Stage::kTable});
  }
}

// A guest's own tables, whose addresses nested tables translate.
class NestedSpace {
 public:
  static constexpr bool kUpdates = false;

  NestedSpace(const GuestMemory& memory, const NestedPaging& nested, bool paging,
              InspectedWalk& walk)
      : memory_(memory), nested_(nested), paging_(paging), walk_(walk) {}

  TableEntry Find(OutputAddress at) {
    const WalkResult found = Translate(Stage::kTable, at, TableAccess());
    if (!found) return {.refusal = WalkFault::Kind::kSecondStage};
    return GuestTableSpace<false>(memory_).Find(found->output);
  }
  EntryUpdate PrepareUpdate(OutputAddress) const { return EntryUpdate::kSkipped; }
  bool Finish(Translation& translation, Access access) {
    const Access asked = SecondStageAccess(nested_.format, translation.rights, paging_, access);
    return static_cast<bool>(Translate(Stage::kFinal, translation.output, asked));
  }

  // Whether A or D may be set in the entry at `at`. What is allowed is not worth a line.
  bool MayUpdate(OutputAddress at, Level level) {
    if (!Translate(Stage::kTable, at, Access::Write(Privilege::kUser))) {
      walk_.nested.back().level = level;
      return false;
    }
    walk_.nested.pop_back();
    return true;
  }

 private:
  Access TableAccess() const {
    return nested_.tables_are_written ? Access::Write(Privilege::kUser)
                                      : Access::Read(Privilege::kUser);
  }

  WalkResult Translate(Stage stage, OutputAddress at, Access access) {
    const InspectedWalk below = InspectPhysical(memory_, nested_, InputOf(GpaOf(at)), access);
    walk_.nested.push_back({.stage = stage,
                            .address = InputOf(GpaOf(at)),
                            .access = access,
                            .result = below.result,
                            .trace = below.trace});
    walk_.met.insert(walk_.met.end(), below.met.begin(), below.met.end());
    if (below.result) walk_.met.back().stage = stage;
    return below.result;
  }

  const GuestMemory& memory_;
  const NestedPaging& nested_;
  const bool paging_;
  InspectedWalk& walk_;
};

// Reads the PDPTE that `address` needs, which is no register. False: `walk` has ended.
bool ReadPdpte(PagingState& state, InputAddress address, NestedSpace& space, InspectedWalk& walk) {
  const unsigned index = static_cast<unsigned>(address.bits() >> 30 & 3);
  const OutputAddress at((state.cr3 & 0xffff'ffe0) + std::uint64_t{8} * index);
  const TableEntry found = space.Find(at);
  if (found.host == nullptr) {
    walk.result = WalkFault{.kind = found.refusal,
                            .level = Level::kPdpt,
                            .address = address,
                            .stage = Stage::kTable,
                            .stage_address = at};
    return false;
  }
  state.pdptes[index] = LoadEntry(found.host, 8);
  return true;
}

// Says of each translation of a table which entry lies there.
void NameTables(std::span<const WalkStep> in_memory, InspectedWalk& walk) {
  std::size_t step = 0;
  for (NestedWalk& nested : walk.nested) {
    if (nested.stage != Stage::kTable) continue;
    nested.level = step < in_memory.size() ? in_memory[step].level : walk.result.fault().level;
    ++step;
  }
}

}  // namespace

NestedFault NestedFaultOf(const NestedWalk& walk, const InspectedWalk* linear,
                          const PagingState& state) {
  const WalkFault& found = walk.result.fault();
  const bool malformed = found.kind == WalkFault::Kind::kMalformed;
  const bool present = malformed || found.kind == WalkFault::Kind::kRights;
  NestedFault fault = {.address = Gpa(walk.address.bits()),
                       .access = walk.access,
                       .stage = walk.stage,
                       .present = present,
                       .malformed = malformed,
                       .rights = present ? found.rights : Rights()};
  if (linear == nullptr) return fault;
  fault.linear = Gva(linear->result.fault().address.bits());
  fault.linear_valid = true;
  fault.guest_rights = state.paging() ? linear->result.fault().rights : Rights::All();
  return fault;
}

InspectedWalk InspectPhysical(const GuestMemory& memory, const NestedPaging& nested,
                              InputAddress address, Access access) {
  InspectedWalk walk;
  TdpWalker walker(memory);
  walker.Reset(nested);
  walk.result = walker.Inspect(address, access, &walk.trace);
  const std::span<const WalkStep> steps = walk.trace.steps();
  AddReads(steps, walk.met);
  if (!walk.result) return walk;
  // PDPTEs have no A.
  AddUpdates(steps.subspan(nested.root_has_pdptes ? 1 : 0), nested.format, access, walk.met);
  walk.met.push_back({GpaOf(walk.result->output), access, Stage::kFinal});
  return walk;
}

InspectedWalk InspectLinear(const GuestMemory& memory, const PagingState& state,
                            const NestedPaging* nested, InputAddress address, Access access) {
  InspectedWalk walk;
  const PageFormat format = MakeLegacyFormat(state);
  const bool pae = state.mode() == PagingMode::kPae;
  const bool reads_pdpte = pae && nested != nullptr && nested->pdptes_in_memory;
  // Without the PDPTE, be it a register, and without one that is.
  const auto below_pdpte = [&] { return walk.trace.steps().subspan(pae ? 1 : 0); };
  const auto in_memory = [&] { return reads_pdpte ? walk.trace.steps() : below_pdpte(); };
  if (nested == nullptr) {
    walk.result = CpuWalker(memory, state).Inspect(address, access, &walk.trace);
    if (!walk.trace.steps().empty()) AddReads(in_memory(), walk.met);
    if (!walk.result) return walk;
    walk.met.push_back({GpaOf(walk.result->output), access, Stage::kFinal});
    if (state.paging()) AddUpdates(below_pdpte(), format, access, walk.met);
    return walk;
  }
  NestedSpace space(memory, *nested, state.paging(), walk);
  PagingState paging = state;
  const bool in_reach = address.bits() >> 32 == 0;
  if (!reads_pdpte || !in_reach || ReadPdpte(paging, address, space, walk)) {
    walk.result = WalkLinear(paging, format, address, access, space, &walk.trace);
  }
  if (walk.trace.steps().empty()) {
    NameTables({}, walk);
    return walk;
  }
  NameTables(in_memory(), walk);
  if (!walk.result) return walk;
  for (const WalkStep& step : below_pdpte()) {
    if (!NeedsUpdate(step, format, access) || space.MayUpdate(step.entry_address, step.level)) {
      continue;
    }
    walk.result = WalkFault{.kind = WalkFault::Kind::kSecondStage,
                            .level = step.level,
                            .address = address,
                            .rights = walk.result->rights,
                            .stage = Stage::kTable,
                            .stage_address = step.entry_address};
    break;
  }
  return walk;
}

}  // namespace pagesaw
