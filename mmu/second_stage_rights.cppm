// How the tables of a second stage judge accesses, whatever their format is: by which privilege,
// and what rights found in them come to.
export module pagesaw.mmu.second_stage_rights;

import pagesaw.core.access;
import pagesaw.core.page_format;

export namespace pagesaw {

// `access` as tables of `format` judge it. Where neither execute rights nor user pages tell the
// modes apart, every access is a user's. [amd/vol2] "Nested Paging"
constexpr Access JudgedBySecondStage(const PageFormat& format, Access access) {
  const bool tells_modes =
      format.layout.grants_execute() || format.user_pages_refuse_supervisor_fetch;
  if (tells_modes || access.is_user()) return access;
  if (access.is_fetch()) return Access::Fetch(Privilege::kUser);
  return access.is_write() ? Access::Write(Privilege::kUser) : Access::Read(Privilege::kUser);
}

// The access of a second stage by which a processor makes `access` to a page that its own tables
// grant `guest`. Where execute rights are split by entries' own bits, the mode is that of the
// linear address: a user page, or no paging. Where user pages refuse supervisor fetches, it is the
// processor's. Elsewhere every access is a user's. [intel/vol3] "Mode-Based Execute Control for VM
// Execution"; [amd/vol2] "Guest Mode Execute Trap"
constexpr Access SecondStageAccess(const PageFormat& format, Rights guest, bool paging,
                                   Access access) {
  bool user = true;
  if (format.layout.grants_execute()) {
    user = !paging || guest.user();
  } else if (format.user_pages_refuse_supervisor_fetch) {
    user = access.is_user();
  }
  const Privilege by = user ? Privilege::kUser : Privilege::kSupervisor;
  if (access.is_fetch()) return Access::Fetch(by);
  return access.is_write() ? Access::Write(by) : Access::Read(by);
}

// What entries with `rights` (AND over a walk) let be done: R, W, XS and XU.
constexpr Rights GrantedBySecondStage(const PageFormat& format, Rights rights) {
  const auto grants = [&](Access access, unsigned right) {
    const Access judged = JudgedBySecondStage(format, access);
    return format.PermissionFault(rights, judged) ? 0u : right;
  };
  return Rights(grants(Access::Read(Privilege::kUser), Rights::kRead) |
                grants(Access::Write(Privilege::kUser), Rights::kWrite) |
                grants(Access::Fetch(Privilege::kSupervisor), Rights::kExecSupervisor) |
                grants(Access::Fetch(Privilege::kUser), Rights::kExecUser));
}

}  // namespace pagesaw
