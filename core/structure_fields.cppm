// The fields of a control structure by which a hypervisor describes its guest, for people. What
// fields there are only the structure's extension knows.
module;
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
export module pagesaw.core.structure_fields;

export namespace pagesaw {

// The memory of a control structure.
inline constexpr std::size_t kStructureBytes = 4096;
using StructureBytes = std::span<const std::byte, kStructureBytes>;

struct StructureField {
  std::string name = {};  // as in the manual
  std::uint64_t value = 0;
  unsigned bytes = 8;
  std::string meaning = {};  // the names of bits that are set, or of the value; may be empty
};

// A bit of a field and its name in the manual.
struct StructureBit {
  std::uint64_t bit = 0;
  const char* name = "";
};

// The names of those of `bits` that are set in `value`.
inline std::string NamesOfBits(std::uint64_t value, std::span<const StructureBit> bits) {
  std::string names;
  for (const StructureBit& bit : bits) {
    if ((value & bit.bit) == 0) continue;
    if (!names.empty()) names += ", ";
    names += bit.name;
  }
  return names;
}

}  // namespace pagesaw
