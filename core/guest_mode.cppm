// What a virtualization extension does to a processor: its instructions, the guest mode that they
// lead into, and what brings a guest out of it. The processor knows these words and no extension's
// control structures; whoever implements `VirtUnit` knows the structures and no processor's inside.
module;
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
export module pagesaw.core.guest_mode;

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.nested_paging;
import pagesaw.core.paging_state;

export namespace pagesaw {

// Instructions that extensions add, by the manuals' names.
enum class VirtInstruction : std::uint8_t {
  kClgi,
  kInvept,
  kInvlpga,
  kInvvpid,
  kSkinit,
  kStgi,
  kVmcall,
  kVmclear,
  kVmfunc,
  kVmlaunch,
  kVmload,
  kVmmcall,
  kVmptrld,
  kVmptrst,
  kVmread,
  kVmresume,
  kVmrun,
  kVmsave,
  kVmwrite,
  kVmxoff,
  kVmxon,
};

// What can make a processor leave guest mode.
enum class Intercept : std::uint8_t {
  kException,  // `number`: vector; `value`: what CR2 or DR6 would become
  kInterrupt,  // an external one
  kNmi,
  kInit,
  kStartUp,           // a start-up message, in Activity::kWaitForSipi; `number`: its vector
  kVirtualInterrupt,  // the one that `GuestInterrupts` has pending could be taken
  kShutdown,          // a triple fault
  kTaskSwitch,        // `value`: the selector; `number`: TaskSwitchSource; perhaps an error code
  kCpuid,
  kHlt,
  kInvd,
  kWbinvd,
  kInvlpg,   // `value`: the linear address
  kInvpcid,  // `value`: of the descriptor
  kRdtsc,
  kRdtscp,
  kRdpmc,
  kRdrand,
  kRdseed,
  kRsm,
  kPause,
  kMonitor,
  kMwait,
  kXsetbv,
  kXsaves,
  kXrstors,
  kPushf,
  kPopf,
  kIret,
  kSoftwareInterrupt,  // INT n; `number`: vector
  kIcebp,
  kIo,            // `io`
  kReadMsr,       // `number`: index
  kWriteMsr,      // `number`: index; `value`
  kReadControl,   // `number`: of the register; `gpr`
  kWriteControl,  // the same; `value`
  kClts,
  kLmsw,       // `value`
  kSmsw,       // `gpr`, unless `memory`
  kReadDebug,  // `number`: of the register; `gpr`
  kWriteDebug,
  kReadIdtr,
  kReadGdtr,
  kReadLdtr,
  kReadTr,
  kWriteIdtr,
  kWriteGdtr,
  kWriteLdtr,
  kWriteTr,
  kInstruction,  // `instruction`, one of an extension
  // Met between two instructions.
  kStep,               // one is done, or an event has been delivered
  kDeadline,           // the time has come that GuestEntry names
  kInterruptWindow,    // RFLAGS.IF and shadows let external interrupts in
  kNmiWindow,          // and NMIs
  kTprBelowThreshold,  // a load of CR8 has put `virtual_tpr` below `tpr_threshold`
  kVirtualApic,        // GuestInterrupts::asks_at_boundary, which this takes back
  // Of the unit's own: an access to GuestEntry::apic_page. `number`: PageAccess::offset
  kApicAccess,
  kCount,
};

// A set of them: what a `VirtUnit` wants to be asked about.
class InterceptSet {
 public:
  constexpr bool Has(Intercept what) const { return (bits_ >> Number(what) & 1) != 0; }
  constexpr void Add(Intercept what) { bits_ |= std::uint64_t{1} << Number(what); }
  constexpr void AddIf(bool wanted, Intercept what) {
    if (wanted) Add(what);
  }
  constexpr bool operator==(const InterceptSet&) const = default;

 private:
  static constexpr unsigned Number(Intercept what) { return static_cast<unsigned>(what); }
  static_assert(static_cast<unsigned>(Intercept::kCount) <= 64);

