module;
#include <cstdint>
module pagesaw.mmu.permission_table;

namespace pagesaw {
namespace {

// Columns in which one right is present, as `PageFormat::PermissionCode` numbers them.
constexpr std::uint16_t kRead = 0xaaaa;
constexpr std::uint16_t kWrite = 0xcccc;
constexpr std::uint16_t kUser = 0xf0f0;  // XU where execution is explicit
constexpr std::uint16_t kExec = 0xff00;  // XS where execution is explicit
constexpr std::uint16_t kAll = 0xffff;

struct Row {
  bool write, user, smap_waived, fetch;
};

constexpr Row RowOf(unsigned number) {
  return {(number & 1) != 0, (number & 2) != 0, (number & 4) != 0, (number & 8) != 0};
}

std::uint16_t Lacking(std::uint16_t columns) { return static_cast<std::uint16_t>(~columns); }

// The columns that refuse execution in entries that grant it explicitly.
std::uint16_t RefusedExplicitFetch(const PermissionInputs& in, Row row) {
  return Lacking(in.split_execute && row.user ? kUser : kExec);
}

// The columns in which the user bit of the page refuses the access.
std::uint16_t RefusedByUserBit(const PermissionInputs& in, Row row) {
  if (row.user) {
    const bool supervisor_pages_admit_users = in.second_stage && in.split_execute;
    return supervisor_pages_admit_users ? 0 : Lacking(kUser);
  }
  const bool smep = in.split_execute && row.fetch;
  const bool smap = in.smap && !row.fetch && !row.smap_waived;
  return smep || smap ? kUser : 0;
}

std::uint16_t RefusedColumns(const PermissionInputs& in, Row row) {
  std::uint16_t refused = 0;
  if (!row.write && !row.fetch) refused |= Lacking(kRead);
  if (row.write && (in.explicit_execute || in.write_protect || row.user)) {
    refused |= Lacking(kWrite);
  }
  if (in.explicit_execute) return row.fetch ? refused | RefusedExplicitFetch(in, row) : refused;
  if (row.fetch && in.no_execute) refused |= Lacking(kExec);
  return refused | RefusedByUserBit(in, row);
}

}  // namespace

PermissionTable MakePermissionTable(const PermissionInputs& inputs) {
  PermissionTable table = {};
  for (unsigned row = 0; row < table.size(); ++row) {
    table[row] = RefusedColumns(inputs, RowOf(row)) & kAll;
  }
  return table;
}

std::uint32_t MakeProtectionKeyMask(const ProtectionKeyInputs& inputs) {
  constexpr unsigned kWriteBit = 1, kUserBit = 2, kUserPageBit = 3, kFetchBit = 4;
  std::uint32_t mask = 0;
  for (unsigned code = 0; code < 32; code += 2) {
    const bool write = (code >> kWriteBit & 1) != 0;
    const bool user = (code >> kUserBit & 1) != 0;
    const bool user_page = (code >> kUserPageBit & 1) != 0;
    const bool fetch = (code >> kFetchBit & 1) != 0;
    // A user-mode access to a supervisor page is refused by its rights, whatever the key.
    const bool judged = user_page ? inputs.user_keys : inputs.supervisor_keys && !user;
    if (fetch || !judged) continue;
    const std::uint32_t write_disable = write && (user || inputs.write_protect) ? 2 : 0;
    mask |= (1u | write_disable) << code;
  }
  return mask;
}

}  // namespace pagesaw
