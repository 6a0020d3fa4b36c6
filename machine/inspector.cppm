// What people see of the memory virtualization of one vCPU: its walkers and shadow MMUs, walks with
// every stage, and who would answer for what they meet. Looking changes nothing.
module;
#include <absl/status/statusor.h>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.machine.inspector;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virt_extension;
import pagesaw.machine.vm_memory;
import pagesaw.mmu.memory_attributes;
export import pagesaw.mmu.walk_inspection;

export namespace pagesaw {

// A walker of a vCPU as it is now.
struct WalkerInfo {
  std::string name;
  std::string format_name;
  PageFormat format;  // of the guest's entries
  PagingMode mode = PagingMode::kNone;
  unsigned root_level = 0;  // 0: no paging, output = input
  std::uint64_t root_register = 0;
};

// A shadow MMU of a vCPU as it is now.
struct ShadowMmuInfo {
  std::string name;
  std::string format_name;
  PageFormat format;    // of the SPTEs
  ShadowRole role;      // of its roots
  std::string walker;   // the walker that says what the guest wants
  bool active = false;  // the processor runs on its tables
};

// Who hears of an access that is not simply allowed, and as what.
struct Verdict {
  enum class Taker : std::uint8_t {
    kNobody,      // it is allowed
    kGuest,       // whoever runs
    kHypervisor,  // its hypervisor, which is our guest
    kHost,        // us: attributes, slots, devices
  };
  Taker taker = Taker::kNobody;
  std::string event = {};      // as the manual has it: "#PF"; for the host: "no memory" or like
  std::string code_name = {};  // what `code` is; empty: there is none
  std::uint64_t code = 0;
  std::uint64_t address = 0;                      // whose fault it is, in the taker's view
  std::optional<MemoryAttribute> attribute = {};  // kHost: what refused it, if that did
};

// One walk: the outcome and every entry read, with the format that decodes them.
struct WalkReport {
  WalkResult result = WalkFault{};
  WalkTrace trace = {};
  PageFormat format = {};
  bool guest_mode = false;              // of a guest's guest
  std::vector<NestedWalk> nested = {};  // how nested tables translate what it met
  PageFormat nested_format = {};
  Verdict verdict = {};
};

// What guest mode is to a vCPU.
struct NestedState {
  bool guest_mode = false;                  // a guest's guest runs
  std::optional<WalkerInfo> tdp_walk = {};  // with nested paging
  std::uint16_t tag = 0;                    // of nested translations
  std::string structure_name = {};          // what its hypervisor describes it by
  std::optional<Gpa> structure = {};        // of the guest that runs or ran last
  std::vector<StructureField> fields = {};  // empty: it lies in no memory
};

// A vCPU at one moment. What is given by reference or pointer outlives it.
class Inspector {
 public:
  struct Parts {
    std::string owner;  // in errors: whose the vCPU is
    const VirtExtension* extension = nullptr;
    const VmMemory* memory = nullptr;
    const MemoryAttributes* attributes = nullptr;
    const ShadowMmu* root_mmu = nullptr;
    const ShadowMmu* guest_mmu = nullptr;   // may be null
    std::string root_format, guest_format;  // what the formats of their SPTEs are called
  };
  Inspector(const Parts& parts, const GuestSnapshot& snapshot)
      : parts_(parts), snapshot_(snapshot) {}

  const GuestSnapshot& snapshot() const { return snapshot_; }
  // `cpu_walk`, and `tdp_walk` while a guest's guest has nested paging.
  std::vector<WalkerInfo> Walkers() const;
  std::vector<ShadowMmuInfo> ShadowMmus() const;
  // NotFound if there is none called `name`.
  absl::StatusOr<const ShadowMmu*> FindShadowMmu(std::string_view name) const;
  // Walks by the walker called `walker`; NotFound if there is none now.
  absl::StatusOr<WalkReport> Walk(std::string_view walker, InputAddress address,
                                  Access access) const;
  NestedState Nested() const;

 private:
  const ShadowMmu& active_mmu() const {
    return snapshot_.nested && parts_.guest_mmu != nullptr ? *parts_.guest_mmu : *parts_.root_mmu;
  }
  std::optional<Verdict> HostVerdict(const InspectedWalk& walk, bool linear, Access access) const;
  Verdict FaultVerdict(const InspectedWalk& walk) const;
  Verdict NestedVerdict(const NestedWalk& walk, const InspectedWalk* linear) const;
  Verdict PageFaultVerdict(const WalkFault& fault) const;

  const Parts parts_;
  const GuestSnapshot snapshot_;
};

}  // namespace pagesaw
