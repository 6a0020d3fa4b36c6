// Builds the two tables by which a page format decides whether rights refuse an access.
// What the rights of an entry are, and where a table is kept, is the page format's business.
module;
#include <array>
#include <cstdint>
export module pagesaw.mmu.permission_table;

export namespace pagesaw {

// What decides which rights refuse which accesses.
struct PermissionInputs {
  // The tables translate physical addresses of a guest.
  bool second_stage = false;
  // Entries grant execution by bits of their own (XS, XU) and grant reading by a bit.
  bool explicit_execute = false;
  // Execution depends on the mode: SMEP; in a second stage, that supervisor-mode and user-mode
  // fetches are told apart (XS and XU; or user pages refusing supervisor-mode fetches).
  bool split_execute = false;
  bool smap = false;
  bool write_protect = true;  // W=0 refuses supervisor writes as well
  bool no_execute = true;     // the execute-disable bit counts
};

using PermissionTable = std::array<std::uint16_t, 16>;

// `PageFormat::refused`: word r has bit c set if rights of code c refuse accesses of row r.
// [intel/vol3] "Determination of Access Rights"; [amd/vol2] "Page-Protection Checks"
PermissionTable MakePermissionTable(const PermissionInputs& inputs);

// Which bits of the protection-key registers matter to which accesses.
struct ProtectionKeyInputs {
  bool user_keys = false;        // CR4.PKE: PKRU judges user pages
  bool supervisor_keys = false;  // CR4.PKS: IA32_PKRS judges supervisor pages
  bool write_protect = true;     // CR0.WP
};

// `PageFormat::protection_key_mask`: the field that starts at bit (error code with bit 0 clear and
// the page's U/S in bit 3) has bit 0 set if the key's AD matters, bit 1 if its WD does.
// [intel/vol3] "Protection Keys"
std::uint32_t MakeProtectionKeyMask(const ProtectionKeyInputs& inputs);

}  // namespace pagesaw
