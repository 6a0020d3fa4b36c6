module;
#include <cstddef>
#include <cstdint>
#include <optional>
module pagesaw.cpu.hardware_walk;

import pagesaw.core.page_walker;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.linear_walk;
import pagesaw.mmu.second_stage_rights;
import pagesaw.mmu.walk;

namespace pagesaw::cpu {
namespace {

bool LeaveWithTableFault(Core& core, const TableFault& fault) {
  core.exit.fault = fault;
  return core.LeaveWith(ExitReason::kTableFault);
}

TableFault Describe(const WalkFault& fault, Access access) {
  return {.address = fault.address,
          .access = access,
          .present = fault.kind != WalkFault::Kind::kNotPresent,
          .malformed = fault.kind == WalkFault::Kind::kMalformed,
          .rights = fault.rights};
}

// Begins the walk for `linear` at the lowest table that is known. An instruction that starts again
// with answers reads its tables as it did before.
bool ResumeWalk(const Core& core, WalkRequest& request) {
  if (!core.replay.empty()) return false;
  const CachedTable* known = core.paging_structures.Find(request.address.bits());
  if (known == nullptr || known->level >= request.level) return false;
  request.table = known->table;
  request.level = known->level;
  request.granted = known->granted;
  return true;
}

// SPTEs that translate linear addresses.
class OneStage : public HostTableSpace<true> {
 public:
  OneStage(Core& core, std::uint64_t linear) : core_(core), linear_(linear) {}

  bool Resume(WalkRequest& request) const { return ResumeWalk(core_, request); }
  void Remember(Level level, OutputAddress table, std::uint64_t granted) const {
    core_.paging_structures.Enter(linear_, {table, level, granted});
  }

 private:
  Core& core_;
  std::uint64_t linear_;
};

// The walk of the tables that the processor was given.
WalkRequest RequestOf(const Core& core, InputAddress address, Access access) {
  return {.table = OutputAddress(core.tables.root.bits()),
          .level = core.tables.level,
          .address = address,
          .access = access,
          .pkru = core.pkru,
          .pkrs = core.pkrs};
}

// What rights in tables of one stage allow without walking again.
struct DataRights {
  bool readable = true;
  bool writable = true;
};

// `access` says who reads and writes.
DataRights DataRightsIn(const Core& core, const PageFormat& format, const Translation& translation,
                        Access access) {
  const auto allows = [&](Access asked) {
    if (access.smap_waived()) asked = asked.WithSmapWaived();
    return !format.PermissionFault(translation.rights, asked) &&
           !format.ProtectionKeyFault(translation.leaf, translation.rights, asked, core.pkru,
                                      core.pkrs);
  };
  if (access.is_shadow_stack()) {
    return {.readable = allows(Access::ShadowStackRead(access.privilege())),
            .writable = allows(Access::ShadowStackWrite(access.privilege()))};
  }
  const bool dirty = !format.accessed_dirty || (translation.leaf & format.layout.dirty) != 0;
  return {.readable = allows(Access::Read(access.privilege())),
          .writable = dirty && allows(Access::Write(access.privilege()))};
}

void SetKey(HostPage& page, const PageFormat& format, std::uint64_t leaf) {
  page.keyed = format.protection_key_mask != 0;
  page.key = static_cast<std::uint8_t>(ProtectionKeyOf(leaf));
}

// The guest's tables, reached through the second stage.
class ThroughSecondStage {
 public:
  static constexpr bool kUpdates = true;

  ThroughSecondStage(Core& core, bool paging, std::uint64_t linear)
      : core_(core), paging_(paging), linear_(linear) {}

  bool Resume(WalkRequest& request) const { return ResumeWalk(core_, request); }
  void Remember(Level level, OutputAddress table, std::uint64_t granted) const {
    core_.paging_structures.Enter(linear_, {table, level, granted});
  }

