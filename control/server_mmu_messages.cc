// Messages of MmuService.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "pagesaw/control/v1/mmu_service.pb.h"
module pagesaw.control.server;
import :messages;
import pagesaw.control.arguments;
import pagesaw.core.paging_state;

namespace pagesaw {
namespace v1 = control::v1;
namespace {

std::string Text(std::string_view text) { return std::string(text); }

std::int64_t Count(std::uint64_t count) { return static_cast<std::int64_t>(count); }

v1::WalkFault::Kind KindOf(WalkFault::Kind kind) {
  switch (kind) {
    case WalkFault::Kind::kNonCanonical:
      return v1::WalkFault::NON_CANONICAL;
    case WalkFault::Kind::kNotPresent:
      return v1::WalkFault::NOT_PRESENT;
    case WalkFault::Kind::kMalformed:
      return v1::WalkFault::MALFORMED;
    case WalkFault::Kind::kRights:
      return v1::WalkFault::RIGHTS;
    case WalkFault::Kind::kProtectionKey:
      return v1::WalkFault::PROTECTION_KEY;
    case WalkFault::Kind::kNoMemory:
      return v1::WalkFault::NO_MEMORY;
    case WalkFault::Kind::kSecondStage:
      return v1::WalkFault::SECOND_STAGE;
  }
  return v1::WalkFault::KIND_UNSPECIFIED;
}

void Fill(v1::WalkStep& message, const WalkStep& step, const PageFormat& format) {
  message.set_level(static_cast<int>(Number(step.level)));
  message.set_entry_address(step.entry_address.bits());
  message.set_entry(step.entry);
  for (std::string& name : BitsOfEntry(format, step.entry, step.level)) {
    message.add_bits(std::move(name));
  }
  Fill(*message.mutable_rights(), step.rights);
  message.set_present(step.present);
  message.set_leaf(step.leaf);
  message.set_malformed(step.malformed);
  if (step.present) message.set_reserved_bits(ReservedBitsSet(format, step.entry, step.level));
}

void Fill(v1::Translation& message, const Translation& translation, const PageFormat& format) {
  message.set_output(translation.output.bits());
  message.set_level(static_cast<int>(Number(translation.level)));
  message.set_page_bytes(Count(LevelBytes(translation.level, format.layout.index_bits)));
  Fill(*message.mutable_rights(), translation.rights);
}

void Fill(v1::WalkFault& message, const WalkFault& fault) {
  message.set_kind(KindOf(fault.kind));
  message.set_level(static_cast<int>(Number(fault.level)));
  message.set_error_code(fault.code.bits());
  for (std::string& name : BitsOfCode(fault.code)) message.add_error_code_bits(std::move(name));
  Fill(*message.mutable_rights(), fault.rights);
}

// Both responses of walks have these fields.
template <typename Response>
void FillWalk(Response& message, const WalkReport& report, InputAddress address, Access access,
              Tables tables) {
  for (const WalkStep& step : report.trace.steps()) {
    Fill(*message.add_steps(), step, report.format);
  }
  if (report.result) {
    Fill(*message.mutable_translation(), *report.result, report.format);
  } else {
    Fill(*message.mutable_fault(), report.result.fault());
  }
  message.set_explanation(
      Explain(report.result, address, access, report.format, report.trace.steps(), tables));
}

v1::Verdict::Taker TakerOf(Verdict::Taker taker) {
  switch (taker) {
    case Verdict::Taker::kNobody:
      return v1::Verdict::TAKER_UNSPECIFIED;
    case Verdict::Taker::kGuest:
      return v1::Verdict::GUEST;
    case Verdict::Taker::kHypervisor:
      return v1::Verdict::HYPERVISOR;
    case Verdict::Taker::kHost:
      return v1::Verdict::HOST;
  }
  return v1::Verdict::TAKER_UNSPECIFIED;
}

const char* PolicyText(ViolationPolicy policy) {
  switch (policy) {
    case ViolationPolicy::kStop:
      return "the VM pauses";
    case ViolationPolicy::kPageFault:
      return "whoever runs gets #PF";
    case ViolationPolicy::kGeneralProtection:
      return "whoever runs gets #GP";
    case ViolationPolicy::kLog:
      return "it is noted";
  }
  return "";
}

v1::Access MessageOf(Access access) {
  v1::Access message;
  message.set_kind(access.is_fetch()   ? v1::Access::FETCH
                   : access.is_write() ? v1::Access::WRITE
                                       : v1::Access::READ);
  message.set_user(access.is_user());
  return message;
}

void Fill(v1::NestedWalk& message, const NestedWalk& walk, const PageFormat& format) {
  message.set_address(walk.address.bits());
  if (walk.stage == Stage::kTable) message.set_level(static_cast<int>(Number(walk.level)));
  *message.mutable_access() = MessageOf(walk.access);
  for (const WalkStep& step : walk.trace.steps()) Fill(*message.add_steps(), step, format);
  if (walk.result) {
    Fill(*message.mutable_translation(), *walk.result, format);
  } else {
    Fill(*message.mutable_fault(), walk.result.fault());
  }
  message.set_explanation(
      Explain(walk.result, walk.address, walk.access, format, walk.trace.steps(), Tables::kGuest));
}

// "the hypervisor (L1) gets an exit: EPT violation, exit qualification 0x181, for 0x1000".
std::string VerdictText(const Verdict& verdict, bool guest_mode) {
  using Taker = Verdict::Taker;
  if (verdict.taker == Taker::kNobody) return "nobody hears of it: it is allowed";
  const std::string address = absl::StrCat("0x", absl::Hex(verdict.address));
  if (verdict.taker == Taker::kHost) {
    if (!verdict.attribute) {
      return absl::StrCat("the host (L0) answers: ", verdict.event, " at ", address);
    }
    const char* const what = PolicyText(verdict.attribute->policy);
    return absl::StrCat("the host (L0) answers: the memory attribute of ", address, " is ",
                        RightsText(verdict.attribute->rights), ", by which ", what);
  }
  const char* const taker = verdict.taker == Taker::kHypervisor
                                ? "the hypervisor (L1) gets an exit: "
                            : guest_mode ? "the guest's guest (L2) gets "
                                         : "the guest gets ";
  std::string text = absl::StrCat(taker, verdict.event);
  if (!verdict.code_name.empty()) {
    absl::StrAppend(&text, ", ", verdict.code_name, " 0x", absl::Hex(verdict.code));
  }
  return absl::StrCat(text, ", for ", address);
}

void Fill(v1::Verdict& message, const Verdict& verdict, bool guest_mode) {
  message.set_taker(TakerOf(verdict.taker));
  message.set_event(verdict.event);
  message.set_code_name(verdict.code_name);
  message.set_code(verdict.code);
  message.set_address(verdict.address);
  message.set_description(VerdictText(verdict, guest_mode));
}

v1::MemoryAttribute::Policy PolicyOf(ViolationPolicy policy) {
  switch (policy) {
    case ViolationPolicy::kStop:
      return v1::MemoryAttribute::STOP;
    case ViolationPolicy::kPageFault:
      return v1::MemoryAttribute::PAGE_FAULT;
    case ViolationPolicy::kGeneralProtection:
      return v1::MemoryAttribute::GENERAL_PROTECTION;
    case ViolationPolicy::kLog:
      return v1::MemoryAttribute::LOG;
  }
  return v1::MemoryAttribute::POLICY_UNSPECIFIED;
}

void FillReserved(v1::Format& message, const PageFormat& format) {
  for (unsigned level = 1; level <= kMaxLevels; ++level) {
    for (unsigned bit7 = 0; bit7 < 2; ++bit7) {
      v1::ReservedBits& row = *message.add_reserved();
      row.set_level(static_cast<int>(level));
      row.set_bit7(bit7 != 0);
      row.set_mask(format.reserved[bit7][level - 1]);
    }
  }
}

void FillPermissions(v1::Format& message, const PageFormat& format) {
  for (const Privilege by : {Privilege::kSupervisor, Privilege::kUser}) {
    for (const Access access :
         {Access::Read(by), Access::Write(by), Access::Fetch(by), Access::Read(by).WithSmapWaived(),
          Access::Write(by).WithSmapWaived()}) {
      if (access.smap_waived() && access.is_user()) continue;  // SMAP is no matter of theirs
      v1::PermissionRow& row = *message.add_permissions();
      row.set_access(AccessText(access) + (access.smap_waived() ? ", SMAP waived" : ""));
      row.set_refused(format.refused[access.permission_row()]);
    }
  }
}

}  // namespace

absl::StatusOr<Access> AccessOf(const v1::Access& access) {
  const Privilege by = access.user() ? Privilege::kUser : Privilege::kSupervisor;
  switch (access.kind()) {
    case v1::Access::KIND_UNSPECIFIED:
    case v1::Access::READ:
      return Access::Read(by);
    case v1::Access::WRITE:
      return Access::Write(by);
    case v1::Access::FETCH:
      return Access::Fetch(by);
    default:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("access.kind ", access.kind(), ": must be READ, WRITE or FETCH"));
}

void Fill(v1::Rights& message, Rights rights) {
  message.set_read(rights.read());
  message.set_write(rights.write());
  message.set_exec_supervisor(rights.exec_supervisor());
  message.set_exec_user(rights.exec_user());
  message.set_user(rights.user());
  message.set_shadow_stack(rights.shadow_stack());
}

Rights RightsOf(const v1::Rights& rights) {
  return Rights((rights.read() ? Rights::kRead : 0u) | (rights.write() ? Rights::kWrite : 0u) |
                (rights.exec_supervisor() ? Rights::kExecSupervisor : 0u) |
                (rights.exec_user() ? Rights::kExecUser : 0u) |
                (rights.user() ? Rights::kUser : 0u) |
                (rights.shadow_stack() ? Rights::kShadowStack : 0u));
}

absl::StatusOr<MemoryAttribute> AttributeOf(const v1::MemoryAttribute& message) {
  const v1::Rights& rights = message.rights();
  if (rights.user()) {
    return absl::InvalidArgumentError(
        "attribute.rights.user: must be false: whose a page is, the guest's tables say");
  }
  MemoryAttribute attribute;
  attribute.rights = RightsOf(rights) & MemoryAttribute::kEverything;
  switch (message.policy()) {
    case v1::MemoryAttribute::POLICY_UNSPECIFIED:
    case v1::MemoryAttribute::STOP:
      return attribute;
    case v1::MemoryAttribute::PAGE_FAULT:
      attribute.policy = ViolationPolicy::kPageFault;
      return attribute;
    case v1::MemoryAttribute::GENERAL_PROTECTION:
      attribute.policy = ViolationPolicy::kGeneralProtection;
      return attribute;
    case v1::MemoryAttribute::LOG:
      attribute.policy = ViolationPolicy::kLog;
      return attribute;
    default:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("attribute.policy ", message.policy(), ": must be a value of the enum"));
}

void Fill(v1::MemoryAttribute& message, const AttributeRange& range) {
  message.set_gpa(GpaOf(range.first).bits());
  message.set_size_bytes(Count(range.count * kPageBytes));
  Fill(*message.mutable_rights(), range.attribute.rights);
  message.set_policy(PolicyOf(range.attribute.policy));
}

void Fill(v1::AttributeViolation& message, const Violation& violation) {
  message.set_number(Count(violation.number));
  message.set_vcpu(static_cast<int>(violation.vcpu));
  message.set_rip(violation.rip);
  message.set_gpa(violation.gpa.bits());
  message.set_gva(violation.linear.bits());
  *message.mutable_access() = MessageOf(violation.access);
  message.set_guest_table(violation.stage == Stage::kTable);
  Fill(*message.mutable_missing(), violation.missing);
  Fill(*message.mutable_rights(), violation.attribute.rights);
  message.set_policy(PolicyOf(violation.attribute.policy));
  message.set_description(Describe(violation));
}

void Fill(v1::ShadowRole& message, const ShadowRole& role) {
  message.set_level(static_cast<int>(Number(role.level)));
  message.set_direct(role.direct);
  message.set_has_4_byte_entries(role.has_4_byte_entries);
  message.set_quadrant(role.quadrant);
  Fill(*message.mutable_access(), role.access);
  message.set_no_execute(role.no_execute);
  message.set_write_protect(role.write_protect);
  message.set_smep(role.smep);
  message.set_smap_without_wp(role.smap_without_wp);
  message.set_accessed_dirty_off(role.accessed_dirty_off);
  message.set_guest_mode(role.guest_mode);
  message.set_passthrough(role.passthrough);
  message.set_invalid(role.invalid);
}

void Fill(v1::ShadowPage& message, const ShadowPageInfo& page) {
  message.set_id(Count(page.id));
  message.set_table(page.table.bits());
  message.set_gfn(page.gfn.number);
  Fill(*message.mutable_role(), page.role);
  message.set_present_count(static_cast<int>(page.present_count));
  message.set_parent_count(static_cast<int>(page.parent_count));
  message.set_root_count(static_cast<int>(page.root_count));
  message.set_unsync(page.unsync);
}

void Fill(v1::Root& message, const RootInfo& root) {
  message.set_table(root.root.table.bits());
  message.set_level(static_cast<int>(Number(root.root.level)));
  Fill(*message.mutable_role(), root.role);
  message.set_root_register(root.root_register);
  message.set_current(root.current);
}

void Fill(v1::Walker& message, const WalkerInfo& walker) {
  message.set_name(walker.name);
  message.set_root_level(static_cast<int>(walker.root_level));
  message.set_root_register(walker.root_register);
  message.set_paging_mode(Text(PagingModeName(walker.mode)));
  message.mutable_format()->set_name(walker.format_name);
  Fill(*message.mutable_format(), walker.format);
}

void Fill(v1::ShadowMmu& message, const ShadowMmuInfo& mmu) {
  message.set_name(mmu.name);
  message.set_walker(mmu.walker);
  Fill(*message.mutable_root_role(), mmu.role);
  message.mutable_format()->set_name(FormatResourceName(mmu.format_name));
  message.mutable_format()->set_root_level(static_cast<int>(Number(mmu.role.level)));
  Fill(*message.mutable_format(), mmu.format);
  message.set_active(mmu.active);
}

void Fill(v1::Statistics& message, const VmStatistics& statistics) {
  const MmuStatistics& mmu = statistics.mmu;
  message.set_fault_count(Count(mmu.faults));
  message.set_fault_fixed_count(Count(mmu.faults_fixed));
  message.set_fault_fixed_unlocked_count(Count(mmu.faults_fixed_unlocked));
  message.set_fault_spurious_count(Count(mmu.faults_spurious));
  message.set_fault_mmio_count(Count(mmu.faults_mmio));
  message.set_fault_guest_count(Count(mmu.faults_guest));
  message.set_page_4k_count(Count(mmu.pages_4k));
  message.set_page_2m_count(Count(mmu.pages_2m));
  message.set_page_1g_count(Count(mmu.pages_1g));
  message.set_mmio_spte_count(Count(mmu.mmio_sptes));
  message.set_shadow_page_count(Count(mmu.shadow_pages));
  message.set_shadow_page_made_count(Count(mmu.shadow_pages_made));
  message.set_zap_count(Count(mmu.zaps));
  message.set_remote_flush_count(Count(mmu.remote_flushes));
  message.set_memory_resident_bytes(Count(statistics.memory_resident_bytes));
  for (const VcpuStatistics& vcpu : statistics.vcpus) {
    v1::VcpuStatistics& row = *message.add_vcpus();
    row.set_instruction_count(Count(vcpu.instructions));
    row.set_exit_count(Count(vcpu.exits));
    row.set_exit_table_fault_count(Count(vcpu.exits_table_fault));
    row.set_exit_bus_count(Count(vcpu.exits_bus));
    row.set_exit_halt_count(Count(vcpu.exits_halt));
    row.set_interrupt_count(Count(vcpu.interrupts));
  }
}

void Fill(v1::Format& message, const PageFormat& format) {
  message.set_second_stage(format.second_stage);
  message.set_splits_execute(format.layout.splits_execute() ||
                             format.user_pages_refuse_supervisor_fetch);
  message.set_accessed_dirty(format.accessed_dirty);
  message.set_entry_bytes(format.layout.entry_bytes);
  message.set_address_mask(format.layout.address);
  message.set_malformed_low_bits(format.malformed_low_bits);
  for (const NamedBit& bit : NamedBits(format)) {
    v1::FormatBit& row = *message.add_bits();
    row.set_name(Text(bit.name));
    row.set_mask(bit.mask);
    row.set_description(Text(bit.description));
  }
  FillReserved(message, format);
  FillPermissions(message, format);
}

void Fill(v1::Format& message, const TdpFormat& format, unsigned physical_bits) {
  message.set_name(FormatResourceName(format.name));
  message.set_vendor(format.vendor);
  message.set_root_level(static_cast<int>(Number(format.root_level)));
  message.set_physical_bits_count(static_cast<int>(physical_bits));
  Fill(message, format.make(physical_bits));
  message.set_splits_execute(format.splits_execute);
}

void Fill(v1::WalkResponse& message, const WalkReport& report, InputAddress address,
          Access access) {
  FillWalk(message, report, address, access, Tables::kGuest);
  message.set_guest_mode(report.guest_mode);
  for (const NestedWalk& walk : report.nested) {
    Fill(*message.add_nested_walks(), walk, report.nested_format);
  }
  Fill(*message.mutable_verdict(), report.verdict, report.guest_mode);
}

void Fill(v1::NestedState& message, const NestedState& state) {
  message.set_guest_mode(state.guest_mode);
  if (state.tdp_walk) Fill(*message.mutable_tdp_walk(), *state.tdp_walk);
  message.set_tag(state.tag);
  message.set_structure(state.structure_name);
  if (state.structure) message.set_structure_gpa(state.structure->bits());
  for (const StructureField& field : state.fields) {
    v1::StructureField& row = *message.add_fields();
    row.set_name(field.name);
    row.set_value(field.value);
    row.set_size_bytes(static_cast<int>(field.bytes));
    row.set_meaning(field.meaning);
  }
}

void Fill(v1::WalkSptesResponse& message, const WalkReport& report, InputAddress address,
          Access access) {
  FillWalk(message, report, address, access, Tables::kShadow);
}

}  // namespace pagesaw
