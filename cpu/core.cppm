// One software processor's state, laid out for the speed of execution, and the form that its
// instructions are executed in. What instructions do stands in the modules that import this one.
module;
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
export module pagesaw.cpu.core;

export import pagesaw.core.cpu_state;
export import pagesaw.core.guest_mode;
export import pagesaw.core.nested_paging;
export import pagesaw.core.page_format;
export import pagesaw.core.processor;
export import pagesaw.core.virtual_time;
export import pagesaw.cpu.breakpoints;
export import pagesaw.cpu.lazy_flags;
export import pagesaw.cpu.machine_check;
export import pagesaw.cpu.memory_type_ranges;
export import pagesaw.cpu.paging_structure_cache;
export import pagesaw.cpu.second_stage_tlb;
export import pagesaw.cpu.tlb;
export import pagesaw.cpu.model;
export import pagesaw.cpu.plain_msrs;
export import pagesaw.core.access;
export import pagesaw.core.address;
export import pagesaw.core.paging_state;

export namespace pagesaw::cpu {

struct Core;
struct Op;

// Executes one decoded instruction and continues, by a tail call, with the next.
using Handler = void (*)(Core& core, const Op* op) [[clang::preserve_none]];

// Offsets into `Core::gpr` as bytes: register n is 8n, AH to BH are 1, 9, 17, 25.
using RegisterOffset = std::uint8_t;
inline constexpr RegisterOffset kZeroRegister = 16 * 8;  // reads as 0: "no base", "no index"

// Where `Core::ip_base` lies: the base register of RIP-relative operands, whose displacement counts
// from it.
inline constexpr RegisterOffset kIpBaseRegister = 22 * 8;

enum class CodeSize : std::uint8_t { k16, k32, k64 };

// What an address in an instruction needs besides base + index * scale + displacement.
enum class AddressKind : std::uint8_t {
  kFlat,       // 64-bit mode, no segment base: the sum is the linear address
  kSegmented,  // anything else: truncated to `address_bytes`, through segment `segment`
};

// One decoded instruction. Behind the op of a direct branch stands another one that only holds, in
// `immediate`, the Block at its target once that is known (see `Core::link`).
struct Op {
  Handler run = nullptr;
  std::uint64_t immediate =
      0;  // immediate operand, sign-extended as the instruction says; branch displacement
  std::int32_t displacement = 0;
  RegisterOffset base = kZeroRegister;
  RegisterOffset index = kZeroRegister;
  std::uint8_t scale = 0;      // log2
  std::uint8_t segment = kDs;  // SegmentName
  RegisterOffset first = 0;    // register operands, in the order of the manual's syntax
  RegisterOffset second = 0;
  std::uint16_t ip = 0;        // offset of the instruction in its page
  std::uint8_t length = 0;     // bytes
  std::uint8_t remaining = 0;  // instructions from this one to the end of the block, with this one
  std::uint8_t operand_bytes = 0;      // 1, 2, 4 or 8
  std::uint8_t address_bytes : 4 = 8;  // 2, 4 or 8
  std::uint8_t repeat : 2 = 0;         // 0 none, 1 REP/REPE, 2 REPNE
  std::uint8_t lock : 1 = 0;
  std::uint8_t memory : 1 = 0;  // an operand is memory
};
static_assert(sizeof(Op) == 32);

// Ops that end when control leaves straight-line code or the page.
struct Block {
  Op* ops = nullptr;
  std::uint32_t op_count = 0;
  std::uint32_t instructions = 0;
};

// Why straight-line execution stopped.
enum class Stop : std::uint8_t {
  kNone,
  kException,  // `exception` is to be delivered at `rip`
  kExit,       // `exit` goes to the run loop
  kAlone,      // the instruction at `rip` met a breakpoint and must run again, `alone`
  kLeave,      // guest mode is to be left for `guest.met`
};

// The kind of thing that a #PF, or whatever else interrupts, is delivered as.
enum class EventClass : std::uint8_t { kFault, kTrap, kSoftwareInterrupt, kInterrupt };

// An exception or interrupt on its way into the guest.
struct Pending {
  std::uint8_t vector = 0;
  EventClass event_class = EventClass::kFault;
  bool has_error_code = false;
  bool privileged_software = false;  // ICEBP: a software exception that checks no gate DPL
  bool int_n = false;                // a software interrupt that names its vector
  bool injected = false;             // by who made the processor enter guest mode: not intercepted
  std::uint32_t error_code = 0;
  std::uint64_t cr2 = 0;         // with vector 14
  std::uint64_t dr6 = 0;         // with vector 1: the causes, bits of DR6
  std::uint64_t return_rip = 0;  // what is pushed
};

// Vectors of exceptions. [intel/vol3] "Exceptions and Interrupts"
enum Vector : std::uint8_t {
  kDe = 0,
  kDb = 1,
  kNmiVector = 2,
  kBp = 3,
  kOfVector = 4,
  kBr = 5,
  kUd = 6,
  kNm = 7,
  kDf = 8,
  kTs = 10,
  kNp = 11,
  kSsVector = 12,
  kGp = 13,
  kPfVector = 14,
  kMf = 16,
  kAcVector = 17,
  kXm = 19,
  kCp = 21,
};

// IA32_U_CET and IA32_S_CET. [intel/vol1] "Control-flow Enforcement Technology (CET)"
inline constexpr std::uint64_t kCetShadowStack = 1u << 0;
inline constexpr std::uint64_t kCetWriteShadowStack = 1u << 1;
inline constexpr std::uint64_t kCetEndBranch = 1u << 2;
inline constexpr std::uint64_t kCetLegacyBitmap = 1u << 3;
inline constexpr std::uint64_t kCetNoTrack = 1u << 4;
inline constexpr std::uint64_t kCetSuppressDisable = 1u << 5;
inline constexpr std::uint64_t kCetSuppress = 1u << 10;
inline constexpr std::uint64_t kCetTracker = 1u << 11;  // waits for ENDBRANCH
inline constexpr std::uint64_t kCetBitmapBase = ~std::uint64_t{0xfff};

// Answers of the outside that an instruction finds when it starts again, in the order in which it
// asks. Cleared when the instruction, or one iteration of a repeated one, is done.
class Replay {
 public:
  inline bool empty() const { return count_ == 0 && lent_count_ == 0; }
  inline void Rewind() { next_ = 0; }
  inline void Clear() { count_ = next_ = lent_count_ = 0; }
  // False if full: more accesses than one instruction makes.
  bool Add(const BusAccess& access);
  // The answer to `asked` if it is the next one recorded, else null.
  const BusAccess* Take(const BusAccess& asked);

