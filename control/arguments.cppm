// What clients write in requests: resource names, addresses and page sizes, checked. Each refusal
// is InvalidArgument with a sentence that names the value and what was expected.
module;
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdint>
#include <string>
#include <string_view>
export module pagesaw.control.arguments;

import pagesaw.core.paging_state;

export namespace pagesaw {

// `vms/{vm}`: the last part.
absl::StatusOr<std::string> ParseVmName(std::string_view name);

// `vms/{vm}/vcpus/{vcpu}`: both parts.
struct VcpuName {
  std::string vm;
  unsigned vcpu = 0;
};
absl::StatusOr<VcpuName> ParseVcpuName(std::string_view name);

// `vms/{vm}/slots/{slot}`: both parts.
struct SlotName {
  std::string vm;
  std::uint32_t slot = 0;
};
absl::StatusOr<SlotName> ParseSlotName(std::string_view name);

// `formats/{format}`: the last part.
absl::StatusOr<std::string> ParseFormatName(std::string_view name);

std::string VmResourceName(std::string_view vm);
std::string SlotResourceName(std::string_view vm, std::uint32_t slot);
std::string FormatResourceName(std::string_view format);

// Refuses an address that an instruction could not form in this paging state: one that is not
// canonical, or above 32 bits outside long mode.
absl::Status CheckLinearAddress(const PagingState& state, std::uint64_t address);

// Refuses an address beyond the guest's physical address space.
absl::Status CheckPhysicalAddress(const PagingState& state, std::uint64_t address);

// How many elements a page has: 50 if `page_size` is 0, at most 1000. Refuses a negative one.
absl::StatusOr<std::size_t> PageSize(std::int32_t page_size);

}  // namespace pagesaw
