module;
#include <array>
#include <cstdint>
module pagesaw.cpu.page_directory_pointers;

import pagesaw.core.register_values;
import pagesaw.cpu.hardware_walk;
import pagesaw.cpu.memory;

namespace pagesaw::cpu {
namespace {

bool PaePaging(const Core& core, std::uint64_t cr0, std::uint64_t cr4) {
  return (cr0 & kCr0Pg) != 0 && (cr4 & kCr4Pae) != 0 && (core.efer & kEferLme) == 0;
}

// Reads 8 bytes of guest-physical memory: a walk with paging off has one stage. Where the tables
// translate linear addresses, the outside reads them.
bool LoadPhysical(Core& core, std::uint64_t gpa, std::uint64_t& value) {
  BusAccess access = {.kind = BusAccess::Kind::kMmioRead, .bytes = 8, .address = gpa};
  if (!core.tables.second_stage) {
    if (!core.AskBus(access)) return false;
    value = access.value;
    return true;
  }
  const std::uint64_t cr0 = core.paging.cr0;
  core.paging.cr0 &= ~kCr0Pg;
  HostPage page;
  const bool found = WalkHardware(core, gpa, Access::Read(Privilege::kSupervisor), page);
  core.paging.cr0 = cr0;
  if (found) {
    value = LoadHost<std::uint64_t>(reinterpret_cast<const void*>(page.host));
    return true;
  }
  TableFault& fault = core.exit.fault;
  fault.linear_valid = false;
  fault.bus = access;
  const BusAccess* answer = core.replay.Take(fault.bus);
  if (answer == nullptr) return false;
  core.stop = Stop::kNone;
  value = answer->value;
  return true;
}

}  // namespace

bool LoadPdptes(Core& core, std::uint64_t cr3, std::uint64_t cr0, std::uint64_t cr4,
                std::array<std::uint64_t, 4>& pdptes) {
  if (!PaePaging(core, cr0, cr4)) return true;
  if (core.guest.nested && core.guest.nested->pdptes_in_memory) return true;
  std::array<std::uint64_t, 4> loaded = {};
  for (unsigned i = 0; i < 4; ++i) {
    if (!LoadPhysical(core, (cr3 & 0xffff'ffe0) + 8 * i, loaded[i])) return false;
    const bool reserved = (loaded[i] & ReservedPdpteBits(core.model->physical_bits())) != 0;
    if ((loaded[i] & 1) != 0 && reserved) return core.Raise(kGp, 0);
  }
  pdptes = loaded;
  return true;
}

}  // namespace pagesaw::cpu