  // Memory that may be written for the page of `linear`, whatever the tables say.
  void Lend(std::uint64_t linear, std::uint64_t host);
  // Forgets what was lent: a write there asks again.
  inline void TakeBack() { lent_count_ = 0; }
  // Where a write to `linear` may go, or null.
  std::byte* Lent(std::uint64_t linear) const;

 private:
  struct LentPage {
    std::uint64_t linear = 0;
    std::uint64_t host = 0;
  };

  // XSAVE with all that there is makes most accesses, 8 bytes each.
  std::array<BusAccess, 160> answers_;
  unsigned count_ = 0;
  unsigned next_ = 0;
  std::array<LentPage, 4> lent_;  // an access touches two pages; a task switch some more
  unsigned lent_count_ = 0;
};

struct JumpCacheEntry {
  std::uint64_t rip = 0;
  std::uint64_t context = 0;  // generation and code mode; 0 matches none
  const Block* block = nullptr;
};
inline constexpr unsigned kJumpCacheEntries = 2048;
constexpr unsigned JumpCacheIndex(std::uint64_t rip) {
  return static_cast<unsigned>(rip ^ (rip >> 11)) & (kJumpCacheEntries - 1);
}

// Whoever holds decoded code, as the writers of memory see it.
class CodeWatcher {
 public:
  virtual ~CodeWatcher() = default;
  // Whether code of the host page that holds `host` is held: stores to it must be announced.
  virtual bool HoldsCode(std::uint64_t host) const = 0;
  // [host, host + bytes), in one page, is about to change: forgets the code made from it. What runs
  // now from that page stops behind the current instruction.
  virtual void Changed(std::uint64_t host, std::size_t bytes) = 0;
};

// Guest mode, into which a virtualization extension leads.
struct GuestMode {
  bool active = false;
  InterceptSet intercepts;       // empty unless active
  std::uint32_t exceptions = 0;  // likewise
  GuestInterrupts interrupts;
  GuestTsc tsc;
  std::uint64_t apic_page = 0;  // in host memory; 0: none
  InterceptSet undefined;       // empty unless active; so are these
  ShadowedControl cr0_shadow, cr4_shadow;
  std::optional<std::uint64_t> deadline;
  bool step_due = false;  // Intercept::kStep is met before the next instruction
  bool tpr_fell = false;  // and kTprBelowThreshold
  std::uint64_t cr0_fixed = 0, cr4_fixed = 0;  // bits that must be set, active or not
  bool began_in_stack_shadow = false;          // the instruction at hand
  const Op* op = nullptr;                      // of the extension's instruction at hand
  InterceptedEvent met;                        // with Stop::kLeave
  bool switched = false;               // the state has been exchanged by the instruction at hand
  std::optional<NestedPaging> nested;  // nothing unless active
  std::optional<NestedInvalidation> nested_invalidation;  // the outside is to be told of it
  std::optional<Gpa> structure;  // by which it was entered last; stays when it is left
};

// Where control went last, while DebugCtl.LBR is set. AMD's alone: Intel's records are enumerated
// by leaves that say that there are none. [amd/vol2] "Control-Transfer Breakpoint Features"
struct TransferRecords {
  struct Transfer {
    std::uint64_t from = 0, to = 0;
  };
  Transfer last;          // by a branch, an interrupt or an exception
  Transfer before_event;  // the last one before the last interrupt or exception

