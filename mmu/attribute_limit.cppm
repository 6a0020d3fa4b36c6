// What a memory attribute means for the SPTEs of a format: which attributes it can express, and how
// much a leaf may grant. All shadow MMUs bind their leaves by this.
module;
#include <cstdint>
#include <optional>
#include <string>
export module pagesaw.mmu.attribute_limit;

import pagesaw.core.access;
import pagesaw.core.memory_attribute;
import pagesaw.mmu.spte;

export namespace pagesaw {

// Why leaves of the codec's format cannot grant exactly `rights` (of R, W, XS, XU), as the end of a
// sentence; nothing if they can. First-stage leaves stand for pages of either mode.
std::optional<std::string> WhyInexpressible(const SpteCodec& codec, Rights rights);

// `access` as an attribute judges it where SPTEs stand for linear addresses: a fetch from a user
// page needs XU and one from a supervisor page XS, whoever fetches.
constexpr Access JudgedByPage(Access access, bool user_page) {
  // No SPTE can say that a shadow stack may be read and not written.
  if (access.is_shadow_stack()) return Access::Write(access.privilege());
  if (!access.is_fetch()) return access;
  return Access::Fetch(user_page ? Privilege::kUser : Privilege::kSupervisor);
}

// The most that a leaf may grant under `attribute`, to be ANDed with what else limits it. Under the
// policy to log, more is granted than the attribute says: what `access`, whose turn it is, needs,
// and what `old`, the SPTE that is there, granted for the same reason.
Rights LeafLimit(const SpteCodec& codec, const MemoryAttribute& attribute, Access access,
                 std::uint64_t old);

// `limit` for a page of linear addresses, whose leaf has one execute right: it is `limit`'s XU or
// XS by the guest's U, even if the leaf has become a supervisor's (docs/mmu.md).
constexpr Rights OfPage(Rights limit, bool user_page) {
  if (user_page ? limit.exec_user() : limit.exec_supervisor()) {
    return limit | Rights(Rights::kExecSupervisor | Rights::kExecUser);
  }
  return limit.Without(Rights::kExecSupervisor | Rights::kExecUser);
}

}  // namespace pagesaw
