module;
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
module pagesaw.cpu.software_processor;

import pagesaw.cpu.branch_tracking;
import pagesaw.cpu.control_bits;
import pagesaw.cpu.core_state;
import pagesaw.cpu.dispatch;
import pagesaw.cpu.exceptions;

namespace pagesaw::cpu {
namespace {

// Exceptions that one Run delivers at most. A handler that faults at once retires no instruction,
// so the budget alone would never end.
constexpr unsigned kMaxDeliveries = 4096;

// Instructions between two looks at a deadline.
constexpr std::int64_t kDeadlineSlice = 1000;

// Whether an instruction that leaves so is done all the same: changes of paging that the outside
// hears of, and waiting.
bool LeavesBehind(ExitReason reason) {
  return reason == ExitReason::kPagingChanged || reason == ExitReason::kInvalidate ||
         reason == ExitReason::kNestedPaging || reason == ExitReason::kRequested;
}

// Whether a block of one instruction is a direct jump or call: behind it stands room for its target
// and nothing else.
bool IsDirectJump(const Block& block) { return block.op_count == 2 && block.ops[1].run == nullptr; }

std::unique_ptr<VirtUnit> MakeUnit(const CpuModel& model) {
  // A test's model may have the features and nobody that provides them.
  const bool provided = model.offers_extension() && model.extension() != nullptr;
  return provided ? model.extension()->MakeUnit() : nullptr;
}

// Whether the tracker lets `first`, the instruction at RIP, be executed. INT3 and INT1 stand where
// a debugger has put them: their traps come first. [intel/vol1] "INT3 Treatment"
bool AdmitTarget(Core& core, const Op& first) {
  return IsEndBranch(core, first) || first.run == &Ending<&Int3> || first.run == &Ending<&Int1> ||
         AdmitLegacy(core);
}

// Values that others read while they are written, word by word; whether they are whole is told
// elsewhere.
template <typename T, std::size_t kCount>
void StoreWords(std::array<std::atomic<std::uint64_t>, kCount>& to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T> && kCount == (sizeof(T) + 7) / 8);
  std::array<std::uint64_t, kCount> words = {};
  std::memcpy(words.data(), &value, sizeof(value));
  for (std::size_t i = 0; i < kCount; ++i) to[i].store(words[i], std::memory_order_relaxed);
}

template <typename T, std::size_t kCount>
void LoadWords(const std::array<std::atomic<std::uint64_t>, kCount>& from, T& value) {
  static_assert(std::is_trivially_copyable_v<T> && kCount == (sizeof(T) + 7) / 8);
  std::array<std::uint64_t, kCount> words;
  for (std::size_t i = 0; i < kCount; ++i) words[i] = from[i].load(std::memory_order_relaxed);
  std::memcpy(static_cast<void*>(&value), words.data(), sizeof(value));
}

}  // namespace

SoftwareProcessor::SoftwareProcessor(const CpuModel& model, std::shared_ptr<CodeRegistry> registry,
                                     const GuestMemory* memory)
    : model_(model),
      registry_(registry == nullptr ? std::make_shared<CodeRegistry>() : std::move(registry)),
      core_(std::make_unique<Core>()),
      unit_(MakeUnit(model)),
      unit_host_(*core_, memory),
      member_(std::make_unique<CodeRegistry::Member>(*registry_, core_->attention)),
      code_(std::make_unique<CodeCache>(member_.get())),
      fetcher_(*code_) {
  core_->model = &model_;
  core_->plain_msrs = PlainMsrs(model_.amd_rules());
  core_->code = code_.get();
  core_->unit = unit_.get();
  core_->unit_host = &unit_host_;
  core_->split_lock = &registry_->split_lock();
  SetState(ResetState());
}

SoftwareProcessor::~SoftwareProcessor() = default;

Exit SoftwareProcessor::Run(std::uint64_t instructions) {
  Core& core = *core_;
  const auto budget =
      static_cast<std::int64_t>(std::min<std::uint64_t>(instructions, std::uint64_t{1} << 62));
  core.budget = budget;
  core.run_budget = budget;
  deliveries_left_ = kMaxDeliveries;
  core.stop = Stop::kNone;
  if (std::exchange(exits_now_, false)) {
    if (core.paging_changed) PublishPaging();
    return core.exit;
  }
  core.exit = Exit{};
  core.replay.Rewind();
  core.link = nullptr;  // code and RIP may have changed since
  RunUntilExit();
  core.stop = Stop::kNone;
  if (core.paging_changed) PublishPaging();
  core.retired += static_cast<std::uint64_t>(budget - core.budget);
  core.run_budget = core.budget;
  if (virtual_time_ != nullptr) virtual_time_->SetInstructions(core.retired);
  retired_.store(core.retired, std::memory_order_relaxed);
  return core.exit;
}