  std::uint64_t bits_ = 0;
};

enum class TaskSwitchSource : std::uint8_t { kCall, kIret, kJump, kGate };

// One access to I/O ports.
struct PortAccess {
  std::uint16_t port = 0;
  std::uint8_t bytes = 1;
  bool in = false;
  bool string = false;
  bool repeated = false;
  std::uint8_t address_bytes = 8;  // string: width of the index register
  std::uint8_t segment = kDs;      // string: SegmentName of the memory operand
  bool immediate_port = false;
};

// How an instruction names its memory operand.
struct MemoryOperand {
  std::uint64_t displacement = 0;  // with the next instruction's address, where that is the base
  std::uint8_t segment = kDs;      // SegmentName
  std::uint8_t address_bytes = 8;
  std::uint8_t scale = 0;  // log2
  std::optional<Gpr> base = {}, index = {};
};

// An event on its way through the guest's IDT: what is delivered on entering guest mode, or what
// was being delivered when guest mode was left.
struct DeliveredEvent {
  enum class Kind : std::uint8_t {
    kExternalInterrupt,
    kNmi,
    kException,            // a fault, trap or abort
    kSoftwareException,    // of INT3 or INTO
    kPrivilegedException,  // of ICEBP
    kSoftwareInterrupt,    // INT n
  };
  Kind kind = Kind::kExternalInterrupt;
  std::uint8_t vector = 0;
  bool has_error_code = false;
  std::uint32_t error_code = 0;
  std::uint64_t return_rip = 0;  // software events: behind the instruction
  bool checks_gate = false;      // software events: the gate's DPL holds, as for the instruction
};

// One thing that has been met in guest mode.
struct InterceptedEvent {
  Intercept what = Intercept::kException;
  std::uint32_t number = 0;
  std::uint64_t value = 0;
  std::uint8_t gpr = 0;         // Gpr of the first register operand
  std::uint8_t second_gpr = 0;  // and of the second, of kInstruction
  bool memory = false;          // an operand is memory: `operand`
  MemoryOperand operand = {};
  std::uint8_t operand_bytes = 8;
  DeliveredEvent::Kind kind = DeliveredEvent::Kind::kException;  // of kException
  bool has_error_code = false;
  std::uint32_t error_code = 0;
  std::uint8_t instruction_bytes = 0;  // length of the instruction, if it is one
  VirtInstruction instruction = VirtInstruction::kVmcall;
  PortAccess io = {};
};

// How interrupts reach whatever runs now. All but `open` and `init_open` count in guest mode only.
struct GuestInterrupts {
  // False: external interrupts, NMIs and INIT wait.
  bool open = true;
  // False: INIT waits.
  bool init_open = true;
  // `host_flag`, and neither RFLAGS.IF nor a shadow, says whether external interrupts wait.
  bool by_host_flag = false;
  bool host_flag = false;
  // External interrupts and NMIs leave guest mode, in spite of shadows.
  bool interrupt_leaves = false;
  bool nmi_leaves = false;
  // Leaving for an external interrupt acknowledges it (`number` of the event is its vector). Else
  // it waits on.
  bool taken_on_leaving = false;
  // The same of NMIs.
  bool nmi_taken_on_leaving = false;
  // And of INIT.
  bool init_taken_on_leaving = false;
  // What NMIs block and IRET unblocks are virtual NMIs; real ones are not blocked.
  bool virtual_nmis = false;
  // IRET leaves the blocking of NMIs as it is.
  bool iret_keeps_nmi_blocked = false;
  // virtual_nmis: whether real ones are blocked all the same.
  bool real_nmi_blocked = false;
  // virtual_nmis: an NMI for the guest alone, taken as soon as `virtual_open`, virtual NMIs and
  // shadows allow.
  bool virtual_nmi_pending = false;
  // taken_on_leaving: the unit is asked (Intercept::kInterrupt) whether an external interrupt
  // leaves guest mode. One that does not has been dealt with, and is over.
  bool asks_about_interrupts = false;
  // The unit is asked (Intercept::kVirtualApic) before the next instruction.
  bool asks_at_boundary = false;
  // An interrupt for the guest alone, taken as soon as its RFLAGS.IF and shadows allow if
  // `virtual_priority` is above `virtual_tpr`.
  bool virtual_open = true;  // what the guest itself can set
  bool virtual_pending = false;
  std::uint8_t virtual_vector = 0;
  std::uint8_t virtual_priority = 0;
  // CR8 is `virtual_tpr` and not the local APIC's.
  bool has_virtual_tpr = false;
  std::uint8_t virtual_tpr = 0;
  std::uint8_t tpr_threshold = 0;
  // Loads of CR8 set `asks_at_boundary` instead of being held against `tpr_threshold`.
  bool asks_about_tpr = false;
};

// How a guest's time-stamp counter runs.
struct GuestTsc {
  std::uint64_t multiplier = 1;    // of the hypervisor's: a fixed-point number
  std::uint8_t fraction_bits = 0;  // of it, less than 64
  std::uint64_t offset = 0;

