// What becomes of the exits of a vCPU's processor.
module;
#include <absl/strings/str_format.h>
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
module pagesaw.machine.vcpu;

import pagesaw.machine.hypercalls;

namespace pagesaw {
namespace {

// Only the vCPU's own thread counts; others read.
void CountOne(std::atomic<std::uint64_t>& counter) {
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

// Unless the fault turns out to be a device's.
bool IsForMmu(ExitReason reason) {
  return reason == ExitReason::kTableFault || reason == ExitReason::kPagingChanged ||
         reason == ExitReason::kInvalidate || reason == ExitReason::kNestedPaging;
}

bool IsMmio(const BusAccess& access) {
  return access.kind == BusAccess::Kind::kMmioRead || access.kind == BusAccess::Kind::kMmioWrite;
}

MmuFault MmuFaultOf(const TableFault& fault) {
  return {.address = fault.address,
          .access = fault.access,
          .stage = fault.stage,
          .malformed = fault.malformed,
          .present = fault.present,
          .linear = fault.linear};
}

std::uint64_t LoadWord(Hpa host) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(host.bits()))
      .load(std::memory_order_acquire);
}

// What `found`, met by a walk of nested tables for `fault`, is to the hypervisor.
NestedFault NestedFaultOf(const TableFault& fault, const FaultResolution& resolution) {
  using Kind = WalkFault::Kind;
  const WalkFault& found = resolution.guest_fault;
  const bool malformed = found.kind == Kind::kMalformed;
  const bool present = malformed || found.kind == Kind::kRights;
  return {.address = Gpa(fault.address.bits()),
          .access = fault.access,
          .stage = fault.stage,
          .present = present,
          .malformed = malformed,
          .log_full = resolution.log_full,
          .rights = present ? found.rights : Rights(),
          .linear = fault.linear,
          .linear_valid = fault.linear_valid,
          .guest_rights = fault.guest_rights};
}

}  // namespace

std::optional<VmExit> Vcpu::Handle(const Exit& exit) {
  CountOne(exits_);
  needs_turn_ = !IsForMmu(exit.reason);
  switch (exit.reason) {
    case ExitReason::kBudget:
    case ExitReason::kRequested:
    case ExitReason::kInterruptWindow:
      return std::nullopt;
    case ExitReason::kHalt:
      CountOne(exits_halt_);
      halted_ = true;
      return std::nullopt;
    case ExitReason::kBus: {
      CountOne(exits_bus_);
      BusAccess access = exit.bus;
      if (!environment_.tdp && !nested() && access.kind == BusAccess::Kind::kMmioRead) {
        return HandlePdpteRead(access);
      }
      Dispatch(access);
      processor_->CompleteBus(access);
      return std::nullopt;
    }
    case ExitReason::kTableFault:
      CountOne(exits_table_fault_);
      return HandleFault(exit.fault);
    case ExitReason::kShutdown:
      return VmExit{.reason = StopReason::kShutdown,
                    .message = absl::StrFormat("the guest shut down (triple fault) at rip 0x%x",
                                               processor_->GetState().rip)};
    case ExitReason::kPagingChanged:
      HandlePagingChange(exit.invalidation);
      return std::nullopt;
    case ExitReason::kInvalidate:
      root_mmu_->Invalidate(exit.invalidation);
      return std::nullopt;
    case ExitReason::kNestedPaging:
      HandleNestedPaging(exit.invalidation);
      return std::nullopt;
  }
  return std::nullopt;
}

// The one that the processor's tables are to come from now.
void Vcpu::ChooseMmu() {
  ShadowMmu* const chosen = processor_->nested_paging() != nullptr ? guest_mmu_.get() : nullptr;
  active_mmu_ = chosen != nullptr ? chosen : root_mmu_.get();
  tables_are_written_ = chosen != nullptr && processor_->nested_paging()->tables_are_written;
}