void SoftwareProcessor::RunUntilExit() {
  member_->Enter();
  HearNews();
  while (!LeavesBeforeBlock() && !RunBlock()) {
  }
  member_->Leave();
}

void SoftwareProcessor::HearNews() {
  if (!member_->HasNews()) return;
  Core& core = *core_;
  const CodeNews news = member_->TakeNews();
  core.link = nullptr;  // the branch that wanted it may be forgotten
  if (news.drop_all_write_tags) core.tlb.FlushWrites();
  for (const CodeNews::HeldPage& held : news.held) core.tlb.AnnounceWritesTo(held.page << 12);
  member_->Confirm(news);
  if (news.forget_all_code) {
    code_->Clear();
    core.ForgetJumps();
  }
  for (const CodeNews::Change& change : news.changes) code_->Forget(change.host, change.bytes);
}

bool SoftwareProcessor::LeaveFor(ExitReason reason) {
  core_->exit = Exit{.reason = reason};
  return true;
}

bool SoftwareProcessor::LeavesBeforeBlock() {
  Core& core = *core_;
  if (broken_) return LeaveFor(ExitReason::kShutdown);
  if (core.paging_changed) PublishPaging();
  if (core.attention.load(std::memory_order_relaxed)) {
    core.attention.store(false, std::memory_order_seq_cst);
    HearNews();
    if (!unit_host_.TellTsc()) return true;
    if (exit_requested_.exchange(false)) return LeaveFor(ExitReason::kRequested);
  }
  if (core.event_queued && (!core.pending || core.event.kind == Event::Kind::kException) &&
      TakeQueued()) {
    return true;
  }
  if (core.guest.active && MeetsVirtualEvents()) return true;
  for (;;) {
    if (core.guest.active) {
      if (const std::optional<Intercept> due = DueInGuestMode()) {
        if (LeaveGuestMode({.what = *due})) return true;
        continue;
      }
    }
    if (!core.pending) break;
    if (DeliverPending()) return true;
    if (--deliveries_left_ == 0) return LeaveFor(ExitReason::kBudget);
  }
  if (window_wanted_ && CanTakeInterrupt()) {
    window_wanted_ = false;
    return LeaveFor(ExitReason::kInterruptWindow);
  }
  switch (core.activity) {
    case Activity::kActive:
      break;
    case Activity::kShutdown:
      // A guest's own waits for what leads out of guest mode.
      return LeaveFor(core.guest.active ? ExitReason::kHalt : ExitReason::kShutdown);
    case Activity::kHalted:
    case Activity::kWaitForSipi:
      return core.guest.deadline ? SleepTowardsDeadline() : LeaveFor(ExitReason::kHalt);
  }
  return core.budget <= 0 && LeaveFor(ExitReason::kBudget);
}

// Only the processor looks at that time, so it does not wait for long.
bool SoftwareProcessor::SleepTowardsDeadline() {
  constexpr std::uint64_t kLongestNs = 50'000;
  const std::uint64_t now = unit_host_.Tsc();
  const std::uint64_t left = *core_->guest.deadline - now;
  if (now < *core_->guest.deadline && !core_->attention.load(std::memory_order_relaxed)) {
    std::this_thread::sleep_for(std::chrono::nanoseconds(std::min(left, kLongestNs)));
  }
  return LeaveFor(ExitReason::kRequested);
}

bool SoftwareProcessor::MeetsBreakpoint(std::uint64_t linear) {
  Core& core = *core_;
  // On Intel's the load of SS before it hides it, as RF does.
  const bool hidden = core.stack_shadow && !model_.amd_rules();
  if ((core.rflags & kFlagRf) != 0 || core.in_repeat || hidden) return false;
  const BreakpointSet met = core.breakpoints.Execute(linear);
  if (met == 0) return false;
  core.pending = Pending{.vector = kDb, .dr6 = met | core.debug_causes, .return_rip = core.rip};
  core.debug_causes = 0;
  return true;
}

