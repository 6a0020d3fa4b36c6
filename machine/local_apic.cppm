// A local APIC, as xAPIC page and as x2APIC MSRs.
// [intel/vol3] "Advanced Programmable Interrupt Controller (APIC)"
module;
#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
export module pagesaw.machine.local_apic;

import pagesaw.core.address;
import pagesaw.machine.apic_bus;
import pagesaw.machine.apic_registers;
import pagesaw.machine.apic_timer;
import pagesaw.machine.clock;

export namespace pagesaw {

struct LocalApicOptions {
  std::uint32_t id = 0;
  bool bootstrap = true;
  bool x2apic = true;        // enumerated: the mode can be entered
  bool tsc_deadline = true;  // enumerated: the timer has that mode
  unsigned physical_bits = 46;
};

// Thread safe: its vCPU uses the registers, other vCPUs and devices send messages.
class LocalApic final : public ApicReceiver {
 public:
  // `wake` is called, with no lock held, when something arrived that the vCPU may act on.
  LocalApic(const LocalApicOptions& options, const Clock& clock, const ApicBus& bus,
            std::function<void()> wake);

  // Registers after power-up or INIT; INIT keeps the APIC base and the ID.
  void Reset();
  void ResetForInit();

  // IA32_APIC_BASE. A write is false if it is #GP: reserved bits, or a change of mode that is not
  // possible.
  std::uint64_t base() const;
  bool WriteBase(std::uint64_t value);

  // Whether `gpa` is in the page where the registers answer now.
  bool ClaimsMmio(Gpa gpa) const;
  std::uint32_t ReadMmio(std::uint32_t offset);
  void WriteMmio(std::uint32_t offset, std::uint32_t value);

  // MSRs 800h to 8FFh. Nothing, or false: #GP.
  std::optional<std::uint64_t> ReadMsr(std::uint32_t index);
  bool WriteMsr(std::uint32_t index, std::uint64_t value);

  std::uint64_t tsc_deadline() const;
  void WriteTscDeadline(std::uint64_t value);

  // The guest's time-stamp counter and IA32_TSC_ADJUST, which is what the counter is ahead of the
  // clock's: both start as the clock's does. A deadline follows.
  std::uint64_t tsc() const;
  std::uint64_t tsc_adjust() const;
  void WriteTsc(std::uint64_t value);
  void WriteTscAdjust(std::uint64_t value);

  // CR8: bits 7:4 of the task priority.
  std::uint8_t cr8() const;
  void WriteCr8(std::uint8_t value);

  // The interrupt that its vCPU should take, if any; `AcknowledgeInterrupt` moves it into service.
  bool HasInterrupt() const;
  std::optional<std::uint8_t> AcknowledgeInterrupt();
  // What a write to the EOI register does.
  void EndInterrupt();
  // Local interrupt pin `pin`, 0 or 1, is now at `level`. The PICs' output is at pin 0; what it
  // asks for as ExtINT the vCPU takes from the PICs.
  void SetLint(unsigned pin, bool level);
  // Whether the interrupt output of the PICs reaches the vCPU.
  bool AcceptsExternal() const;

  // What else arrived, each reported once.
  // How many NMIs: at most two, one to be taken and one to wait behind it.
  unsigned TakeNmis();
  bool TakeInit();
  std::optional<std::uint8_t> TakeStartUp();

  std::uint64_t next_deadline_ns() const;
  void Poll();

  std::uint32_t id() const { return options_.id; }
  bool IsDestination(const ApicMessage& message) const override;
  std::uint8_t arbitration_priority() const override;
  void Accept(const ApicMessage& message) override;

 private:
  enum Lvt : unsigned { kTimer, kThermal, kPerformance, kLint0, kLint1, kError, kLvtCount };

  bool enabled() const { return (base_ & apic::kBaseEnable) != 0; }
  bool x2apic() const { return (base_ & apic::kBaseX2apic) != 0; }
  bool software_enabled() const { return (spurious_ & apic::kSpuriousEnable) != 0; }
  void ResetLocked();
  std::uint8_t PriorityLocked() const;
  std::uint32_t LdrLocked() const;
  std::uint32_t ReadLocked(std::uint32_t offset);
  // What a write sends once the lock is released.
  struct Outgoing {
    std::optional<ApicMessage> message;
    std::optional<std::uint8_t> end_of_interrupt;  // of a level-triggered vector
  };
  void Send(const Outgoing& outgoing);
  Outgoing WriteLocked(std::uint32_t offset, std::uint32_t value);
  void WriteLvtLocked(Lvt lvt, std::uint32_t value);
  void WriteSpuriousLocked(std::uint32_t value);
  std::optional<ApicMessage> CommandLocked();
  std::optional<std::uint8_t> EndOfInterruptLocked();
  void AcceptFixedLocked(std::uint8_t vector, bool level);
  void AcceptNmiLocked();
  void ReportErrorLocked(std::uint32_t bit);
  void PollTimerLocked();
  int DeliverableLocked() const;
  bool MatchesLogicalLocked(const ApicMessage& message) const;

  const LocalApicOptions options_;
  const ApicBus& bus_;
  const std::function<void()> wake_;
  mutable std::mutex mutex_;
  ApicTimer timer_;
  std::uint64_t base_ = 0;
  std::uint32_t xapic_id_ = 0;
  std::uint8_t tpr_ = 0;
  std::uint32_t ldr_ = 0, dfr_ = ~0u, spurious_ = 0xff;
  apic::VectorSet irr_, isr_, tmr_;
  std::uint32_t errors_ = 0, esr_ = 0;
  std::uint32_t icr_low_ = 0, icr_high_ = 0;
  std::array<std::uint32_t, kLvtCount> lvt_ = {};
  std::uint8_t lint_levels_ = 0;  // as the pins are now
  unsigned nmis_ = 0;
  bool init_ = false;
  std::optional<std::uint8_t> start_up_;
};

}  // namespace pagesaw