  TableEntry Find(OutputAddress at) {
    const Access access = Access::Read(Privilege::kUser);
    Translation found;
    if (core_.tables.tables_are_written) {
      if (Translate(at, Access::Write(Privilege::kUser), found)) return EntryAt(found);
      if (!MayUpdate(at)) return {.refusal = WalkFault::Kind::kSecondStage};
    }
    if (!Translate(at, access, found)) {
      // Where no memory is, the entry is whatever a device or the empty bus answers.
      fault_.bus = {.kind = BusAccess::Kind::kMmioRead,
                    .bytes = core_.guest_format.layout.entry_bytes,
                    .address = at.bits()};
      const BusAccess* answer = core_.replay.Take(fault_.bus);
      if (answer == nullptr) return {.refusal = WalkFault::Kind::kSecondStage};
      answered_entry_ = answer->value;
      return {.host = reinterpret_cast<std::byte*>(&answered_entry_)};
    }
    return EntryAt(found);
  }

  EntryUpdate PrepareUpdate(OutputAddress at) {
    const Access access = Access::Write(Privilege::kUser);
    Translation found;
    if (Translate(at, access, found)) return EntryUpdate::kAllowed;
    const BusAccess* answer = MayUpdate(at);
    if (answer == nullptr) return EntryUpdate::kRefused;
    return answer->value != 0 ? EntryUpdate::kAllowed : EntryUpdate::kSkipped;
  }

  bool Finish(Translation& translation, Access access) {
    const Access asked =
        SecondStageAccess(*core_.tables.format, translation.rights, paging_, access);
    privilege_ = asked.privilege();
    if (Translate(translation.output, asked, final_)) return true;
    fault_.stage = Stage::kFinal;
    fault_.guest_rights = translation.rights;
    const bool lent =
        (access.is_write() || access.is_shadow_stack()) && core_.replay.Lent(linear_) != nullptr;
    if (!fault_.malformed && !lent) return false;
    // Translated like any other page: A and D are set before the access is made.
    elsewhere_ = fault_;
    return true;
  }

  // Translates an access to the guest's physical space that no table of the guest's led to.
  bool Locate(OutputAddress at, Access access) {
    if (Translate(at, access, final_)) return true;
    fault_.stage = Stage::kFinal;
    return false;
  }

  const Translation& final_stage() const { return final_; }
  const TableFault& fault() const { return fault_; }
  // The fault that a successful walk has led to, which is a device's or of a page that was lent.
  const std::optional<TableFault>& elsewhere() const { return elsewhere_; }
  Privilege final_privilege() const { return privilege_; }

 private:
  static TableEntry EntryAt(const Translation& found) {
    return {.host = reinterpret_cast<std::byte*>(found.output.bits())};
  }

  // What the outside says to setting A or D in the entry at `at`, which the tables refuse; null,
  // and `fault_` asks, if it has not been asked.
  const BusAccess* MayUpdate(OutputAddress at) {
    fault_.bus = {.kind = BusAccess::Kind::kMmioWrite, .address = at.bits()};
    return core_.replay.Take(fault_.bus);
  }

  // On refusal `fault_` says why, as that of a table access.
  bool Translate(OutputAddress at, Access access, Translation& found) {
    const Gpa gpa = GpaOf(at);
    if (core_.second_stage_tlb.Find(*core_.tables.format, gpa, access, found)) return true;
    HostTableSpace<true> tables;
    const WalkResult result =
        WalkTables<AnyLayout>(*core_.tables.format, RequestOf(core_, InputOf(gpa), access), tables);
    if (result) {
      found = *result;
      core_.second_stage_tlb.Enter(gpa, found);
      return true;
    }
    fault_ = Describe(result.fault(), access);
    fault_.address = InputAddress(at.bits());
    fault_.stage = Stage::kTable;
    return false;
  }

