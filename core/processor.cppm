// A processor as the run loop sees it: run until something needs the outside, and say what.
// Behind it stands the software processor; another engine can stand beside that.
module;
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
export module pagesaw.core.processor;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;

export namespace pagesaw {

// The tables that a processor believes. Nothing else translates a guest's access.
struct TranslationTables {
  const PageFormat* format = nullptr;  // of the SPTEs
  Hpa root = {};
  Level level = Level::kPml4;
  // True: the tables translate guest-physical addresses, and the processor walks the guest's own
  // tables through them. False: they translate linear addresses, and changes of the guest's paging
  // state exit (kPagingChanged, kInvalidate).
  bool second_stage = true;
  // second_stage: accesses to the guest's own tables are writes, whatever they do there.
  bool tables_are_written = false;
};

// One access that something outside the processor answers.
struct BusAccess {
  enum class Kind : std::uint8_t {
    kMmioRead,  // kBus: of a PDPTE, which may lie in memory, if not second_stage
    // At Stage::kTable without data: A or D are to be set in the entry. The answer's `value` is
    // nonzero if the entry may be written though the tables refuse it; else it stays as it is.
    kMmioWrite,
    kPortIn,
    kPortOut,
    kMsrRead,
    kMsrWrite,
    kTprRead,
    kTprWrite,
    kHypercall,  // `address` is the number; the arguments are in registers. core/hypercall
    kX87Error,   // FERR#: an x87 error waits, a new one if `address` is 1; the answer is IGNNE#
  };
  Kind kind = Kind::kMmioRead;
  std::uint8_t bytes = 0;     // 1, 2, 4 or 8
  std::uint64_t address = 0;  // Gpa, port or MSR index
  std::uint64_t value = 0;    // written, or the answer to a read
  bool refused = false;       // set by the answer: the MSR access is #GP(0)
};

// A refusal by the tables that the processor was given.
struct TableFault {
  InputAddress address = {};                             // in their input space; the very byte
  Access access = Access::Read(Privilege::kSupervisor);  // as the tables judge it
  Access made = Access::Read(Privilege::kSupervisor);    // as the processor makes it at `linear`
  Stage stage = Stage::kFinal;
  bool present = false;    // every entry met was present
  bool malformed = false;  // one was malformed
  Rights rights = {};      // AND over the entries met
  Gva linear = {};         // the linear address behind it
  bool linear_valid = false;
  Rights guest_rights = {};  // kFinal: what the guest's own tables grant the page
  // The bus access that this is if the address turns out to be a device's; at Stage::kTable, that
  // of the entry. `bytes` is 0 where no data moves (a fetch, a probe).
  BusAccess bus = {};
};

enum class ExitReason : std::uint8_t {
  kBudget,           // the instructions asked for are done
  kRequested,        // RequestExit
  kHalt,             // HLT retired, rip is behind it; or an x87 error stops the one at rip
  kBus,              // `bus` waits for CompleteBus
  kTableFault,       // `fault`: the tables refuse an access; run again once they do not
  kInterruptWindow,  // an interrupt could be taken now, and SetInterruptWindow asked to be told
  kShutdown,         // triple fault
  kPagingChanged,    // not second_stage: CR0, CR3, CR4, EFER or PDPTEs were loaded; `invalidation`
  kInvalidate,       // not second_stage: INVLPG or INVPCID; `invalidation`
  kNestedPaging,     // `nested_paging` is another, or `TakeNestedInvalidation` has something
};

struct Exit {
  ExitReason reason = ExitReason::kBudget;
  BusAccess bus = {};
  TableFault fault = {};
  Invalidation invalidation = {};
};

// An interrupt or exception to deliver before the next instruction.
struct Event {
  enum class Kind : std::uint8_t { kExternalInterrupt, kNmi, kException };
  Kind kind = Kind::kExternalInterrupt;
  std::uint8_t vector = 0;
  bool has_error_code = false;
  std::uint32_t error_code = 0;
  std::uint64_t cr2 = 0;  // loaded at delivery if vector is 14
};

// What translates the addresses of whatever runs, as of one instruction boundary: for people.
struct GuestSnapshot {
  PagingState paging = {};
  bool guest_mode = false;  // what runs is the guest of a guest
  // How its physical addresses are translated; nothing: they are its hypervisor's.
  std::optional<NestedPaging> nested = {};
  // The control structure by which guest mode was entered last.
  std::optional<Gpa> structure = {};
};

// What becomes of INIT.
enum class InitAnswer : std::uint8_t {
  kReset,  // it is to reset the processor
  kWaits,  // it waits on: the processor has left guest mode for it
  kTaken,  // the same, and there is nothing left of it
};

// All calls but RequestExit and those of snapshots belong to the thread that runs it.
class Processor {
 public:
  virtual ~Processor() = default;

