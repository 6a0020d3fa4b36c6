// Nested paging: a guest that is a hypervisor translates the physical addresses of its own guest by
// tables of its own. These are the words in which a virtualization extension says where they are
// and what they look like, and hears what a walk of them met; they know no control structure.
module;
#include <cstdint>
#include <string_view>
export module pagesaw.core.nested_paging;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;

export namespace pagesaw {

// How the physical addresses of a guest's guest are translated while it runs.
struct NestedPaging {
  PageFormat format = {};           // of the tables; a second stage
  Gpa root = {};                    // of the root table, in the hypervisor's physical memory
  Level level = Level::kPml4;       // of the root table
  bool root_has_pdptes = false;     // the root is four PDPTEs of PAE paging, which grant everything
  bool tables_are_written = false;  // accesses to the guest's own tables count as writes
  // Accesses to the PDPTEs of the guest's own PAE paging are made by every walk: they are no
  // registers then.
  bool pdptes_in_memory = false;
  bool logs_dirty = false;  // whoever sets D in a leaf asks first: Processor::LogNestedDirty
  std::uint16_t tag = 0;    // translations that other tags have cached are not this one's
  // For people: what names the root, as the hypervisor gave it, and what the format is called.
  std::uint64_t root_register = 0;
  std::string_view format_name = {};  // of storage that stays

  bool operator==(const NestedPaging&) const = default;
};

// Which translations of nested tables must not be used any more once the tables have changed.
// Forgetting more is always allowed.
struct NestedInvalidation {
  enum class Scope : std::uint8_t {
    kRoot,  // those by way of the root table at `root`, whatever the tag
    kTag,   // those of `tag`, whatever the root
    kEverything,
  };
  Scope scope = Scope::kEverything;
  Gpa root = {};
  std::uint16_t tag = 0;

  bool operator==(const NestedInvalidation&) const = default;
};

// What nested tables refuse: the hypervisor is to hear of it.
struct NestedFault {
  Gpa address = {};  // in the guest's guest's physical space; the very byte
  Access access = Access::Read(Privilege::kUser);  // as the tables judge it
  Stage stage = Stage::kFinal;  // for the guest's final address, or an entry of its own tables
  bool present = false;         // every entry met was present
  bool malformed = false;       // the last one was malformed
  bool log_full = false;        // nothing was refused, but D could not be logged
  Rights rights = {};           // AND over the entries met; none unless `present`
  Gva linear = {};              // the linear address behind it
  bool linear_valid = false;
  Rights guest_rights = {};  // kFinal: what the guest's own tables grant the page
};

}  // namespace pagesaw
