module;
#include <cstdint>
module pagesaw.cpu.hypercall;

namespace pagesaw::cpu {

bool CallHypervisor(Core& core, const Op&) {
  if (core.cpl != 0) return core.Raise(kUd);
  const std::uint64_t mask = core.code_64() ? ~std::uint64_t{0} : 0xffff'ffff;
  BusAccess access{
      .kind = BusAccess::Kind::kHypercall, .bytes = 8, .address = core.gpr[kRax] & mask};
  if (!core.AskBus(access)) return false;
  core.gpr[kRax] = access.value & mask;
  return true;
}

}  // namespace pagesaw::cpu