  constexpr std::uint64_t Of(std::uint64_t tsc) const {
    const auto product = static_cast<unsigned __int128>(tsc) * multiplier;
    return static_cast<std::uint64_t>(product >> fraction_bits) + offset;
  }
};

// An access to the page that GuestEntry::apic_page names.
struct PageAccess {
  enum class Kind : std::uint8_t { kRead, kWrite, kFetch };
  Kind kind = Kind::kRead;
  std::uint16_t offset = 0;
  std::uint8_t bytes = 0;    // 0: not to be judged by, as of what reads and writes at once
  bool in_delivery = false;  // it is made to deliver an event
};

// DebugCtl, and where control went last while its LBR was set.
struct BranchRecords {
  std::uint64_t debugctl = 0;
  std::uint64_t from = 0, to = 0;
  std::uint64_t event_from = 0, event_to = 0;  // before the last interrupt or exception
  constexpr bool operator==(const BranchRecords&) const = default;
};

struct ShadowedControl {
  std::uint64_t mask = 0;
  std::uint64_t shadow = 0;

  constexpr std::uint64_t Read(std::uint64_t real) const {
    return (real & ~mask) | (shadow & mask);
  }
  constexpr std::uint64_t Written(std::uint64_t real, std::uint64_t value) const {
    return (real & mask) | (value & ~mask);
  }
};

// How guest mode is entered.
struct GuestEntry {
  InterceptSet intercepts;       // what the unit is asked about
  std::uint32_t exceptions = 0;  // of Intercept::kException: a bit for each vector
  GuestTsc tsc = {};
  // How the guest's physical addresses are translated; nothing: they are the hypervisor's.
  std::optional<NestedPaging> nested = {};
  // Instructions that do not exist in the guest: of RDTSCP (with
  // RDPID), INVPCID and XSAVES (with XRSTORS).
  InterceptSet undefined = {};
  // Bits of CR0 and CR4 that the guest reads from a shadow and cannot change.
  ShadowedControl cr0 = {}, cr4 = {};
  // When Intercept::kDeadline is met: a value of the time-stamp counter without the guest's offset.
  std::optional<std::uint64_t> deadline = {};
  // Intercept::kStep is met before the first instruction, and not behind it.
  bool step_pending = false;
  // For people: where the hypervisor has the control structure that this comes from.
  std::optional<Gpa> structure = {};
  // A page of the hypervisor's memory: VirtUnit::AccessApicPage answers for accesses that lead to
  // it.
  std::optional<Gpa> apic_page = {};
};

// What the next instruction boundary finds besides the state, or found where the instruction at
// hand begins.
struct BoundaryState {
  bool stack_shadow = false;       // the interrupt shadow is that of a load of SS
  std::uint64_t debug_causes = 0;  // bits of DR6, for a #DB that is a trap
};

// What the processor can hold in its registers.
struct RegisterLimits {
  std::uint64_t cr0 = 0;  // bits that may be set
  std::uint64_t cr3 = 0;  // in long mode
  std::uint64_t cr4 = 0;
  std::uint64_t efer = 0;
  unsigned physical_bits = 0;
  unsigned linear_bits = 0;
  PagingFeatures paging = {};
  bool nested_paging = false;  // CPUID has it
};

// The mode that an instruction is met in.
struct CpuMode {
  std::uint64_t cr0 = 0, cr4 = 0, efer = 0, rflags = 0;
  unsigned cpl = 0;
  bool code_64 = false;

  constexpr bool protected_mode() const { return (cr0 & kCr0Pe) != 0 && (rflags & kFlagVm) == 0; }
  constexpr bool compatibility() const { return (efer & kEferLma) != 0 && !code_64; }
};

// What a unit may do to its processor, on the processor's thread, while it is called.
class VirtHost {
 public:
  virtual ~VirtHost() = default;

  // The state at an instruction boundary. While an instruction of the extension is executed, RIP is
  // behind it.
  virtual CpuState State() const = 0;
  // Takes `state` but for its x87 and vector registers, and forgets all translations and events.
  virtual void SwitchState(const CpuState& state) = 0;
  // Takes of `state` what VMLOAD loads: FS, GS, TR and LDTR, and the MSRs of system calls. Forgets
  // nothing.
  virtual void LoadSystemRegisters(const CpuState& state) = 0;
  virtual BoundaryState boundary() const = 0;
  // To be called behind SwitchState, which forgets it.
  virtual void SetBoundary(const BoundaryState& boundary) = 0;
  virtual CpuMode mode() const = 0;
  virtual std::uint64_t gpr(Gpr number) const = 0;
  virtual void SetGpr(Gpr number, std::uint64_t value) = 0;
  // CF, PF, AF, ZF, SF and OF, all of them.
  virtual void SetArithmeticFlags(std::uint64_t flags) = 0;
  virtual RegisterLimits limits() const = 0;
  // Whether the processor has a CPUID feature, named as the flags of /proc/cpuinfo are.
  virtual bool Has(std::string_view feature) const = 0;
  // Bits of CR0 and CR4 that loads of them must have set; else #GP.
  virtual void SetFixedControls(std::uint64_t cr0, std::uint64_t cr4) = 0;
  // The time-stamp counter without what the guest's is ahead.
  virtual std::uint64_t Tsc() const = 0;
  // MSRs of the processor itself, as RDMSR and WRMSR see them. False: refused, or not its own.
  virtual bool ReadMsr(std::uint32_t index, std::uint64_t& value) = 0;
  virtual bool WriteMsr(std::uint32_t index, std::uint64_t value) = 0;

