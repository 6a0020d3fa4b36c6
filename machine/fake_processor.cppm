// A processor that plays a script: each Run takes the next step. For tests of the run loop.
module;
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>
export module pagesaw.machine.fake_processor;

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.nested_paging;
import pagesaw.core.paging_state;
import pagesaw.core.processor;

export namespace pagesaw {

class FakeProcessor final : public Processor {
 public:
  // What a Run does; it may look at and change the processor.
  using Program = std::function<Exit(FakeProcessor&, std::uint64_t budget)>;

  explicit FakeProcessor(Program program) : program_(std::move(program)) {}

  Exit Run(std::uint64_t budget) override {
    ++runs;
    if (event_queued) {
      events.push_back(event);
      event_queued = false;
    }
    if (exit_requested.exchange(false)) return {.reason = ExitReason::kRequested};
    return program_(*this, budget);
  }
  void CompleteBus(const BusAccess& access) override { answers.push_back(access); }
  void LendPage(Gva linear, Hpa host) override { lent.emplace_back(linear, host); }
  void Inject(const Event& e) override {
    event = e;
    event_queued = true;
  }
  bool HasQueuedEvent() const override { return event_queued; }
  bool CanTakeInterrupt() const override { return !event_queued && (state.rflags & kFlagIf) != 0; }
  bool CanTakeNmi() const override { return !event_queued && !state.nmi_blocked; }
  void SetInterruptWindow(bool wanted) override { window_wanted = wanted; }
  CpuState GetState() const override { return state; }
  void SetState(const CpuState& s) override { state = s; }
  void Reset() override {
    ++resets;
    state = ResetState();
  }
  void SetTables(const TranslationTables& t) override {
    tables = t;
    ++tables_set;
  }
  void FlushTlb() override { ++flushes; }
  void FlushContents() override { ++flushes; }
  bool ContentsChanged(Hpa host, std::uint64_t bytes) override {
    changes.emplace_back(host, bytes);
    return true;
  }
  void SetTscOffset(std::uint64_t offset) override { tsc_offset = offset; }
  const NestedPaging* nested_paging() const override { return nested ? &*nested : nullptr; }
  std::optional<NestedInvalidation> TakeNestedInvalidation() override {
    return std::exchange(nested_invalidation, std::nullopt);
  }
  void MeetNestedFault(const NestedFault& fault) override { nested_faults.push_back(fault); }
  void RequestExit() override { exit_requested = true; }
  PagingState paging_snapshot() const override {
    return {.cr0 = state.cr0, .cr3 = state.cr3, .cr4 = state.cr4, .efer = state.efer};
  }
  std::uint64_t instructions_retired() const override { return retired; }

  CpuState state = ResetState();
  std::vector<BusAccess> answers;
  std::vector<std::pair<Gva, Hpa>> lent;
  std::vector<std::pair<Hpa, std::uint64_t>> changes;  // of contents; by one thread at a time
  std::vector<Event> events;                           // delivered
  Event event;
  bool event_queued = false;
  bool window_wanted = false;
  TranslationTables tables;
  unsigned tables_set = 0;
  std::uint64_t tsc_offset = 0;
  std::optional<NestedPaging> nested;
  std::optional<NestedInvalidation> nested_invalidation;
  std::vector<NestedFault> nested_faults;
  unsigned resets = 0;
  std::atomic<unsigned> runs{0};
  std::atomic<unsigned> flushes{0};
  std::atomic<bool> exit_requested{false};
  std::atomic<std::uint64_t> retired{0};

 private:
  Program program_;
};

}  // namespace pagesaw
