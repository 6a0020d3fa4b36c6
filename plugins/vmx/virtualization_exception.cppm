// EPT violations that the guest hears of itself. [intel/vol3] "Virtualization Exceptions"
module;
#include <cstdint>
export module pagesaw.plugins.vmx.virtualization_exception;

import pagesaw.core.address;
import pagesaw.core.guest_mode;
import pagesaw.core.nested_paging;

export namespace pagesaw::vmx {

// The vector of a virtualization exception (#VE).
inline constexpr std::uint8_t kVirtualizationException = 20;

// What the information area is to say.
struct ViolationReport {
  std::uint64_t qualification = 0, linear = 0, physical = 0;
  std::uint16_t pointer_index = 0;
};

// Whether the last entry that a walk of `nested` for `address` meets lets the violation become an
// exception.
bool IsConvertible(VirtHost& host, const NestedPaging& nested, Gpa address);

// Writes `report` to the information area at `area`, unless that is in use. Whether it has.
bool WriteReport(VirtHost& host, Gpa area, const ViolationReport& report);

}  // namespace pagesaw::vmx
