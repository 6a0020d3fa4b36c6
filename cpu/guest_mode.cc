module;
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
module pagesaw.cpu.guest_mode;

import pagesaw.cpu.control_bits;
import pagesaw.cpu.control_registers;
import pagesaw.cpu.core_state;
import pagesaw.cpu.fetch;
import pagesaw.cpu.hardware_walk;
import pagesaw.cpu.intercept;
import pagesaw.cpu.memory;
import pagesaw.cpu.msr;
import pagesaw.cpu.segmentation;

namespace pagesaw::cpu {
namespace {

// The outside gives other tables before anything more is executed.
void TellOfNestedPaging(Core& core) {
  core.replay.Clear();
  core.LeaveWith(ExitReason::kNestedPaging);
}

}  // namespace

CpuState CoreHost::State() const { return StateOf(core_); }

void CoreHost::SwitchState(const CpuState& state) {
  LoadState(core_, state);
  core_.link = nullptr;
  core_.event_queued = false;
  core_.pending.reset();
  core_.replay.Clear();
  core_.stack_shadow = core_.in_repeat = false;
  core_.debug_causes = 0;
  core_.UpdateMode();
  core_.UpdateBreakpoints();
  PagingChanged(core_, Invalidation::Scope::kEverything);
  core_.guest.switched = true;
}

void CoreHost::LoadSystemRegisters(const CpuState& state) {
  for (const SegmentName name : {kFs, kGs, kLdtr, kTr}) core_.segments[name] = state.segments[name];
  core_.star = state.star;
  core_.lstar = state.lstar;
  core_.cstar = state.cstar;
  core_.sfmask = state.sfmask;
  core_.kernel_gs_base = state.kernel_gs_base;
  core_.sysenter_cs = state.sysenter_cs;
  core_.sysenter_esp = state.sysenter_esp;
  core_.sysenter_eip = state.sysenter_eip;
}

CpuMode CoreHost::mode() const {
  return {.cr0 = core_.cr0,
          .cr4 = core_.cr4,
          .efer = core_.efer,
          .rflags = core_.rflags,
          .cpl = core_.cpl,
          .code_64 = core_.code_64()};
}

// The trap that waits for delivery is made of causes, too.
BoundaryState CoreHost::boundary() const {
  BoundaryState boundary = {.stack_shadow = core_.stack_shadow || core_.guest.began_in_stack_shadow,
                            .debug_causes = core_.debug_causes};
  const std::optional<Pending>& pending = core_.pending;
  if (pending && pending->vector == kDb && pending->event_class == EventClass::kTrap) {
    boundary.debug_causes |= pending->dr6;
  }
  return boundary;
}

void CoreHost::SetBoundary(const BoundaryState& boundary) {
  core_.stack_shadow = boundary.stack_shadow;
  core_.debug_causes = boundary.debug_causes;
}

void CoreHost::SetFixedControls(std::uint64_t cr0, std::uint64_t cr4) {
  core_.guest.cr0_fixed = cr0;
  core_.guest.cr4_fixed = cr4;
}

std::uint64_t CoreHost::Tsc() const { return ReadHostTsc(core_); }

bool CoreHost::ReadMsr(std::uint32_t index, std::uint64_t& value) {
  return ReadOwnMsr(core_, index, value);
}
bool CoreHost::WriteMsr(std::uint32_t index, std::uint64_t value) {
  if (index != kMsrTsc || !core_.model->Has(Feature::kTsc)) return WriteOwnMsr(core_, index, value);
  core_.tsc_offset += value - Tsc();
  tsc_loaded_ = true;
  core_.attention.store(true, std::memory_order_relaxed);
  return true;
}

bool CoreHost::TellTsc() {
  BusAccess access = {.kind = BusAccess::Kind::kMsrWrite,
                      .bytes = 8,
                      .address = kMsrTscAdjust,
                      .value = core_.tsc_offset};
  if (tsc_loaded_ && !core_.AskBus(access)) {
    core_.attention.store(true, std::memory_order_relaxed);
    return false;
  }
  if (tsc_loaded_) core_.replay.Clear();
  tsc_loaded_ = false;
  return true;
}

BranchRecords CoreHost::records() const {
  const TransferRecords& records = core_.records;
  return {.debugctl = core_.debugctl,
          .from = records.last.from,
          .to = records.last.to,
          .event_from = records.before_event.from,
          .event_to = records.before_event.to};
}

void CoreHost::SetRecords(const BranchRecords& records) {
  core_.debugctl = records.debugctl;
  core_.records = {.last = {.from = records.from, .to = records.to},
                   .before_event = {.from = records.event_from, .to = records.event_to}};
}

bool CoreHost::LoadOperand(void* to, unsigned bytes) {
  std::uint64_t linear = 0;
  return OperandAddress(core_, *core_.guest.op, bytes, false, linear) &&
         LoadSlow(core_, linear, to, bytes, By::kProgram);
}

bool CoreHost::StoreOperand(const void* from, unsigned bytes) {
  std::uint64_t linear = 0;
  return OperandAddress(core_, *core_.guest.op, bytes, true, linear) &&
         StoreSlow(core_, linear, from, bytes, By::kProgram);
}

RegisterLimits CoreHost::limits() const {
  if (limits_) return *limits_;
  const CpuModel& model = *core_.model;
  limits_ = {.cr0 = AllowedCr0(),
             .cr3 = AllowedCr3(model),
             .cr4 = AllowedCr4(model),
             .efer = AllowedEfer(model),
             .physical_bits = model.physical_bits(),
             .linear_bits = model.linear_bits(),
             .paging = core_.paging.features,
             .nested_paging = model.Has(Feature::kNpt)};
  return *limits_;
}

void CoreHost::EnterGuestMode(const GuestEntry& entry) {
  core_.guest.active = true;
  core_.guest.intercepts = entry.intercepts;
  core_.guest.exceptions = entry.exceptions;
  core_.guest.tsc = entry.tsc;
  const std::byte* const apic = entry.apic_page ? Memory(*entry.apic_page, kPageBytes) : nullptr;
  core_.guest.apic_page = reinterpret_cast<std::uintptr_t>(apic);
  core_.guest.undefined = entry.undefined;
  core_.guest.cr0_shadow = entry.cr0;
  core_.guest.cr4_shadow = entry.cr4;
  core_.guest.deadline = entry.deadline;
  core_.guest.step_due = entry.step_pending;
  core_.guest.tpr_fell = false;
  core_.guest.nested = entry.nested;
  if (entry.structure) core_.guest.structure = entry.structure;
  core_.paging_changed = true;  // what others see of it
  if (entry.nested) TellOfNestedPaging(core_);
}

void CoreHost::LeaveGuestMode() {
  const bool nested = core_.guest.nested.has_value();
  EnterGuestMode({});
  core_.guest.active = false;
  if (nested) TellOfNestedPaging(core_);
}

void CoreHost::Deliver(const DeliveredEvent& event) {
  Pending pending = PendingOf(event);
  pending.injected = true;
  core_.pending = pending;
}

std::optional<DeliveredEvent> CoreHost::TakeDelivered() {
  const std::optional<Pending> pending = core_.delivering;
  core_.delivering.reset();
  if (!pending) return std::nullopt;
  return DeliveredOf(*pending);
}

std::size_t CoreHost::CopyCode(std::span<std::byte> to) { return cpu::CopyCode(core_, to); }

bool CoreHost::LeaveFor(const InterceptedEvent& event) {
  core_.guest.met = event;
  core_.stop = Stop::kLeave;
  return false;
}

void CoreHost::FlushTranslations() { PagingChanged(core_, Invalidation::Scope::kEverything); }

// Two of different scope, before the outside has heard of the first, are as good as everything.
void CoreHost::InvalidateNested(const NestedInvalidation& invalidation) {
  std::optional<NestedInvalidation>& told = core_.guest.nested_invalidation;
  told = !told || *told == invalidation ? invalidation : NestedInvalidation{};
  TellOfNestedPaging(core_);
}

std::byte* CoreHost::Memory(Gpa gpa, std::uint64_t bytes) {
  return memory_ == nullptr ? nullptr : HostRange(*memory_, gpa, bytes, false);
}

bool CoreHost::LocateNested(Gpa gpa, bool write, std::byte*& to) {
  return LocateBehindSecondStage(core_, gpa, write, to);
}

void CoreHost::Wrote(Gpa gpa) {
  const Gpa page = AlignDown(gpa, Level::kPt);
  const auto known = writes_.begin() + write_count_;
  if (std::find(writes_.begin(), known, page) != known) return;
  if (write_count_ < writes_.size()) writes_[write_count_++] = page;
}

std::span<const Gpa> CoreHost::TakeWrites() {
  taken_ = writes_;
  const unsigned count = write_count_;
  write_count_ = 0;
  return {taken_.data(), count};
}

bool VirtualInterruptDue(const Core& core) {
  const GuestInterrupts& interrupts = core.guest.interrupts;
  return core.guest.active && interrupts.virtual_pending && interrupts.open &&
         interrupts.virtual_open && interrupts.virtual_priority > interrupts.virtual_tpr &&
         (core.rflags & kFlagIf) != 0 && !core.interrupt_shadow && !core.pending &&
         !core.event_queued && core.replay.empty() && core.activity != Activity::kShutdown &&
         core.activity != Activity::kWaitForSipi;
}

bool VirtualNmiDue(const Core& core) {
  const GuestInterrupts& interrupts = core.guest.interrupts;
  return core.guest.active && interrupts.virtual_nmi_pending && interrupts.virtual_open &&
         !core.nmi_blocked && !core.interrupt_shadow && !core.pending && !core.event_queued &&
         core.replay.empty() && core.activity != Activity::kShutdown;
}

}  // namespace pagesaw::cpu
