// The processor that needs nothing of the host: it executes guest code by decoded blocks.
module;
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
export module pagesaw.cpu.software_processor;

export import pagesaw.core.processor;
export import pagesaw.cpu.model;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.nested_paging;
import pagesaw.core.paging_state;
export import pagesaw.cpu.code_registry;
import pagesaw.core.guest_memory;
import pagesaw.core.guest_mode;
import pagesaw.cpu.core;
import pagesaw.cpu.fetch;
import pagesaw.cpu.guest_mode;

export namespace pagesaw::cpu {

class SoftwareProcessor final : public Processor {
 public:
  // A processor after RESET. `model` is copied. Processors that share memory share a registry;
  // null makes one, which siblings that are made later may be given.
  // `memory`, which outlives it, is where the extension that the model offers has its structures.
  explicit SoftwareProcessor(const CpuModel& model,
                             std::shared_ptr<CodeRegistry> registry = nullptr,
                             const GuestMemory* memory = nullptr);
  ~SoftwareProcessor() override;

  Exit Run(std::uint64_t instructions) override;
  void CompleteBus(const BusAccess& access) override;
  void LendPage(Gva linear, Hpa host) override;
  void Inject(const Event& event) override;
  bool HasQueuedEvent() const override;
  bool CanTakeInterrupt() const override;
  bool CanTakeNmi() const override;
  bool TakeInterrupt(const std::function<std::uint8_t()>& acknowledge) override;
  bool TakeNmi() override;
  bool CanTakeInit() const override {
    return core_->guest.interrupts.open && core_->guest.interrupts.init_open &&
           core_->activity != Activity::kWaitForSipi;
  }
  InitAnswer TakeInit() override;
  bool TakeStartUp(std::uint8_t vector) override;
  void SetInterruptWindow(bool wanted) override;
  std::span<const Gpa> TakeDirectWrites() override { return unit_host_.TakeWrites(); }
  CpuState GetState() const override;
  void SetState(const CpuState& state) override;
  void Reset() override;
  void SetTables(const TranslationTables& tables) override;
  void FlushTlb() override;
  void FlushContents() override;
  bool ContentsChanged(Hpa host, std::uint64_t bytes) override;
  void SetTscOffset(std::uint64_t offset) override;
  const NestedPaging* nested_paging() const override {
    return core_->guest.nested ? &*core_->guest.nested : nullptr;
  }
  std::optional<NestedInvalidation> TakeNestedInvalidation() override;
  void MeetNestedFault(const NestedFault& fault) override;
  bool LogNestedDirty(Gpa address) override;
  void RequestExit() override;
  PagingState paging_snapshot() const override;
  GuestSnapshot guest_snapshot() const override;
  // From now on time is `time`, which counts this processor's instructions. It is the only one of
  // its VM, and does not run yet.
  void SetVirtualTime(std::shared_ptr<VirtualTime> time);
  // What siblings of this processor are to share with it.
  const std::shared_ptr<CodeRegistry>& registry() const { return registry_; }
  std::uint64_t instructions_retired() const override {
    return retired_.load(std::memory_order_relaxed);
  }
  std::uint64_t progress() const override { return instructions_retired() + delivered_; }

 private:
  template <typename T>
  using Words = std::array<std::atomic<std::uint64_t>, (sizeof(T) + 7) / 8>;
  // What the snapshot has besides the paging state and nested paging.
  struct GuestModeSeen {
    Gpa structure = {};
    bool active = false, nested = false, has_structure = false;
  };

  // Whether something comes before the next block: true, and `core_->exit` is the exit of Run.
  bool LeavesBeforeBlock();
  // Does what others' stores and code ask for.
  void HearNews();
  void RunUntilExit();
  // Executes one block. True: Run returns `core_->exit`.
  bool RunBlock();
  // Makes `core_->pending` the #DB of an instruction breakpoint if the instruction at `linear`
  // meets one.
  bool MeetsBreakpoint(std::uint64_t linear);
  // Makes `core_->pending` the #DB of the traps that wait and of `more`, bits of DR6, if there are
  // any.
  void TellDebugCauses(std::uint64_t more);
  // In guest mode: does what the unit wants before anything more happens, and takes what the guest
  // alone has pending. True: Run returns `core_->exit`.
  bool MeetsVirtualEvents();
  bool TakeVirtualInterrupt();
  // Has `leave` leave guest mode, or deliver something in it. True: Run returns `core_->exit`.
  template <typename Leave>
  bool LeaveGuestModeBy(Leave leave);
  // In guest mode: what makes it be left before anything more happens.
  std::optional<Intercept> DueInGuestMode() const;
  // Waits, halted, for the deadline of guest mode or a while. True.
  bool SleepTowardsDeadline();
  // Leaves guest mode for `event`. True: Run returns `core_->exit`.
  bool LeaveGuestMode(const InterceptedEvent& event);
  bool LeavesBehindSwitch();
  // Delivers `core_->pending`. True: Run returns `core_->exit`.
  bool DeliverPending();
  // Takes the event that the outside has queued, on top of one that could not be delivered. True:
  // Run returns `core_->exit`.
  bool TakeQueued();
  bool LeaveFor(ExitReason reason);
  void PublishPaging();
  // Calls `read` until nothing has changed meanwhile.
  template <typename Read>
  void ReadSnapshot(Read read) const;

  CpuModel model_;
  std::shared_ptr<CodeRegistry> registry_;
  std::unique_ptr<Core> core_;
  std::unique_ptr<VirtUnit> unit_;  // null if the model offers no extension
  CoreHost unit_host_;
  std::unique_ptr<CodeRegistry::Member> member_;
  std::unique_ptr<CodeCache> code_;
  Fetcher fetcher_;
  unsigned deliveries_left_ = 0;  // of this Run
  std::uint64_t delivered_ = 0;   // events
  bool window_wanted_ = false;
  bool run_alone_ = false;  // the next instruction has met a breakpoint
  bool exits_now_ = false;  // the next Run returns `core_->exit` at once
  bool broken_ = false;     // more bus accesses than an instruction can have
  std::atomic<bool> exit_requested_{false};
  std::atomic<std::uint64_t> retired_{0};
  std::shared_ptr<VirtualTime> virtual_time_;  // null: the host's

  // A snapshot that other threads read: `version` is odd while it changes.
  std::atomic<std::uint64_t> snapshot_version_{0};
  Words<PagingState> paging_seen_{};
  Words<GuestModeSeen> guest_mode_seen_{};
  Words<NestedPaging> nested_seen_{};  // of a guest mode with nested paging
};

}  // namespace pagesaw::cpu
