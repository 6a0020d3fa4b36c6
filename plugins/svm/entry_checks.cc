module;
#include <cstdint>
module pagesaw.plugins.svm.entry_checks;

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.paging_state;
import pagesaw.plugins.svm.svm_bits;

namespace pagesaw::svm {
namespace {

constexpr std::uint64_t kShadowStackBits = 3;  // of S_CET: these processors track no branches
constexpr std::uint64_t kCr0Nw = 1u << 29, kCr0Cd = 1u << 30;

bool ControlRegistersFit(const Vmcb& vmcb, const RegisterLimits& limits) {
  const std::uint64_t cr0 = vmcb.Get(field::kCr0);
  const std::uint64_t cr4 = vmcb.Get(field::kCr4);
  const std::uint64_t efer = vmcb.Get(field::kEfer);
  if ((efer & kEferSvme) == 0 || (efer & ~limits.efer) != 0) return false;
  if (cr0 >> 32 != 0 || ((cr0 & kCr0Nw) != 0 && (cr0 & kCr0Cd) == 0)) return false;
  if ((cr4 & ~limits.cr4) != 0 || ((cr4 & kCr4Cet) != 0 && (cr0 & kCr0Wp) == 0)) return false;
  const std::uint64_t cet = vmcb.Get(field::kSupervisorCet);
  if ((limits.cr4 & kCr4Cet) != 0 && (cet & ~kShadowStackBits) != 0) return false;
  const bool long_mode = (efer & kEferLme) != 0 && (cr0 & kCr0Pg) != 0;
  const std::uint64_t address = (std::uint64_t{1} << limits.physical_bits) - 1;
  if ((vmcb.Get(field::kCr3) & ~(long_mode ? limits.cr3 : address)) != 0) return false;
  if (!long_mode) return true;
  const Segment code = vmcb.GetSegment(SegmentField::kCs);
  return (cr4 & kCr4Pae) != 0 && (cr0 & kCr0Pe) != 0 && !(code.long_mode() && code.big());
}

bool DebugRegistersFit(const Vmcb& vmcb) {
  return vmcb.Get(field::kDr6) >> 32 == 0 && vmcb.Get(field::kDr7) >> 32 == 0;
}

bool MapFits(Gpa map, std::uint64_t bytes, const RegisterLimits& limits) {
  return map.bits() + bytes <= std::uint64_t{1} << limits.physical_bits;
}

// [amd/vol2] "NMI Virtualization": it takes the intercept of NMIs
bool VirtualNmisFit(const Vmcb& vmcb, const Intercepts& intercepts) {
  return (vmcb.Get(field::kVirtualInterrupt) & kVirtualNmiEnabled) == 0 ||
         intercepts.intercepts_nmi();
}

bool EventFits(const Vmcb& vmcb) {
  const std::uint64_t event = vmcb.Get(field::kEventInjection);
  if ((event & kEventValid) == 0) return true;
  const auto vector = static_cast<unsigned>(event & 0xff);
  switch (static_cast<EventType>(event >> 8 & 7)) {
    case EventType::kInterrupt:
    case EventType::kNmi:
    case EventType::kSoftwareInterrupt:
      return true;
    case EventType::kException:
      return vector < 32 && vector != 2;
  }
  return false;
}

}  // namespace

bool IsConsistent(const Vmcb& vmcb, const Intercepts& intercepts, const RegisterLimits& limits) {
  return intercepts.Has(VirtInstruction::kVmrun) && vmcb.Get(field::kAsid) != 0 &&
         ControlRegistersFit(vmcb, limits) && DebugRegistersFit(vmcb) &&
         (!intercepts.uses_msr_map() || MapFits(intercepts.msr_map(), kMsrMapBytes, limits)) &&
         (!intercepts.uses_io_map() || MapFits(intercepts.io_map(), kIoMapBytes, limits)) &&
         VirtualNmisFit(vmcb, intercepts) && EventFits(vmcb);
}

}  // namespace pagesaw::svm
