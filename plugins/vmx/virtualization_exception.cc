module;
#include <atomic>
#include <cstddef>
#include <cstdint>
module pagesaw.plugins.vmx.virtualization_exception;

import pagesaw.core.page_format;
import pagesaw.plugins.vmx.vmx_bits;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t kSuppress = std::uint64_t{1} << 63;

template <class T>
std::atomic_ref<T> At(std::byte* area, unsigned offset) {
  return std::atomic_ref(*reinterpret_cast<T*>(area + offset));
}

}  // namespace

bool IsConvertible(VirtHost& host, const NestedPaging& nested, Gpa address) {
  const EntryLayout& layout = nested.format.layout;
  Gpa table = nested.root;
  for (unsigned level = static_cast<unsigned>(nested.level); level > 0; --level) {
    const std::uint64_t index = address.bits() >> (3 + 9 * level) & 0x1ff;
    std::byte* const at = host.Memory(Gpa(table.bits() + 8 * index), 8);
    if (at == nullptr) return false;
    const std::uint64_t entry = At<std::uint64_t>(at, 0).load(std::memory_order_relaxed);
    const bool leaf = level == 1 || (level < 4 && (entry & layout.large) != 0);
    if ((entry & layout.present) == 0 || leaf) return (entry & kSuppress) == 0;
    table = Gpa(entry & layout.address);
  }
  return false;
}

bool WriteReport(VirtHost& host, Gpa area, const ViolationReport& report) {
  constexpr unsigned kReason = 0, kBusy = 4, kQualification = 8, kLinear = 16, kPhysical = 24,
                     kPointerIndex = 32, kBytes = 40;
  std::byte* const at = host.Memory(area, kBytes);
  if (at == nullptr || At<std::uint32_t>(at, kBusy).load() != 0) return false;
  At<std::uint32_t>(at, kReason).store(static_cast<std::uint32_t>(ExitReason::kEptViolation));
  At<std::uint64_t>(at, kQualification).store(report.qualification);
  At<std::uint64_t>(at, kLinear).store(report.linear);
  At<std::uint64_t>(at, kPhysical).store(report.physical);
  At<std::uint16_t>(at, kPointerIndex).store(report.pointer_index);
  At<std::uint32_t>(at, kBusy).store(~0u);
  host.Wrote(area);
  return true;
}

}  // namespace pagesaw::vmx