  inline void NoteBranch(std::uint64_t from, std::uint64_t to) { last = {from, to}; }
  inline void NoteEvent(std::uint64_t from, std::uint64_t to) {
    before_event = last;
    last = {from, to};
  }
};

struct Core {
  // -- read by nearly every instruction
  std::array<std::uint64_t, 17> gpr = {};  // [16] stays 0
  LazyFlags flags;
  TlbBank* bank = nullptr;             // for explicit data accesses at the current privilege
  std::uint64_t ip_base = 0;           // RIP of an op in the current block is ip_base + op.ip
  std::int64_t budget = 0;             // instructions left in this Run
  std::uint64_t rip = 0;               // valid between blocks
  std::atomic<bool> attention{false};  // something wants Run to look up at the next block
  Op* link = nullptr;         // the branch just taken, if it wants to know its target's block
  std::uint64_t context = 1;  // of the jump cache

  // -- the rest of the architectural state
  std::uint64_t rflags = kFlagFixed;  // all but the arithmetic flags
  std::array<Segment, kSegmentCount> segments = {};
  DescriptorTable gdtr, idtr;
  std::uint64_t cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0, efer = 0, xcr0 = 1, xss = 0;
  std::array<std::uint64_t, 4> pdptes = {};
  std::array<std::uint64_t, 4> dr = {};
  std::uint64_t dr6 = 0xffff'0ff0, dr7 = 0x400;
  std::uint32_t pkru = 0, pkrs = 0;
  std::uint64_t star = 0, lstar = 0, cstar = 0, sfmask = 0, kernel_gs_base = 0;
  std::uint64_t sysenter_cs = 0, sysenter_esp = 0, sysenter_eip = 0;
  std::uint64_t pat = 0x0007'0406'0007'0406;
  std::uint64_t tsc_aux = 0;
  CetState cet;
  bool apic_enabled = true;  // as the last write of IA32_APIC_BASE left it; CPUID tells
  Activity activity = Activity::kActive;
  bool interrupt_shadow = false;
  // The instruction just done entered a handler that TF does not step into: no trap behind it.
  bool trap_cancelled = false;
  // It loaded a TF that steps behind it, not behind the next one.
  bool trap_forced = false;
  // It loaded SS by MOV or POP: debug exceptions wait for the instruction behind it.
  // [intel/vol3] "Masking Exceptions and Interrupts When Switching Stacks"
  bool stack_shadow = false;
  // RIP is on a repeated string instruction that has done some of its iterations.
  bool in_repeat = false;
  // What has happened to be told by the next #DB that is a trap: bits of DR6.
  std::uint64_t debug_causes = 0;
  std::uint64_t debugctl = 0;
  TransferRecords records;
  MemoryTypeRanges memory_type_ranges;  // these three outlive SetState, as they outlive INIT
  MachineCheckBanks machine_check;
  PlainMsrs plain_msrs;
  bool monitor_armed = false;
  bool x87_error_told = false;  // the outside knows of the x87 error that waits
  bool nmi_blocked = false;
  ExtendedState extended;

