// One virtual CPU: a processor, the shadow MMU whose tables it runs on and its local APIC, and what
// becomes of each exit. Its loop is driven by whoever owns the thread.
module;
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>
export module pagesaw.machine.vcpu;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virtual_time;
import pagesaw.machine.apic_bus;
import pagesaw.machine.bus;
import pagesaw.machine.clock;
import pagesaw.machine.coprocessor_error;
import pagesaw.machine.local_apic;
import pagesaw.machine.msr_file;
import pagesaw.machine.pic;
import pagesaw.machine.violation_log;
import pagesaw.machine.vm_exit;
import pagesaw.machine.vm_parts;
import pagesaw.mmu.memory_attributes;

export namespace pagesaw {

// What a vCPU works with; all of it outlives the vCPU.
struct VcpuEnvironment {
  const Clock* clock = nullptr;
  VirtualTime* virtual_time = nullptr;  // what `clock` shows, if it is no time of the host's
  const Bus* bus = nullptr;
  Pic* pic = nullptr;
  const ApicBus* apic_bus = nullptr;
  VmMmu* mmu = nullptr;
  const GuestMemory* memory = nullptr;  // needed if not `tdp`
  bool tdp = true;
  CoprocessorError* coprocessor_error = nullptr;  // of the first vCPU; null: nobody interrupts
  // Where a guest that slept wants to go on, in real mode. May be empty: at 0.
  std::function<std::uint32_t()> waking_vector = {};
  const MemoryAttributes* attributes = nullptr;  // of the memory; null: none
  // Called by the vCPU's thread when an attribute refused an access, with what the policy says left
  // to be done: to hold the VM if it is to stop. May be empty.
  std::function<void(const Violation&)> violated = {};
  // Called when another vCPU than the first, which looks after the devices, gave one of them a
  // deadline. May be empty.
  std::function<void()> deadline_changed = {};
};

class Vcpu {
 public:
  // Guest instructions between two looks at the world, at most.
  static constexpr std::uint64_t kSliceInstructions = 200'000;
  // A fault of one page repeated this often without an instruction done is a bug, not a guest.
  static constexpr unsigned kMaxFruitlessFaults = 1'000;

  // `guest_mmu` is null if the processor offers no nested paging.
  Vcpu(const VcpuEnvironment& environment, std::unique_ptr<Processor> processor,
       std::unique_ptr<ShadowMmu> root_mmu, std::unique_ptr<ShadowMmu> guest_mmu, LocalApic& apic,
       MsrFile& msrs);

  // One turn of the loop: delivers what is due, runs the guest until an exit that concerns more
  // than the shadow MMU or for a slice of time, handles it. While the guest halts, waits instead:
  // for something to do, for Kick, or until `wait_limit_ns`. Returns how the VM ends if this turn
  // ended it. The vCPU's thread only.
  std::optional<VmExit> Step(std::uint64_t wait_limit_ns = kNever);

  // Ends a Step that runs or waits, soon. Any thread.
  void Kick();

  // Suspend to RAM: the vCPU is reset and sleeps. After WakeUp the first vCPU goes on at the waking
  // vector, the others as after INIT. Any thread.
  void Suspend();
  void WakeUp();

  // Makes the vCPU forget its translations before it executes anything more; `WaitOutOfGuest` then
  // returns once it has left whatever it was executing. Any thread.
  void RequestFlush();
  // The same, and what it made from the contents of memory.
  void RequestContentsFlush();
  void WaitOutOfGuest();
  // Returns once it is done with the exit that it was handling, if it was. Any other thread.
  void WaitOutOfExit();

  // While no other thread is in Step.
  CpuState GetState() const;
  void SetState(const CpuState& state);

  // Any thread.
  Processor& processor() { return *processor_; }
  const Processor& processor() const { return *processor_; }
  const ShadowMmu& root_mmu() const { return *root_mmu_; }
  const ShadowMmu* guest_mmu() const { return guest_mmu_.get(); }
  VcpuStatistics statistics() const;