  // Runs guest code until an exit; at most about `instructions` of it. An exit leaves the state at
  // an instruction boundary; whatever it waits for, the instruction starts again with the answer.
  virtual Exit Run(std::uint64_t instructions) = 0;

  // Answers the access of the last kBus exit, or of a kTableFault exit that is a device's. The
  // answer is used when the instruction runs again.
  virtual void CompleteBus(const BusAccess& access) = 0;

  // Until the instruction that met the last kTableFault exit is done, or one iteration of it, its
  // writes to the page of `linear`, and its accesses to a shadow stack there, go to the page of
  // `host` whatever the tables say.
  virtual void LendPage(Gva linear, Hpa host) = 0;

  // Queues `event`, to be delivered by the next Run. At most one may be queued.
  virtual void Inject(const Event& event) = 0;
  virtual bool HasQueuedEvent() const = 0;
  // Whether an external interrupt would be taken at this boundary: IF set, no shadow.
  virtual bool CanTakeInterrupt() const = 0;
  virtual bool CanTakeNmi() const = 0;
  // Take what CanTakeInterrupt or CanTakeNmi allows: it is queued, or makes the processor leave
  // guest mode. `acknowledge` gives the interrupt's vector; unless it is called, the interrupt
  // waits on.
  // True: it has been acknowledged and dealt with, and whoever offers it is to signal its end.
  virtual bool TakeInterrupt(const std::function<std::uint8_t()>& acknowledge) {
    Inject({.kind = Event::Kind::kExternalInterrupt, .vector = acknowledge()});
    return false;
  }
  // Whether the NMI was taken.
  virtual bool TakeNmi() {
    Inject({.kind = Event::Kind::kNmi, .vector = 2});
    return true;
  }
  // Whether INIT is heard now, and what becomes of it then.
  virtual bool CanTakeInit() const { return true; }
  virtual InitAnswer TakeInit() { return InitAnswer::kReset; }
  // A start-up message for a processor that INIT has not reset: whether it has been waiting for one
  // in guest mode, which it has left.
  virtual bool TakeStartUp(std::uint8_t) { return false; }
  // Asks for a kInterruptWindow exit as soon as CanTakeInterrupt.
  virtual void SetInterruptWindow(bool wanted) = 0;

  virtual CpuState GetState() const = 0;
  // Takes `state` whole, flushes everything derived from the old one. What runs in guest mode goes
  // on there.
  virtual void SetState(const CpuState& state) = 0;
  // Takes ResetState, out of guest mode, and with an extension that has not been used.
  virtual void Reset() { SetState(ResetState()); }

  virtual void SetTables(const TranslationTables& tables) = 0;
  // Forgets every translation.
  virtual void FlushTlb() = 0;
  // Forgets what it made from the contents of memory (decoded code), which somebody else changed,
  // and every page that was lent.
  virtual void FlushContents() = 0;
  // Somebody else than a processor of its VM has written `bytes` bytes from `host` on, in one page.
  // True: it had made something from that page. What it made from these bytes is forgotten before
  // the next Run executes anything; one that is under way may use it until it returns. Any thread.
  virtual bool ContentsChanged(Hpa host, std::uint64_t bytes) = 0;

  // The pages of guest memory that were written by other ways than translations since the last
  // call.
  virtual std::span<const Gpa> TakeDirectWrites() { return {}; }

  // What the guest's time-stamp counter is ahead of the host's monotonic clock, in nanoseconds.
  virtual void SetTscOffset(std::uint64_t offset) = 0;

  // Nested paging: how the physical addresses of the guest that runs are translated, while it is
  // the guest of a guest and has physical addresses of its own; else null. Tables given by then
  // translate those addresses; `MeetNestedFault` tells the processor what the nested tables refuse.
  virtual const NestedPaging* nested_paging() const { return nullptr; }
  // What translations of nested tables must not be used any more, since the last call.
  virtual std::optional<NestedInvalidation> TakeNestedInvalidation() { return std::nullopt; }
  // Behind a kTableFault exit.
  virtual void MeetNestedFault(const NestedFault&) {}
  // If NestedPaging::logs_dirty, before D is set in the leaf that maps `address`: false if it must
  // not be, which is a NestedFault with `log_full`.
  virtual bool LogNestedDirty(Gpa) { return true; }

  // Makes Run return soon. Any thread.
  virtual void RequestExit() = 0;
  // The paging state as of some recent instruction boundary, never torn. Any thread.
  virtual PagingState paging_snapshot() const = 0;
  // The same with what guest mode adds to it. Any thread.
  virtual GuestSnapshot guest_snapshot() const { return {.paging = paging_snapshot()}; }
  // Instructions retired so far. Any thread.
  virtual std::uint64_t instructions_retired() const = 0;
  // Grows with every instruction retired and every event delivered: a guest whose handlers fault at
  // once goes on although it retires nothing. On the thread of Run.
  virtual std::uint64_t progress() const { return instructions_retired(); }
};

}  // namespace pagesaw