  // -- derived from it; whoever changes the sources calls UpdateMode
  CodeSize code_size = CodeSize::k16;
  std::uint8_t cpl = 0;
  bool stack_64 = false, stack_32 = false;  // width of the stack pointer; neither: 16 bits
  bool shadow_stack = false, branch_tracking = false;  // on at the current CPL

  PagingState paging;           // as of the last UpdatePaging or SetProtectionKeys
  PageFormat guest_format;      // of the guest's own tables
  PageFormat spte_format;       // one stage: of SPTEs, judged by the guest's SMEP, SMAP and keys
  bool legacy_sptes = false;    // `spte_format` has the layout of 64-bit legacy entries
  bool masks_pointers = false;  // linear-address masking is on for some pointers
  Breakpoints breakpoints;      // as of the last UpdateBreakpoints
  bool alone = false;           // one instruction or event runs, and then its traps are looked at
  bool paging_changed = true;   // the snapshot for other threads is out of date

  // -- what stopped execution
  Stop stop = Stop::kNone;
  Pending exception;
  Exit exit;
  Replay replay;
  std::optional<Pending> pending;     // to be delivered before the next instruction
  std::optional<Pending> delivering;  // what was on its way when its delivery stopped
  bool event_queued = false;          // `event` waits for delivery
  Event event;
  bool want_interrupt_window = false;

  // -- what it is and believes
  const CpuModel* model = nullptr;
  VirtUnit* unit = nullptr;  // of the extension that is offered, or null
  VirtHost* unit_host = nullptr;
  GuestMode guest;
  TranslationTables tables;
  std::atomic<bool> flush_requested{false};
  std::uint64_t tsc_offset = 0;
  std::uint64_t retired = 0;                  // instructions of finished Runs
  std::int64_t run_budget = 0;                // what `budget` was when this Run began
  const VirtualTime* virtual_time = nullptr;  // null: time is the host's
  std::uint64_t random_state = 0;             // with virtual time
  CodeWatcher* code = nullptr;
  // Held during locked operations that host memory cannot make atomic; null: nobody else is there.
  std::mutex* split_lock = nullptr;
  Tlb tlb;
  PagingStructureCache paging_structures;
  SecondStageTlb second_stage_tlb;  // flushed by whoever changes `tables` or the SPTEs
  std::array<JumpCacheEntry, kJumpCacheEntries> jump_cache;

  template <class T>
  inline T& Register(RegisterOffset offset) {
    return *reinterpret_cast<T*>(reinterpret_cast<char*>(gpr.data()) + offset);
  }
  template <class T>
  inline T Read(RegisterOffset offset) const {
    return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(gpr.data()) + offset);
  }
  // Writes a register of type T; a 32-bit write clears the upper half.
  template <class T>
  inline void Write(RegisterOffset offset, T value) {
    if constexpr (sizeof(T) == 4) {
      Register<std::uint64_t>(offset) = value;
    } else {
      Register<T>(offset) = value;
    }
  }