void Vcpu::HandleNestedPaging(const Invalidation& invalidation) {
  ChooseMmu();
  if (const std::optional<NestedInvalidation> gone = processor_->TakeNestedInvalidation();
      gone && guest_mmu_ != nullptr) {
    guest_mmu_->InvalidateNested(*gone);
  }
  if (nested()) {
    environment_.mmu->SetNestedPaging(apic_.id(), *processor_->nested_paging());
    guest_mmu_->NestedPagingChanged(*processor_->nested_paging());
  } else {
    HandlePagingChange(invalidation);
  }
  tables_set_ = false;
}

void Vcpu::HandlePagingChange(const Invalidation& invalidation) {
  const ShadowMmu* const before = active_mmu_;
  ChooseMmu();
  if (active_mmu_ != before) tables_set_ = false;
  if (environment_.tdp || nested()) return;
  const PagingState state = processor_->paging_snapshot();
  environment_.mmu->SetPagingState(apic_.id(), state);
  root_mmu_->PagingChanged(state, invalidation);
  tables_set_ = false;
}

std::optional<VmExit> Vcpu::HandleFault(const TableFault& fault) {
  // Protection-key registers change without an exit.
  if (!environment_.tdp && !nested()) {
    environment_.mmu->SetPagingState(apic_.id(), processor_->paging_snapshot());
  }
  const FaultResolution resolution = active_mmu_->HandleFault(MmuFaultOf(fault));
  if (resolution.violation) NoteViolation(*resolution.violation, fault);
  switch (resolution.outcome) {
    case FaultOutcome::kFixed:
    case FaultOutcome::kSpurious:
    case FaultOutcome::kRetry:
      return NoteFruitless(fault);
    case FaultOutcome::kGuestFault:
      if (nested()) {
        processor_->MeetNestedFault(NestedFaultOf(fault, resolution));
        return std::nullopt;
      }
      processor_->Inject({.kind = Event::Kind::kException,
                          .vector = 14,
                          .has_error_code = true,
                          .error_code = resolution.guest_fault.code.bits(),
                          .cr2 = fault.linear.bits()});
      return std::nullopt;
    case FaultOutcome::kMmio:
      return HandleDeviceFault(fault, resolution.gpa);
    case FaultOutcome::kOutOfMemory:
      return ErrorAt("the host has no memory for the tables that map guest address",
                     resolution.gpa.bits());
    case FaultOutcome::kWriteProtected:
      return HandleProtectedWrite(fault, resolution);
    case FaultOutcome::kAttributeViolation:
      Refuse(*resolution.violation, fault);
      return std::nullopt;
  }
  return std::nullopt;
}

void Vcpu::NoteViolation(const AttributeViolation& violation, const TableFault& fault) {
  if (!environment_.violated) return;
  Access access = violation.access;
  if (violation.stage == Stage::kFinal) access = fault.made;
  environment_.violated({.vcpu = apic_.id(),
                         .rip = processor_->GetState().rip,
                         .gpa = violation.gpa,
                         .linear = fault.linear_valid ? fault.linear : Gva(),
                         .access = access,
                         .stage = violation.stage,
                         .missing = MemoryAttribute::NeededFor(violation.access),
                         .attribute = violation.attribute});
}

// What the attribute's policy wants besides the note. Where it is to stop, whoever was told has
// asked for the pause, and the instruction starts again when the VM is let run on.
void Vcpu::Refuse(const AttributeViolation& violation, const TableFault& fault) {
  needs_turn_ = true;  // the VM may be to be held
  if (violation.attribute.policy == ViolationPolicy::kPageFault) {
    const PagingState paging = processor_->paging_snapshot();
    const bool reports_fetch =
        (paging.cr4 & kCr4Smep) != 0 || ((paging.cr4 & kCr4Pae) != 0 && paging.no_execute());
    const std::uint32_t code =
        fault.made.code_bits() & ~(reports_fetch ? 0 : PageFaultCode::kFetch);
    processor_->Inject({.kind = Event::Kind::kException,
                        .vector = 14,
                        .has_error_code = true,
                        .error_code = code | PageFaultCode::kPresent,
                        .cr2 = fault.linear.bits()});
  } else if (violation.attribute.policy == ViolationPolicy::kGeneralProtection) {
    processor_->Inject({.kind = Event::Kind::kException, .vector = 13, .has_error_code = true});
  }
}