 private:
  using Ending = std::optional<VmExit>;
  // A word with entries of the guest's own tables, as it was last seen, that the processor may be
  // updating though no SPTE lets it.
  struct LentWord {
    Gpa gpa = {};
    Hpa host = {};
    std::uint64_t value = 0;
  };

  std::uint64_t NextDeadline() const;
  void PollTimers(std::uint64_t now_ns);
  // INIT and start-up messages. False: the vCPU cannot run.
  Ending TakeStartMessages();
  void TakeNmis();
  void StartAt(std::uint32_t address);
  void TakeSleepRequests();
  bool InterruptPending() const;
  bool ShouldWake();
  void Wait(std::uint64_t until_ns);
  void WaitVirtually();
  void InjectPending();
  Ending RunSlice(std::uint64_t now_ns);
  std::uint64_t SliceAt(std::uint64_t now_ns) const;
  Exit RunGuest(std::uint64_t budget);
  void EnterGuest();
  void LeaveGuest();

  Ending Handle(const Exit& exit);
  Ending HandleFault(const TableFault& fault);
  Ending HandlePdpteRead(BusAccess access);
  void NoteViolation(const AttributeViolation& violation, const TableFault& fault);
  void Refuse(const AttributeViolation& violation, const TableFault& fault);
  void HandlePagingChange(const Invalidation& invalidation);
  void HandleNestedPaging(const Invalidation& invalidation);
  void ChooseMmu();
  bool nested() const { return active_mmu_ != root_mmu_.get(); }
  Ending HandleProtectedWrite(const TableFault& fault, const FaultResolution& resolution);
  void LendPage(const TableFault& fault, const FaultResolution& resolution);
  void LendWord(const FaultResolution& resolution);
  bool lends() const { return lent_count_ != 0 || !lent_words_.empty(); }
  void TellOfProtectedWrites();
  void TellIfWritten(LentWord& word);
  bool ReadMemory(BusAccess& access) const;
  Ending HandleDeviceFault(const TableFault& fault, Gpa gpa);
  Ending NoteFruitless(const TableFault& fault);
  void Dispatch(BusAccess& access);
  void DispatchApicPage(BusAccess& access);
  void DispatchDevice(BusAccess& access);
  VmExit ErrorAt(const char* what, std::uint64_t address) const;

  const VcpuEnvironment environment_;
  const std::unique_ptr<Processor> processor_;
  const std::unique_ptr<ShadowMmu> root_mmu_;
  const std::unique_ptr<ShadowMmu> guest_mmu_;
  // Whose tables the processor runs on. It may have left nested paging already when it has yet to
  // tell.
  ShadowMmu* active_mmu_;
  bool tables_are_written_ = false;
  LocalApic& apic_;
  MsrFile& msrs_;

  bool tables_set_ = false;
  bool halted_ = false;
  bool waits_for_start_up_ = false;
  bool asleep_ = false;
  unsigned nmis_pending_ = 0;
  bool nmi_queued_ = false;  // the processor has yet to deliver one
  bool init_pending_ = false;

  std::uint64_t fruitless_page_ = ~std::uint64_t{0};
  std::uint64_t fruitless_progress_ = 0;
  unsigned fruitless_count_ = 0;

  // Pages that the processor may be writing for the instruction at hand, though no SPTE lets it.
  std::array<Gpa, 4> lent_pages_ = {};
  unsigned lent_count_ = 0;
  std::vector<LentWord> lent_words_;
  std::uint64_t lent_retired_ = 0;
  bool needs_turn_ = false;  // the exit at hand may concern more than the shadow MMU

  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool kicked_ = false;

  std::atomic<bool> suspend_requested_{false}, wake_up_requested_{false};
  std::atomic<bool> flush_requested_{false}, contents_flush_requested_{false};
  std::atomic<std::uint32_t> guest_epoch_{0};  // odd while it executes guest code
  std::atomic<std::uint32_t> exit_epoch_{0};   // odd while it handles an exit

  std::atomic<std::uint64_t> exits_{0}, exits_table_fault_{0}, exits_bus_{0}, exits_halt_{0},
      interrupts_{0};
};

}  // namespace pagesaw