bool SoftwareProcessor::RunBlock() {
  Core& core = *core_;
  const bool trap = (core.rflags & kFlagTf) != 0;
  core.trap_cancelled = core.trap_forced = core.guest.switched = false;
  const bool shadow = core.interrupt_shadow;
  const bool steps = core.guest.intercepts.Has(Intercept::kStep);
  const bool records = core.records_transfers();
  bool single = trap || shadow || steps || run_alone_ || !core.replay.empty() || records;
  const std::uint64_t start = core.rip;
  const std::uint64_t before = core.debug_causes;
  // RF lasts for one instruction.
  const std::uint64_t resume = core.rflags & kFlagRf;
  const bool in_repeat = core.in_repeat;
  const bool stack_shadow = core.stack_shadow;
  if (core.breakpoints.any_execute()) {
    const std::uint64_t linear = LinearRip(core);
    if (MeetsBreakpoint(linear)) return false;
    single = single || core.breakpoints.WatchesCodeIn(linear);
  }
  // Without breakpoints the rest of the block may follow: nobody sees that RF is gone.
  single = single || (resume != 0 && core.breakpoints.any_execute());
  const std::int64_t budget_before = core.budget;
  core.rflags &= ~resume;
  core.stack_shadow = core.in_repeat = run_alone_ = false;
  core.guest.began_in_stack_shadow = stack_shadow;
  core.alone = single;
  core.stop = Stop::kNone;
  const Block* block = fetcher_.Find(core, single);
  const bool admitted =
      block != nullptr && (!WaitsForEndBranch(core) || AdmitTarget(core, block->ops[0]));
  bool branched = false;
  std::uint64_t next = start;
  if (admitted) {
    // A single instruction runs on a budget of its own, so that it cannot jump on into a block.
    const std::int64_t rest = core.budget - block->instructions;
    const std::int64_t longest = single ? 0 : core.guest.deadline ? kDeadlineSlice : rest;
    const std::int64_t held = std::max<std::int64_t>(rest - longest, 0);
    core.budget = single ? 0 : rest - held;
    Op* ops = block->ops;
    core.ip_base = core.rip - ops->ip;
    // The instruction may make the block be forgotten.
    const bool jumps = IsDirectJump(*block);
    next = core.NextRip(ops);
    ops->run(core, ops);
    core.budget += single ? rest : held;
    branched = jumps || (core.rip != next && !core.in_repeat);
  }
  core.guest.began_in_stack_shadow = false;
  const bool done =
      core.stop == Stop::kNone || (core.stop == Stop::kExit && LeavesBehind(core.exit.reason));
  if (done && core.guest.switched) {
    if (core.guest.active && !core.stack_shadow && !core.pending) TellDebugCauses(0);
    return LeavesBehindSwitch();
  }
  if (done) {
    // A load of SS behind another one hides nothing.
    if (stack_shadow) core.stack_shadow = false;
    if (shadow) core.interrupt_shadow = core.stack_shadow;
    if (single) core.replay.Clear();
    // A debug exception that an instruction asked for has ended the recording.
    if (branched && records && core.records_transfers()) core.records.NoteBranch(start, core.rip);
    core.guest.step_due = core.guest.step_due || steps;
    const bool wants_step = (trap && !core.trap_cancelled) || core.trap_forced;
    const bool trapped = wants_step && (branched || (core.debugctl & kDebugctlBtf) == 0);
    if (!core.stack_shadow) TellDebugCauses(trapped ? kDr6Bs : 0);
  } else {
    // It may begin again: nothing of it has happened, what waited waits.
    core.debug_causes = before;
    if (core.stop != Stop::kException) {
      if (core.budget == budget_before) core.rflags |= resume;
      core.in_repeat = core.in_repeat || in_repeat;
      core.stack_shadow = stack_shadow;
    }
  }
  switch (core.stop) {
    case Stop::kNone:
      return false;
    case Stop::kException:
      core.replay.Clear();  // should it begin again, it asks anew
      core.exception.return_rip = core.rip;
      core.pending = core.exception;
      return false;
    case Stop::kExit:
      return true;
    case Stop::kLeave:
      if (core.guest.met.what == Intercept::kApicAccess) {
        core.guest.met.instruction_bytes = static_cast<std::uint8_t>(next - start);
      }
      return LeaveGuestMode(core.guest.met);
    case Stop::kAlone:
      run_alone_ = true;
      return false;
  }
  return LeaveFor(ExitReason::kShutdown);
}

