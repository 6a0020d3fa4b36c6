// For tests: what must become of an access in shadow paging, by the walker and the attributes, with
// memory as it is.
module;
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
export module pagesaw.mmu.test_expectation;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.memory_attributes;

export namespace pagesaw {

struct Outcome {
  enum class Kind { kHost, kGuestFault, kDevice, kViolation, kNone } kind = Kind::kNone;
  std::uint64_t value = 0;  // host address, error code or gpa
  bool operator==(const Outcome&) const = default;
};

inline std::string Words(const Outcome& outcome) {
  static constexpr const char* kNames[] = {"host", "guest fault", "device", "violation", "nothing"};
  char text[64];
  std::snprintf(text, sizeof(text), "%s %#llx", kNames[static_cast<int>(outcome.kind)],
                static_cast<unsigned long long>(outcome.value));
  return text;
}

// Both outlive it.
class Expectation {
 public:
  Expectation(const GuestMemory& memory, const MemoryAttributes& attributes)
      : memory_(memory), attributes_(attributes) {}

  // Of an access by a vCPU in `state`.
  Outcome Of(const PagingState& state, std::uint64_t linear, Access access) const {
    WalkTrace trace;
    const WalkResult walk = CpuWalker(memory_, state).Inspect(InputAddress(linear), access, &trace);
    if (const auto table = RefusedTable(state, trace, static_cast<bool>(walk), access.is_write())) {
      return {Outcome::Kind::kViolation, *table};
    }
    // An entry in no memory is not traced, but has an attribute like any other.
    if (!walk && walk.fault().kind == WalkFault::Kind::kNoMemory &&
        Refused(walk.fault().stage_address.bits(), Rights::kRead)) {
      return {Outcome::Kind::kViolation, walk.fault().stage_address.bits()};
    }
    if (!walk) return {Outcome::Kind::kGuestFault, walk.fault().code.bits()};
    const Gpa gpa = GpaOf(walk->output);
    if (Refused(gpa.bits(), RightFor(access, walk->rights.user()))) {
      return {Outcome::Kind::kViolation, gpa.bits()};
    }
    const MemorySlot* slot = memory_.Find(GfnOf(gpa));
    if (slot == nullptr || (slot->read_only && (access.is_write() || access.is_shadow_stack()))) {
      return {Outcome::Kind::kDevice, gpa.bits()};
    }
    return {Outcome::Kind::kHost, reinterpret_cast<std::uintptr_t>(slot->HostOf(gpa))};
  }

  // A in every entry and D in the leaf of a write, except where memory cannot be written.
  bool HasAccessedDirty(const PagingState& state, std::uint64_t linear, Access access) const {
    WalkTrace trace;
    (void)CpuWalker(memory_, state).Inspect(InputAddress(linear), access, &trace);
    for (const WalkStep& step : trace.steps()) {
      if (IsRegister(state, step)) continue;
      if (memory_.Find(GfnOf(GpaOf(step.entry_address)))->read_only) continue;
      if (LacksAccessedDirty(step, access.is_write())) return false;
    }
    return true;
  }

 private:
  static unsigned RightFor(Access access, bool user_page) {
    // A shadow stack cannot be read alone.
    if (access.is_write() || access.is_shadow_stack()) return Rights::kWrite;
    if (access.is_read()) return Rights::kRead;
    return user_page ? Rights::kExecUser : Rights::kExecSupervisor;
  }

  // Whether the attribute of `gpa` holds back `right`.
  bool Refused(std::uint64_t gpa, unsigned right) const {
    const MemoryAttribute attribute = attributes_.Of(Gfn{gpa >> 12});
    return attribute.policy != ViolationPolicy::kLog && (attribute.rights.bits() & right) == 0;
  }

  static bool IsRegister(const PagingState& state, const WalkStep& step) {
    return state.mode() == PagingMode::kPae && step.level == Level::kPdpt;
  }
  static bool LacksAccessedDirty(const WalkStep& step, bool write) {
    const std::uint64_t wanted = 0x20 | (step.leaf && write ? 0x40 : 0);
    return (step.entry & wanted) != wanted;
  }

  // The first entry that the walk may not read; or, if it comes through, may not set A or D in.
  std::optional<std::uint64_t> RefusedTable(const PagingState& state, const WalkTrace& trace,
                                            bool through, bool write) const {
    for (const WalkStep& step : trace.steps()) {
      if (!IsRegister(state, step) && Refused(step.entry_address.bits(), Rights::kRead)) {
        return step.entry_address.bits();
      }
    }
    for (const WalkStep& step : trace.steps()) {
      if (through && !IsRegister(state, step) && LacksAccessedDirty(step, write) &&
          Refused(step.entry_address.bits(), Rights::kWrite)) {
        return step.entry_address.bits();
      }
    }
    return std::nullopt;
  }

  const GuestMemory& memory_;
  const MemoryAttributes& attributes_;
};

}  // namespace pagesaw