  virtual BranchRecords records() const = 0;
  virtual void SetRecords(const BranchRecords& records) = 0;

  virtual bool guest_mode() const = 0;
  virtual void EnterGuestMode(const GuestEntry& entry) = 0;
  virtual void LeaveGuestMode() = 0;
  virtual GuestInterrupts& interrupts() = 0;

  // Delivers `event` before the first instruction. It is not intercepted; what goes wrong on its
  // way is.
  virtual void Deliver(const DeliveredEvent& event) = 0;
  // What was being delivered when guest mode was left; it is forgotten.
  virtual std::optional<DeliveredEvent> TakeDelivered() = 0;

  // Refuse the instruction at hand. They return false, for it to end with.
  virtual bool RaiseUndefined() = 0;
  virtual bool RaiseGeneralProtection() = 0;
  // Access the memory operand of the instruction at hand. False: that faults, and the host has been
  // told; the instruction ends with it.
  virtual bool LoadOperand(void* to, unsigned bytes) = 0;
  virtual bool StoreOperand(const void* from, unsigned bytes) = 0;
  // Copies what a fetch from RIP would find now, as far as it would meet no fault. How many bytes.
  virtual std::size_t CopyCode(std::span<std::byte> to) = 0;
  // Leaves guest mode for `event` instead of executing the instruction at hand. Returns false.
  virtual bool LeaveFor(const InterceptedEvent& event) = 0;
  // Forgets translations of linear addresses.
  virtual void FlushTranslations() = 0;
  // Forgets translations of nested tables, also those by which a guest that is entered afterwards
  // would run.
  virtual void InvalidateNested(const NestedInvalidation& invalidation) = 0;

  // `bytes` bytes of guest-physical memory from `gpa`, in one page; null where there are none.
  virtual std::byte* Memory(Gpa gpa, std::uint64_t bytes) = 0;
  // With nested paging, the page at `gpa` of the guest's physical space: in `to`, or null where
  // there is no memory. False: nested tables refuse the access, and the host has been told; the
  // instruction ends with it.
  virtual bool LocateNested(Gpa gpa, bool write, std::byte*& to) = 0;
  // To be called behind writes through `Memory`.
  virtual void Wrote(Gpa gpa) = 0;
};

// The virtualization extension of one processor: its registers and control structures.
class VirtUnit {
 public:
  enum class MsrAnswer : std::uint8_t { kDone, kRefused, kUnknown };

  virtual ~VirtUnit() = default;

  // Executes `event.instruction`. False: it did not happen, and the host has been told why.
  virtual bool Execute(VirtHost& host, const InterceptedEvent& event) = 0;

  // In guest mode: whether `event`, which is about to happen and which the unit has asked to be
  // asked about, makes the processor leave it.
  virtual bool Leaves(VirtHost& host, const InterceptedEvent& event) = 0;
  // Leaves guest mode for `event`. RIP is that of the instruction met, or where the guest stands.
  virtual void Leave(VirtHost& host, const InterceptedEvent& event) = 0;
  // In guest mode with nested paging: leaves it for `fault`, or delivers an exception for it. The
  // instruction at RIP, or the event that `TakeDelivered` has, met it and has not happened.
  virtual void MeetNestedFault(VirtHost&, const NestedFault&) {}
  // Takes what GuestInterrupts has pending for the guest alone: its vector.
  virtual std::uint8_t TakeVirtualInterrupt(VirtHost& host) {
    host.interrupts().virtual_pending = false;
    return host.interrupts().virtual_vector;
  }
  // Where an access to the page of GuestEntry::apic_page is made instead, as a byte of a page; null
  // if it is not made, behind LeaveFor.
  virtual std::byte* AccessApicPage(VirtHost&, const PageAccess&) { return nullptr; }
  // If NestedPaging::logs_dirty: notes that `address` in the guest's physical space gets dirty.
  // False if there is no room: `MeetNestedFault` follows.
  virtual bool LogDirty(VirtHost&, Gpa) { return true; }

  virtual MsrAnswer ReadMsr(VirtHost& host, std::uint32_t index, std::uint64_t& value) const = 0;
  virtual MsrAnswer WriteMsr(VirtHost& host, std::uint32_t index, std::uint64_t value) = 0;
  // Whether the bit of a control register or MSR that turns the extension on may be set now.
  virtual bool MayBeEnabled() const = 0;
};

}  // namespace pagesaw
