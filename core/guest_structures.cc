module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
module pagesaw.core.guest_structures;

import pagesaw.core.paging_state;
import pagesaw.core.register_values;

namespace pagesaw {

std::optional<std::uint64_t> LoadWord(VirtHost& host, Gpa gpa) {
  std::byte* const at = host.Memory(gpa, sizeof(std::uint64_t));
  if (at == nullptr) return std::nullopt;
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(at)).load(std::memory_order_relaxed);
}

bool BitmapBit(VirtHost& host, Gpa bitmap, std::uint64_t bit) {
  std::byte* const at = host.Memory(Gpa(bitmap.bits() + bit / 8), 1);
  if (at == nullptr) return true;
  const auto bits = std::atomic_ref(*reinterpret_cast<std::uint8_t*>(at)).load();
  return (bits >> (bit % 8) & 1) != 0;
}

bool UsesPdptes(const CpuState& state) {
  return (state.cr0 & kCr0Pg) != 0 && (state.cr4 & kCr4Pae) != 0 && (state.efer & kEferLma) == 0;
}

bool LoadPdptes(VirtHost& host, CpuState& state) {
  if (!UsesPdptes(state)) return true;
  const std::uint64_t reserved = ReservedPdpteBits(host.limits().physical_bits);
  for (unsigned i = 0; i < state.pdptes.size(); ++i) {
    const std::optional<std::uint64_t> entry =
        LoadWord(host, Gpa((state.cr3 & 0xffff'ffe0) + 8 * std::uint64_t{i}));
    if (!entry || ((*entry & 1) != 0 && (*entry & reserved) != 0)) return false;
    state.pdptes[i] = *entry;
  }
  return true;
}

}  // namespace pagesaw
