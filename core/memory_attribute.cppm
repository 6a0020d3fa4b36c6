// What the host lets a guest do with a frame of its memory, whatever the guest's own tables grant,
// and what becomes of an access that is refused.
module;
#include <cstdint>
export module pagesaw.core.memory_attribute;

import pagesaw.core.access;
import pagesaw.core.address;

export namespace pagesaw {

// What happens when a guest tries what an attribute refuses.
enum class ViolationPolicy : std::uint8_t {
  kStop,               // the vCPU stops before the access, and the VM pauses
  kPageFault,          // the guest gets #PF, as if its own tables had refused
  kGeneralProtection,  // the guest gets #GP(0)
  kLog,                // the access is noted and goes on
};

struct MemoryAttribute {
  // Every right that an attribute can give or keep back.
  static constexpr Rights kEverything{Rights::kRead | Rights::kWrite | Rights::kExecSupervisor |
                                      Rights::kExecUser};

  Rights rights = kEverything;  // of R, W, XS and XU
  ViolationPolicy policy = ViolationPolicy::kStop;

  constexpr bool unrestricted() const { return rights.Covers(kEverything); }
  // Whether it lacks the right that `access` needs. A fetch needs XS or XU by the mode in `access`.
  constexpr bool Refuses(Access access) const { return !rights.Covers(NeededFor(access)); }
  // The right that `access` needs.
  static constexpr Rights NeededFor(Access access) {
    if (access.is_fetch()) {
      return Rights(access.is_user() ? Rights::kExecUser : Rights::kExecSupervisor);
    }
    return Rights(access.is_write() ? Rights::kWrite : Rights::kRead);
  }

  constexpr bool operator==(const MemoryAttribute&) const = default;
};

// An access that an attribute refuses.
struct AttributeViolation {
  Gpa gpa = {};
  // As the attribute judges it: of a page, with the mode that chooses between XS and XU; of a
  // guest's table (`stage`), the read or the setting of A or D.
  Access access = Access::Read(Privilege::kSupervisor);
  Stage stage = Stage::kFinal;
  MemoryAttribute attribute = {};
};

}  // namespace pagesaw
