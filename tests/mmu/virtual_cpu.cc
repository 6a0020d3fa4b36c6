module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
module pagesaw.tests.mmu.virtual_cpu;

import pagesaw.core.page_walker;
import pagesaw.cpu.control_registers;
import pagesaw.cpu.hardware_walk;
import pagesaw.cpu.memory;
import pagesaw.mmu.direct_mmu;
import pagesaw.mmu.shadowing_mmu;

namespace pagesaw {
namespace {

constexpr std::uint64_t kPageMask = 0xfff;
// An access faults a few times at each level before it comes through.
constexpr unsigned kTries = 64;

std::unique_ptr<ShadowMmu> MakeRootMmu(const VirtualCpu::Machine& machine, CpuWalker& walker) {
  if (machine.two_stages) {
    return DirectMmu::Make(machine.pages, machine.memory, walker, Level::kPml4);
  }
  return ShadowingMmu::Make(machine.pages, machine.memory, *machine.tables, walker);
}

}  // namespace

Access AccessOf(Asked asked) {
  const Privilege by = asked.by == Asked::By::kUser ? Privilege::kUser : Privilege::kSupervisor;
  const Access access = asked.kind == Asked::Kind::kFetch   ? Access::Fetch(by)
                        : asked.kind == Asked::Kind::kWrite ? Access::Write(by)
                                                            : Access::Read(by);
  return asked.by == Asked::By::kSupervisorWithAc ? access.WithSmapWaived() : access;
}

VirtualCpu::VirtualCpu(const Machine& machine)
    : memory_(machine.memory),
      two_stages_(machine.two_stages),
      model_(machine.model),
      core_(std::make_unique<cpu::Core>()),
      walker_(memory_, &machine.pages.dirty_logs(), machine.attributes),
      tdp_walker_(memory_, &machine.pages.dirty_logs(), machine.attributes, machine.log_dirty),
      mmu_(MakeRootMmu(machine, walker_)),
      active_(mmu_.get()) {
  if (machine.log_dirty) {
    guest_mmu_ = ShadowingMmu::MakeNested(machine.pages, memory_, *machine.tables, tdp_walker_);
  }
  core_->model = &model_;
  core_->code = this;
  core_->cr0 = kCr0Pe;
  core_->tables.second_stage = two_stages_;
  PagingHasChanged();
}

VirtualCpu::~VirtualCpu() = default;

void VirtualCpu::Flush() {
  core_->second_stage_tlb.Flush();
  core_->FlushTranslations();
}

void VirtualCpu::EnterGuest() {
  while (!std::exchange(tables_set_, true) || active_->roots_obsolete()) {
    const ShadowRoot root = active_->Root();
    core_->tables = {.format = &active_->format(),
                     .root = root.table,
                     .level = root.level,
                     .second_stage = two_stages_ || nested(),
                     .tables_are_written = nested() && core_->guest.nested->tables_are_written};
    core_->second_stage_tlb.Flush();
    core_->UpdatePaging();
  }
}

void VirtualCpu::PagingHasChanged(const Invalidation& invalidation) {
  core_->UpdatePaging();
  core_->segments[kCs].attributes = core_->long_mode() ? 0xa09b : 0xc09b;
  core_->UpdateMode();
  walker_.Reset(core_->Paging());
  if (two_stages_ || nested()) return;
  mmu_->PagingChanged(core_->Paging(), invalidation);
  tables_set_ = false;
}

void VirtualCpu::BecomePrivileged(Asked::By by) {
  cpu::Core& core = *core_;
  // An implicit access is the processor's own, whatever it runs, and whatever AC is.
  const bool ring3 = by == Asked::By::kUser || by == Asked::By::kImplicit;
  const bool ac = by == Asked::By::kSupervisorWithAc || by == Asked::By::kImplicit;
  core.segments[kSs].attributes = ring3 ? 0xc0f3 : 0xc093;
  core.rflags = kFlagFixed | (ac ? kFlagAc : 0);
  core.UpdateMode();
}

// What the table fault that the processor met comes to. `again`: the access is to be tried again.
Outcome VirtualCpu::Resolve(std::uint64_t linear, bool& again) {
  const TableFault& fault = core_->exit.fault;
  walker_.Reset(core_->Paging());  // protection keys change without an exit
  const FaultResolution resolution = active_->HandleFault({.address = fault.address,
                                                           .access = fault.access,
                                                           .stage = fault.stage,
                                                           .malformed = fault.malformed,
                                                           .present = fault.present,
                                                           .linear = Gva(linear)});
  again = true;
  switch (resolution.outcome) {
    case FaultOutcome::kGuestFault:
      again = false;
      if (nested()) return MeetNestedFault(fault, resolution);
      return {Outcome::Kind::kGuestFault, resolution.guest_fault.code.bits()};
    case FaultOutcome::kMmio:
      if (fault.stage == Stage::kTable) {
        // An entry that lies in no memory reads as all ones; one that cannot be written stays.
        BusAccess answer = fault.bus;
        if (answer.kind == BusAccess::Kind::kMmioRead) {
          answer.value = ~std::uint64_t{0} >> (answer.bytes == 4 ? 32 : 0);
        }
        core_->replay.Add(answer);
        return {};
      }
      again = false;
      return {Outcome::Kind::kDevice, resolution.gpa.bits()};
    case FaultOutcome::kAttributeViolation:
      again = false;
      return {Outcome::Kind::kRefused, resolution.violation->gpa.bits()};
    case FaultOutcome::kWriteProtected:
      if (fault.stage == Stage::kTable) {
        // The processor updates the entry all the same.
        BusAccess answer = fault.bus;
        answer.value = 1;
        core_->replay.Add(answer);
        LendWord(resolution);
        return {};
      }
      // The walk is made once more, for A and D.
      lent_ = resolution.gpa;
      core_->replay.Lend(linear, resolution.host.bits());
      return {Outcome::Kind::kHost, resolution.host.bits()};
    default:
      return {};
  }
}

// As a run loop tells its extension.
Outcome VirtualCpu::MeetNestedFault(const TableFault& fault, const FaultResolution& resolution) {
  const WalkFault& found = resolution.guest_fault;
  const bool malformed = found.kind == WalkFault::Kind::kMalformed;
  const bool present = malformed || found.kind == WalkFault::Kind::kRights;
  nested_fault_ = {.address = Gpa(fault.address.bits()),
                   .access = fault.access,
                   .stage = fault.stage,
                   .present = present,
                   .malformed = malformed,
                   .log_full = resolution.log_full,
                   .rights = present ? found.rights : Rights(),
                   .linear = fault.linear,
                   .linear_valid = fault.linear_valid,
                   .guest_rights = fault.guest_rights};
  return {Outcome::Kind::kNestedFault, fault.address.bits()};
}

void VirtualCpu::LendWord(const FaultResolution& resolution) {
  const Gpa gpa(resolution.gpa.bits() & ~std::uint64_t{7});
  const auto* const host =
      reinterpret_cast<const std::uint64_t*>(resolution.host.bits() & ~std::uint64_t{7});
  lent_words_.push_back({.gpa = gpa, .host = host, .value = *host});
}

void VirtualCpu::TellOfTableWrites() {
  for (LentWord& word : lent_words_) {
    const std::uint64_t changed = *word.host ^ std::exchange(word.value, *word.host);
    const bool low = static_cast<std::uint32_t>(changed) != 0, high = changed >> 32 != 0;
    if (changed == 0) continue;
    mmu_->GuestWrote(Gpa(word.gpa.bits() + (low ? 0 : 4)), low && high ? 8 : 4);
  }
}

Outcome VirtualCpu::MakeAccess(std::uint64_t linear, Asked asked, bool& from_tlb) {
  lent_words_.clear();
  const Outcome outcome = TryAccess(linear, asked, from_tlb);
  TellOfTableWrites();
  return outcome;
}

Outcome VirtualCpu::TryAccess(std::uint64_t linear, Asked asked, bool& from_tlb) {
  cpu::Core& core = *core_;
  const bool write = asked.kind == Asked::Kind::kWrite;
  const bool fetch = asked.kind == Asked::Kind::kFetch;
  const cpu::By by = asked.by == Asked::By::kImplicit ? cpu::By::kProcessor : cpu::By::kProgram;
  lent_.reset();
  core.replay.Clear();
  from_tlb = false;
  Outcome lent;
  for (unsigned tries = 0; tries < kTries; ++tries) {
    TellOfTableWrites();
    EnterGuest();
    BecomePrivileged(asked.by);
    const cpu::TlbBank& bank =
        by == cpu::By::kProcessor ? core.tlb.bank(cpu::BankName::kSupervisor) : *core.bank;
    const cpu::TlbEntry& entry = const_cast<cpu::TlbBank&>(bank).At(linear);
    const std::uint64_t tag = write ? entry.write_tag : entry.read_tag;
    if (!fetch && tag == (linear & ~kPageMask)) {
      from_tlb = true;
      return {Outcome::Kind::kHost, linear + entry.addend};
    }
    core.stop = cpu::Stop::kNone;
    core.replay.Rewind();
    cpu::HostPage page;
    const bool found = fetch   ? cpu::WalkHardware(core, linear, AccessOf(asked), page)
                       : write ? cpu::ProbeWrite(core, linear, 1, by)
                               : cpu::ProbeRead(core, linear, 1, by);
    if (found) {
      const std::uint64_t filled = write ? entry.write_tag : entry.read_tag;
      if (fetch || filled == (linear & ~kPageMask)) {
        core.replay.Clear();
        lent_.reset();
        return {Outcome::Kind::kHost, fetch ? page.host : linear + entry.addend};
      }
      if (lent_) return lent;
      // A device's: the TLB does not keep it, and the access itself would leave.
      core.replay.Rewind();
      if (cpu::WalkHardware(core, linear, AccessOf(asked), page)) return {};
    }
    if (core.stop == cpu::Stop::kException) {
      core.replay.Clear();
      if (core.exception.cr2 != linear) return {};
      return {Outcome::Kind::kGuestFault, core.exception.error_code};
    }
    bool again = false;
    const Outcome outcome = Resolve(linear, again);
    if (outcome.kind == Outcome::Kind::kHost) lent = outcome;
    if (again) continue;
    core.replay.Clear();
    return outcome;
  }
  return {};
}

void VirtualCpu::Store(std::uint64_t linear, std::uint64_t value) {
  for (unsigned tries = 0; tries < kTries; ++tries) {
    TellOfTableWrites();
    EnterGuest();
    core_->replay.Rewind();
    core_->stop = cpu::Stop::kNone;
    if (cpu::Store<std::uint64_t>(*core_, linear, value)) break;
    // The walk has other questions than it had before: an entry need not be updated twice.
    bool again = false;
    if (core_->stop != cpu::Stop::kExit) break;
    if (Resolve(linear, again).kind != Outcome::Kind::kHost && !again) break;
  }
  core_->replay.Clear();
  TellOfTableWrites();
  if (!lent_) return;
  mmu_->GuestWrote(Gpa(lent_->bits() & ~kPageMask), kPageBytes);
}

void VirtualCpu::EnterNested(const PagingState& state, const NestedPaging& nested) {
  core_->guest.active = true;
  core_->guest.nested = nested;
  tdp_walker_.Reset(nested);
  guest_mmu_->NestedPagingChanged(nested);
  active_ = guest_mmu_.get();
  tables_set_ = false;
  SetPaging(state);
}

void VirtualCpu::LeaveNested(const PagingState& state) {
  core_->guest.active = false;
  core_->guest.nested.reset();
  active_ = mmu_.get();
  tables_set_ = false;
  SetPaging(state);
}

void VirtualCpu::InvalidateNested(const NestedInvalidation& invalidation) {
  guest_mmu_->InvalidateNested(invalidation);
  core_->FlushTranslations();
}

void VirtualCpu::SetPaging(const PagingState& state) {
  core_->cr0 = state.cr0;
  core_->cr3 = state.cr3;
  core_->cr4 = state.cr4;
  core_->efer = state.efer;
  core_->pdptes = state.pdptes;
  PagingHasChanged();
}

void VirtualCpu::SetKeys(std::uint32_t pkru, std::uint32_t pkrs) {
  core_->SetProtectionKeys(core_->pkru, pkru);
  core_->SetProtectionKeys(core_->pkrs, pkrs);
}

bool VirtualCpu::RunInstruction(bool (*instruction)(cpu::Core&, const cpu::Op&),
                                const cpu::Op& op) {
  cpu::Core& core = *core_;
  core.replay.Clear();
  for (unsigned tries = 0; tries < kTries; ++tries) {
    EnterGuest();
    BecomePrivileged(Asked::By::kSupervisor);
    core.stop = cpu::Stop::kNone;
    core.replay.Rewind();
    if (instruction(core, op)) {
      core.replay.Clear();
      const bool left = core.stop == cpu::Stop::kExit;
      if (left && core.exit.reason == ExitReason::kInvalidate) {
        mmu_->Invalidate(core.exit.invalidation);
      } else if (left) {
        PagingHasChanged(core.exit.invalidation);
      } else {
        walker_.Reset(core.Paging());
      }
      return true;
    }
    if (core.stop == cpu::Stop::kException) break;
    if (core.exit.reason == ExitReason::kBus) {
      // A PDPTE of PAE paging, read by the outside.
      BusAccess answer = core.exit.bus;
      const std::byte* host = HostRange(memory_, Gpa(answer.address), answer.bytes, false);
      answer.value =
          host == nullptr ? ~std::uint64_t{0} : *reinterpret_cast<const std::uint64_t*>(host);
      core.replay.Add(answer);
      continue;
    }
    bool again = false;
    if (Resolve(0, again).kind == Outcome::Kind::kDevice) {
      BusAccess answer = core.exit.fault.bus;
      answer.value = ~std::uint64_t{0};
      core.replay.Add(answer);
    }
  }
  core.replay.Clear();
  return false;
}

bool VirtualCpu::MovToControl(unsigned number, std::uint64_t value) {
  cpu::Op op;
  op.first = static_cast<cpu::RegisterOffset>(number);
  op.second = kRax * 8;
  op.operand_bytes = 8;
  core_->gpr[kRax] = value;
  return RunInstruction(cpu::MovToControl, op);
}

bool VirtualCpu::Invlpg(std::uint64_t linear) {
  cpu::Op op;
  op.base = kRax * 8;
  op.memory = 1;
  op.address_bytes = core_->code_64() ? 8 : 4;
  core_->gpr[kRax] = linear;
  core_->segments[kDs] = {.selector = 0x10, .attributes = 0xc093, .limit = 0xffff'ffff, .base = 0};
  return RunInstruction(cpu::Invlpg, op);
}

void VirtualCpu::Invpcid(const Invalidation& invalidation) {
  if (invalidation.scope == Invalidation::Scope::kAddress) {
    core_->FlushPage(invalidation.linear.bits());
  } else {
    core_->FlushTranslations();
  }
  if (!core_->tables.second_stage) mmu_->Invalidate(invalidation);
}

}  // namespace pagesaw