// Not through SPTEs: a processor that runs on linear SPTEs asks for its PDPTEs by their address.
std::optional<VmExit> Vcpu::HandlePdpteRead(BusAccess access) {
  const Gpa gpa(access.address);
  MemoryAttribute attribute;
  if (environment_.attributes != nullptr) attribute = environment_.attributes->Of(GfnOf(gpa));
  const AttributeViolation violation = {.gpa = gpa, .stage = Stage::kTable, .attribute = attribute};
  const bool refused = attribute.Refuses(violation.access);
  const bool goes_on = !refused || attribute.policy == ViolationPolicy::kLog;
  if (goes_on && !ReadMemory(access)) Dispatch(access);
  if (refused) NoteViolation(violation, TableFault{});
  if (goes_on) {
    processor_->CompleteBus(access);
  } else {
    Refuse(violation, TableFault{});
  }
  return std::nullopt;
}

// The processor makes the write itself, so that it is atomic and happens once, but the shadow MMU
// hears of it before anything else is executed.
std::optional<VmExit> Vcpu::HandleProtectedWrite(const TableFault& fault,
                                                 const FaultResolution& resolution) {
  if (fault.stage == Stage::kTable) {
    BusAccess access = fault.bus;
    access.value = 1;
    processor_->CompleteBus(access);
    LendWord(resolution);
  } else {
    LendPage(fault, resolution);
  }
  lent_retired_ = processor_->instructions_retired();
  return NoteFruitless(fault);
}

void Vcpu::LendPage(const TableFault& fault, const FaultResolution& resolution) {
  processor_->LendPage(fault.linear, resolution.host);
  if (lent_count_ == lent_pages_.size()) {
    std::move(lent_pages_.begin() + 1, lent_pages_.end(), lent_pages_.begin());
    --lent_count_;
  }
  lent_pages_[lent_count_++] = AlignDown(resolution.gpa, Level::kPt);
}

// A walk updates an entry at most once, and most that could be updated are not: to tell of all of
// them each time would take away what the walk goes by.
void Vcpu::LendWord(const FaultResolution& resolution) {
  const Gpa gpa(resolution.gpa.bits() & ~std::uint64_t{7});
  const Hpa host(resolution.host.bits() & ~std::uint64_t{7});
  const auto same = [gpa](const LentWord& word) { return word.gpa == gpa; };
  if (std::any_of(lent_words_.begin(), lent_words_.end(), same)) return;
  lent_words_.push_back({.gpa = gpa, .host = host, .value = LoadWord(host)});
}

void Vcpu::TellOfProtectedWrites() {
  for (unsigned i = 0; i < lent_count_; ++i) root_mmu_->GuestWrote(lent_pages_[i], kPageBytes);
  for (LentWord& word : lent_words_) TellIfWritten(word);
  // Until the instruction is done it may write again.
  if (processor_->instructions_retired() == lent_retired_) return;
  lent_count_ = 0;
  lent_words_.clear();
}

// Of the half that was written, if it is one: entries may be of 4 bytes.
void Vcpu::TellIfWritten(LentWord& word) {
  const std::uint64_t now = LoadWord(word.host);
  const std::uint64_t changed = now ^ std::exchange(word.value, now);
  if (changed == 0) return;
  const bool low = static_cast<std::uint32_t>(changed) != 0, high = changed >> 32 != 0;
  root_mmu_->GuestWrote(Gpa(word.gpa.bits() + (low ? 0 : 4)), low && high ? 8 : 4);
}

// Answers a read of guest-physical memory, if there is any.
bool Vcpu::ReadMemory(BusAccess& access) const {
  if (access.kind != BusAccess::Kind::kMmioRead || environment_.memory == nullptr) return false;
  const std::byte* host = HostRange(*environment_.memory, Gpa(access.address), access.bytes, false);
  if (host == nullptr || access.bytes != 8 || access.address % 8 != 0) return false;
  access.value = std::atomic_ref(*reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(host)))
                     .load(std::memory_order_acquire);
  return true;
}

