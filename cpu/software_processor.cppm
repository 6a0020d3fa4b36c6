// The processor that needs nothing of the host: it executes guest code by decoded blocks.
module;
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
export module pagesaw.cpu.software_processor;

export import pagesaw.core.processor;
export import pagesaw.cpu.model;
import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.cpu.core;
import pagesaw.cpu.fetch;

export namespace pagesaw::cpu {

class SoftwareProcessor final : public Processor {
 public:
  // A processor after RESET. `model` is copied.
  explicit SoftwareProcessor(const CpuModel& model);
  ~SoftwareProcessor() override;

  Exit Run(std::uint64_t instructions) override;
  void CompleteBus(const BusAccess& access) override;
  void Inject(const Event& event) override;
  bool HasQueuedEvent() const override;
  bool CanTakeInterrupt() const override;
  bool CanTakeNmi() const override;
  void SetInterruptWindow(bool wanted) override;
  CpuState GetState() const override;
  void SetState(const CpuState& state) override;
  void SetTables(const TranslationTables& tables) override;
  void FlushTlb() override;
  void RequestExit() override;
  PagingState paging_snapshot() const override;
  std::uint64_t instructions_retired() const override {
    return retired_.load(std::memory_order_relaxed);
  }

 private:
  static constexpr unsigned kSnapshotWords = (sizeof(PagingState) + 7) / 8;

  // Whether something comes before the next block: true, and `core_->exit` is the exit of Run.
  bool LeavesBeforeBlock();
  // Executes one block. True: Run returns `core_->exit`.
  bool RunBlock();
  // Delivers `pending_`. True: Run returns `core_->exit`.
  bool DeliverPending();
  bool LeaveFor(ExitReason reason);
  void PublishPaging();

  CpuModel model_;
  std::unique_ptr<Core> core_;
  std::unique_ptr<CodeCache> code_;
  Fetcher fetcher_;
  std::optional<Pending> pending_;  // an exception that could not be delivered yet
  bool window_wanted_ = false;
  bool broken_ = false;  // more bus accesses than an instruction can have
  std::atomic<bool> exit_requested_{false};
  std::atomic<std::uint64_t> retired_{0};

  // A snapshot that other threads read: `version` is odd while it changes.
  std::atomic<std::uint64_t> snapshot_version_{0};
  std::array<std::atomic<std::uint64_t>, kSnapshotWords> snapshot_{};
};

}  // namespace pagesaw::cpu
