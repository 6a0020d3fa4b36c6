// A shadow MMU: makes the processor translate as a walker says, by building tables of SPTEs.
// It is a vCPU's; the shadow pages behind it are the VM's and shared by its vCPUs.
module;
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>
export module pagesaw.core.shadow_mmu;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;

export namespace pagesaw {

// What makes two shadow pages of one gfn differ: they are interchangeable iff their roles are
// equal.
struct ShadowRole {
  Level level = Level::kPt;
  bool direct = false;  // computed from the gfn; no guest table behind it
  bool has_4_byte_entries = false;
  std::uint8_t quadrant = 0;      // which part of a table of 4-byte entries it covers
  Rights access = Rights::All();  // AND of the rights of all levels above
  bool no_execute = true;         // EFER.NXE of the guest
  bool write_protect = true;      // CR0.WP of the guest
  bool smep = false;              // SMEP; in a second stage: execute rights are split by mode
  bool smap_without_wp = false;
  bool accessed_dirty_off = false;
  bool guest_mode = false;          // SPTEs of a guest's guest
  bool passthrough = false;         // a root that only points one level down
  bool invalid = false;             // zapped, but still somebody's root
  bool long_mode = false;           // entries of 4- and 5-level paging; false: of PAE paging
  bool large_off = false;           // 4-byte entries without CR4.PSE
  std::uint8_t protection_key = 0;  // direct only: of the guest's large page
  // What tables of a guest's hypervisor look like: 0 is those of linear addresses.
  std::uint8_t nested_format = 0;

  constexpr bool operator==(const ShadowRole&) const = default;
};

// A tree that a processor may be given.
struct ShadowRoot {
  Hpa table = {};
  Level level = Level::kPml4;
};

// A fault that the processor took on SPTEs.
struct MmuFault {
  InputAddress address = {};  // in the input space of the shadow MMU's tables
  Access access = Access::Read(Privilege::kSupervisor);
  Stage stage = Stage::kFinal;
  bool malformed = false;  // the SPTE met was malformed: how MMIO is marked
  bool present = false;    // every SPTE of the walk was present
  Gva linear = {};         // the linear address behind it
};

// What became of a fault.
enum class FaultOutcome : std::uint8_t {
  kFixed,       // SPTEs were installed or changed: run on
  kSpurious,    // the SPTEs already allow the access: run on
  kRetry,       // something changed meanwhile: run on and fault again
  kGuestFault,  // the walker found a fault: `guest_fault` goes to the guest
  kMmio,        // no memory behind `gpa`, or a write to a read-only slot: a device access
  // A write, or an access to a shadow stack, that no SPTE may grant: make it in memory, then say
  // `GuestWrote`.
  kWriteProtected,
  kAttributeViolation,  // the host's attribute of the memory refuses the access: see `violation`
  kOutOfMemory,
};

struct FaultResolution {
  FaultOutcome outcome = FaultOutcome::kRetry;
  Gpa gpa = {};                // what the faulting address is in guest physical space
  Hpa host = {};               // kWriteProtected only: the memory that the guest wants to access
  WalkFault guest_fault = {};  // kGuestFault only
  bool log_full = false;       // kGuestFault: not refused, but D could not be logged
  // kAttributeViolation: what was refused. With any other outcome: what an attribute refuses but
  // lets go on, to be noted.
  std::optional<AttributeViolation> violation = {};
};

// One shadow page, for people.
struct ShadowPageInfo {
  std::uint64_t id = 0;  // unique in the VM, ascending by creation; never reused
  Hpa table = {};
  Gfn gfn = {};  // of the guest table shadowed; if direct, the first frame mapped
  ShadowRole role = {};
  unsigned present_count = 0;  // SPTEs present
  unsigned parent_count = 0;   // SPTEs that point to it
  unsigned root_count = 0;     // vCPUs that have it as a root
  bool unsync = false;
};

// One root, for people.
struct RootInfo {
  ShadowRoot root = {};
  ShadowRole role = {};
  std::uint64_t root_register = 0;  // the guest's CR3 or like that it belongs to; 0 if direct
  bool current = false;
};

struct MmuStatistics {
  std::uint64_t faults = 0;
  std::uint64_t faults_fixed = 0;
  std::uint64_t faults_fixed_unlocked = 0;  // of those, by rights given back without a lock
  std::uint64_t faults_spurious = 0;
  std::uint64_t faults_mmio = 0;
  std::uint64_t faults_guest = 0;
  std::uint64_t pages_4k = 0;  // leaf SPTEs present now
  std::uint64_t pages_2m = 0;
  std::uint64_t pages_1g = 0;
  std::uint64_t mmio_sptes = 0;
  std::uint64_t shadow_pages = 0;  // now
  std::uint64_t shadow_pages_made = 0;
  std::uint64_t zaps = 0;
  std::uint64_t remote_flushes = 0;
};

// How a shadow MMU makes processors forget translations. A processor that is not running guest code
// flushes before it does so again.
class TlbFlusher {
 public:
  virtual ~TlbFlusher() = default;

  // Returns when no processor of the VM can use a translation that it had before the call.
  virtual void FlushAll() = 0;
};

class ShadowMmu {
 public:
  virtual ~ShadowMmu() = default;

  // `root_mmu` or `guest_mmu`.
  virtual std::string_view name() const = 0;
  // What SPTEs look like.
  virtual const PageFormat& format() const = 0;
  virtual ShadowRole root_role() const = 0;
  // The walker that says what the guest wants.
  virtual const PageWalker& walker() const = 0;

  // The tree for the processor. Made if there is none; stays valid until `roots_obsolete`.
  virtual ShadowRoot Root() = 0;
  // Whether `Root` must be asked again before the guest runs on.
  virtual bool roots_obsolete() const = 0;

  // Handles a fault that the processor took on the SPTEs.
  virtual FaultResolution HandleFault(const MmuFault& fault) = 0;

  // Where the tables translate linear addresses, what the processor does is told here, outside
  // guest code. PagingChanged: control registers were loaded, which also invalidated what is given.
  // Invalidate: translations were invalidated and no register was loaded. Both may make the root
  // obsolete; what was invalidated is not found under the next one.
  virtual void PagingChanged(const PagingState&, const Invalidation&) {}
  virtual void Invalidate(const Invalidation&) {}

  // Where they translate the physical addresses of a guest's guest: a guest that is translated by
  // `nested` runs next, or nested tables were invalidated. Both may make the root obsolete.
  virtual void NestedPagingChanged(const NestedPaging&) {}
  virtual void InvalidateNested(const NestedInvalidation&) {}

  // `bytes` bytes of guest memory from `gpa` may have been changed by other means than SPTEs that
  // grant writing. Any thread.
  virtual void GuestWrote(Gpa gpa, std::uint64_t bytes) = 0;

  // Walks the SPTEs for `address` without changing anything. Safe on any thread.
  virtual WalkResult Inspect(InputAddress address, Access access, WalkTrace* trace) const = 0;
  // Safe on any thread.
  virtual std::vector<RootInfo> Roots() const = 0;
};

}  // namespace pagesaw