// No memory takes the access. Where data moves, a device or the empty bus answers; that includes
// entries of guest tables that do not lie in RAM. Where none moves (the processor asks whether it
// could write, or an entry of a table in read-only memory wants its A bit), the answer is that
// nothing happens.
std::optional<VmExit> Vcpu::HandleDeviceFault(const TableFault& fault, Gpa gpa) {
  if (fault.access.is_fetch()) {
    return ErrorAt("the guest executes where there is no memory, at guest address", gpa.bits());
  }
  BusAccess access = fault.bus;
  access.address = gpa.bits();
  if (access.bytes != 0) Dispatch(access);
  access.address = fault.bus.address;  // as the processor asked: it may know a linear address only
  processor_->CompleteBus(access);
  return NoteFruitless(fault);
}

std::optional<VmExit> Vcpu::NoteFruitless(const TableFault& fault) {
  const std::uint64_t progress = processor_->progress();
  const std::uint64_t page = fault.address.bits() >> kPageShift;
  if (progress != fruitless_progress_ || page != fruitless_page_) {
    fruitless_progress_ = progress;
    fruitless_page_ = page;
    fruitless_count_ = 0;
    return std::nullopt;
  }
  if (++fruitless_count_ < kMaxFruitlessFaults) return std::nullopt;
  return ErrorAt("internal: the same fault came back without end at guest address",
                 fault.address.bits());
}

void Vcpu::Dispatch(BusAccess& access) {
  needs_turn_ = true;
  switch (access.kind) {
    case BusAccess::Kind::kMsrRead:
    case BusAccess::Kind::kMsrWrite:
      msrs_.Dispatch(access);
      if (access.kind == BusAccess::Kind::kMsrWrite) {
        processor_->SetTscOffset(apic_.tsc_adjust());
      }
      return;
    case BusAccess::Kind::kTprRead:
      access.value = apic_.cr8();
      return;
    case BusAccess::Kind::kTprWrite:
      apic_.WriteCr8(static_cast<std::uint8_t>(access.value & 15));
      return;
    case BusAccess::Kind::kHypercall:
      access.value = AnswerHypercall(HypercallOf(processor_->GetState()), *environment_.apic_bus);
      return;
    case BusAccess::Kind::kX87Error:
      access.value = environment_.coprocessor_error != nullptr &&
                     environment_.coprocessor_error->Report(access.address != 0);
      return;
    default:
      break;
  }
  if (IsMmio(access) && apic_.ClaimsMmio(Gpa(access.address))) {
    DispatchApicPage(access);
  } else {
    DispatchDevice(access);
  }
}

void Vcpu::DispatchDevice(BusAccess& access) {
  const Bus& bus = *environment_.bus;
  if (apic_.id() == 0 || !environment_.deadline_changed) return bus.Dispatch(access);
  const std::uint64_t before = bus.next_deadline_ns();
  bus.Dispatch(access);
  if (bus.next_deadline_ns() < before) environment_.deadline_changed();
}

// Registers are 32 bits at multiples of 16; what is between them reads as 0.
// [intel/vol3] "Local APIC Register Address Map"
void Vcpu::DispatchApicPage(BusAccess& access) {
  const auto offset = static_cast<std::uint32_t>(access.address & 0xfff);
  const unsigned in_register = offset & 15;
  if (access.kind == BusAccess::Kind::kMmioRead) {
    access.value = in_register < 4 ? std::uint64_t{apic_.ReadMmio(offset)} >> (8 * in_register) : 0;
    if (access.bytes < 8) access.value &= (std::uint64_t{1} << (8 * access.bytes)) - 1;
  } else if (in_register == 0 && access.bytes >= 4) {
    apic_.WriteMmio(offset, static_cast<std::uint32_t>(access.value));
  }
}

VmExit Vcpu::ErrorAt(const char* what, std::uint64_t address) const {
  return {
      .reason = StopReason::kError,
      .message = absl::StrFormat("%s 0x%x (rip 0x%x)", what, address, processor_->GetState().rip)};
}

}  // namespace pagesaw