  inline std::uint64_t RipOf(const Op* op) const { return ip_base + op->ip; }
  inline std::uint64_t NextRip(const Op* op) const { return ip_base + op->ip + op->length; }

  inline std::uint64_t Rflags() const { return rflags | flags.All(); }
  // Takes `value` whole; legality and side effects are the caller's business.
  inline void SetRflags(std::uint64_t value) {
    flags.SetEager(value);
    rflags = (value & ~kArithmeticFlags) | kFlagFixed;
  }

  inline bool long_mode() const { return (efer & kEferLma) != 0; }
  inline bool protected_mode() const { return (cr0 & kCr0Pe) != 0; }
  inline bool virtual_8086() const { return (rflags & kFlagVm) != 0; }
  inline bool real_mode() const { return !protected_mode(); }
  inline bool code_64() const { return code_size == CodeSize::k64; }
  // DebugCtl.LBR: instructions run one by one then.
  inline bool records_transfers() const { return (debugctl & 1) != 0; }

  // Whether shadow stacks and indirect branch tracking are on at `level` outside virtual-8086 mode.
  // [intel/vol1] "Shadow Stacks", "Indirect Branch Tracking", Terminology
  inline bool ShadowStackEnabled(unsigned level) const {
    return (cr4 & kCr4Cet) != 0 && protected_mode() && (CetControls(level) & kCetShadowStack) != 0;
  }
  inline bool BranchTrackingEnabled(unsigned level) const {
    return (cr4 & kCr4Cet) != 0 && protected_mode() && (CetControls(level) & kCetEndBranch) != 0;
  }
  // IA32_U_CET or IA32_S_CET, which holds at `level`.
  inline std::uint64_t CetControls(unsigned level) const {
    return level == 3 ? cet.user : cet.supervisor;
  }
  // Whether branches have more to do than to branch: code is decoded for it.
  inline bool enforces_control_flow() const { return shadow_stack || branch_tracking; }

  // Recomputes what is derived from CR0, CR4, RFLAGS, EFER, CS, SS and the CET controls: code size,
  // CPL, stack width, what control flow is checked for, the data bank and the jump-cache context.
  // Cheap; called after every change of one of them.
  void UpdateMode();
  // Recomputes the formats of tables and forgets every translation: after every change of CR0, CR3,
  // CR4, EFER, the PDPTEs or `tables`.
  void UpdatePaging();
  // Arms what the debug registers ask for: after every change of DR0 to DR3, DR7 or CR4.DE.
  void UpdateBreakpoints();
  // Sets `keys`, which is PKRU or PKRS of this, and forgets the rights that rest on its old value.
  void SetProtectionKeys(std::uint32_t& keys, std::uint32_t value);
  // Forgets every jump: what an instruction pointer means has changed.
  void ForgetJumps();
  // Forgets every translation and every jump that rests on one.
  void FlushTranslations();
  // Forgets those of the page that holds `linear`.
  void FlushPage(std::uint64_t linear);
  PagingState Paging() const;

  // Notes an exception at the current instruction and returns false, so that an instruction can
  // end with `return core.Raise(...)`.
  bool Raise(Vector vector);
  bool Raise(Vector vector, std::uint32_t error_code);
  bool RaisePageFault(std::uint64_t linear, PageFaultCode code);
  // #GP, or #SS if `segment` is SS, with error code 0.
  bool RaiseSegmentFault(SegmentName segment);
  // Notes that the current instruction meets the breakpoints `met`. False if it must run again,
  // alone, for others to see it.
  bool NoteBreakpoints(BreakpointSet met);
  // Leaves Run with `exit` for the reason given; the instruction starts again. Returns false.
  bool LeaveWith(ExitReason reason);
  // Asks the outside: true with the answer in `access.value` if it has been given, else leaves
  // with kBus (or, if refused, raises #GP(0)) and returns false.
  bool AskBus(BusAccess& access);
};

static_assert(__builtin_offsetof(Core, gpr) == 0 &&
              __builtin_offsetof(Core, ip_base) == kIpBaseRegister);

}  // namespace pagesaw::cpu