  Core& core_;
  const bool paging_;
  const std::uint64_t linear_;
  Translation final_;
  TableFault fault_;
  std::optional<TableFault> elsewhere_;
  std::uint64_t answered_entry_ = 0;
  Privilege privilege_ = Privilege::kUser;
};

// The walk of PAE paging whose PDPTEs are no registers: reads the one that it needs. [amd/vol2]
// "Legacy PAE Mode"
WalkResult WalkByPdptesInMemory(PagingState paging, const PageFormat& guest, InputAddress linear,
                                Access access, ThroughSecondStage& space) {
  const unsigned index = static_cast<unsigned>(linear.bits() >> 30 & 3);
  const OutputAddress at((paging.cr3 & 0xffff'ffe0) + std::uint64_t{8} * index);
  const TableEntry found = space.Find(at);
  if (found.host == nullptr) {
    return WalkFault{.kind = WalkFault::Kind::kSecondStage, .level = Level::kPdpt};
  }
  paging.pdptes[index] = LoadEntry(found.host, 8);
  return WalkLinear(paging, guest, linear, access, space, nullptr);
}

bool WalkTwoStages(Core& core, std::uint64_t linear, Access access, HostPage& page) {
  const PagingState& paging = core.paging;
  const PageFormat& guest = core.guest_format;
  ThroughSecondStage space(core, paging.paging(), linear);
  const bool reads_pdpte =
      core.guest.nested && core.guest.nested->pdptes_in_memory && paging.mode() == PagingMode::kPae;
  const WalkResult result =
      reads_pdpte ? WalkByPdptesInMemory(paging, guest, InputAddress(linear), access, space)
                  : WalkLinear(paging, guest, InputAddress(linear), access, space, nullptr);
  if (!result && result.fault().kind != WalkFault::Kind::kSecondStage) {
    return core.RaisePageFault(linear, result.fault().code);
  }
  if (!result || space.elsewhere()) {
    TableFault fault = result ? *space.elsewhere() : space.fault();
    fault.made = access;
    fault.linear = Gva(linear);
    fault.linear_valid = true;
    return LeaveWithTableFault(core, fault);
  }
  const Translation& last = space.final_stage();
  page.host = last.output.bits();
  page.level = result->level;
  SetKey(page, guest, result->leaf);
  DataRights rights;
  if (paging.paging()) rights = DataRightsIn(core, guest, *result, access);
  const DataRights below =
      DataRightsIn(core, *core.tables.format, last, Access::Read(space.final_privilege()));
  page.readable = rights.readable && below.readable;
  page.writable = rights.writable && below.writable;
  return true;
}

bool WalkOneStage(Core& core, std::uint64_t linear, Access access, HostPage& page) {
  const PageFormat& format = core.spte_format;
  const WalkRequest request = RequestOf(core, InputAddress(linear), access);
  OneStage space(core, linear);
  const WalkResult result =
      core.legacy_sptes ? WalkFromRemembered<FixedLayout<kLegacy64Layout>>(format, request, space)
                        : WalkFromRemembered<AnyLayout>(format, request, space);
  if (!result) {
    TableFault fault = Describe(result.fault(), access);
    fault.made = access;
    fault.linear = Gva(linear);
    fault.linear_valid = true;
    return LeaveWithTableFault(core, fault);
  }
  page.host = result->output.bits();
  page.level = result->level;
  SetKey(page, format, result->leaf);
  const DataRights rights = DataRightsIn(core, format, *result, access);
  page.readable = rights.readable;
  page.writable = rights.writable;
  return true;
}

}  // namespace

void NoteInTlb(Core& core, TlbBank& bank, std::uint64_t linear, const HostPage& page) {
  const PageFormat& format = core.tables.second_stage ? core.guest_format : core.spte_format;
  // A large page of 4-byte tables has 4 MiB: it counts as one of the next size.
  const bool of_4_mib = page.level == Level::kPd && format.layout.entry_bytes == 4;
  core.tlb.NoteFill(bank, linear, of_4_mib ? Level::kPdpt : page.level);
  if (page.keyed) core.tlb.NoteKey(linear, page.key);
}

bool LocateBehindSecondStage(Core& core, Gpa gpa, bool write, std::byte*& host) {
  const Access access = write ? Access::Write(Privilege::kUser) : Access::Read(Privilege::kUser);
  ThroughSecondStage space(core, true, gpa.bits());
  if (space.Locate(OutputAddress(gpa.bits()), access)) {
    host = reinterpret_cast<std::byte*>(space.final_stage().output.bits());
  } else {
    TableFault fault = space.fault();
    host = write ? core.replay.Lent(gpa.bits()) : nullptr;
    if (host == nullptr && !fault.malformed) {
      fault.made = access;
      fault.linear = Gva(gpa.bits());
      return LeaveWithTableFault(core, fault);
    }
  }
  if (write && host != nullptr) {
    core.code->Changed(reinterpret_cast<std::uint64_t>(host), kPageBytes);
  }
  return true;
}

bool WalkHardware(Core& core, std::uint64_t linear, Access access, HostPage& page) {
  return core.tables.second_stage ? WalkTwoStages(core, linear, access, page)
                                  : WalkOneStage(core, linear, access, page);
}

}  // namespace pagesaw::cpu