void SoftwareProcessor::CompleteBus(const BusAccess& access) {
  if (!core_->replay.Add(access)) broken_ = true;
}

void SoftwareProcessor::LendPage(Gva linear, Hpa host) {
  core_->replay.Lend(linear.bits(), host.bits());
}

CpuState SoftwareProcessor::GetState() const { return StateOf(*core_); }

void SoftwareProcessor::SetState(const CpuState& state) {
  Core& core = *core_;
  LoadState(core, state);
  core.extended = state.extended;
  core.stack_shadow = core.in_repeat = run_alone_ = false;
  core.debug_causes = 0;
  core.replay.Clear();
  core.event_queued = false;
  core.pending.reset();
  core.UpdateMode();
  core.UpdatePaging();
  core.UpdateBreakpoints();
  FlushContents();
  PublishPaging();
}

void SoftwareProcessor::Reset() {
  unit_ = MakeUnit(model_);
  core_->unit = unit_.get();
  core_->guest = {};
  exits_now_ = false;
  SetState(ResetState());
}

void SoftwareProcessor::SetTables(const TranslationTables& tables) {
  const TranslationTables old = std::exchange(core_->tables, tables);
  core_->second_stage_tlb.Flush();
  const bool two_stages = old.second_stage && tables.second_stage;
  if (two_stages || (old.format == tables.format && old.second_stage == tables.second_stage)) {
    core_->FlushTranslations();  // the guest's format is judged by the same registers as before
  } else {
    core_->UpdatePaging();
  }
}

void SoftwareProcessor::FlushTlb() {
  core_->second_stage_tlb.Flush();
  core_->FlushTranslations();
}

void SoftwareProcessor::FlushContents() {
  code_->Clear();
  core_->replay.TakeBack();
  core_->second_stage_tlb.Flush();
  core_->FlushTranslations();
}

bool SoftwareProcessor::ContentsChanged(Hpa host, std::uint64_t bytes) {
  return member_->Changed(host.bits(), bytes);
}

void SoftwareProcessor::SetVirtualTime(std::shared_ptr<VirtualTime> time) {
  virtual_time_ = std::move(time);
  core_->virtual_time = virtual_time_.get();
}

void SoftwareProcessor::SetTscOffset(std::uint64_t offset) { core_->tsc_offset = offset; }

void SoftwareProcessor::RequestExit() {
  exit_requested_.store(true);
  core_->attention.store(true);
}

void SoftwareProcessor::PublishPaging() {
  Core& core = *core_;
  core.paging_changed = false;
  const GuestMode& guest = core.guest;
  const std::uint64_t version = snapshot_version_.load(std::memory_order_relaxed);
  snapshot_version_.store(version + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  StoreWords(paging_seen_, core.paging);
  StoreWords(guest_mode_seen_, GuestModeSeen{.structure = guest.structure.value_or(Gpa()),
                                             .active = guest.active,
                                             .nested = guest.nested.has_value(),
                                             .has_structure = guest.structure.has_value()});
  if (guest.nested) StoreWords(nested_seen_, *guest.nested);
  snapshot_version_.store(version + 2, std::memory_order_release);
}

template <typename Read>
void SoftwareProcessor::ReadSnapshot(Read read) const {
  for (;;) {
    const std::uint64_t version = snapshot_version_.load(std::memory_order_acquire);
    read();
    std::atomic_thread_fence(std::memory_order_acquire);
    if ((version & 1) == 0 && snapshot_version_.load(std::memory_order_relaxed) == version) return;
  }
}

PagingState SoftwareProcessor::paging_snapshot() const {
  PagingState state;
  ReadSnapshot([&] { LoadWords(paging_seen_, state); });
  return state;
}

GuestSnapshot SoftwareProcessor::guest_snapshot() const {
  GuestSnapshot snapshot;
  GuestModeSeen seen;
  NestedPaging nested;
  ReadSnapshot([&] {
    LoadWords(paging_seen_, snapshot.paging);
    LoadWords(guest_mode_seen_, seen);
    LoadWords(nested_seen_, nested);
  });
  snapshot.guest_mode = seen.active;
  if (seen.nested) snapshot.nested = nested;
  if (seen.has_structure) snapshot.structure = seen.structure;
  return snapshot;
}

}  // namespace pagesaw::cpu
