module;
#include <cstdint>
#include <cstring>
module pagesaw.plugins.vmx.test_guest;

import pagesaw.core.paging_state;

namespace pagesaw::vmx {

TestGuest::TestGuest(SplitFormatMaker split) : unit(split) {
  CpuState& state = host.state;
  state.cr0 = kCr0Pe | kCr0Pg | kCr0Wp | 1u << 5 | 1u << 4;
  state.cr4 = kCr4Pae | kCr4Vmxe;
  state.efer = kEferLme | kEferLma;
  state.segments[kCs].attributes = 0xa09b;
  WriteRegion(kVmxon);
  WriteRegion(kVmcs);
  Execute(VirtInstruction::kVmxon, kVmxon);
  Execute(VirtInstruction::kVmptrld, kVmcs);
  Set(field::kPinControls, 0x16);
  Set(field::kPrimaryControls, 0x0400'6172);
  Set(field::kExitControls, 0x3'6dfb | exits::kHost64);
  Set(field::kEntryControls, 0x11fb | entry::kGuest64);
  Set(field::kLinkPointer, ~std::uint64_t{0});
  DescribeHost();
  DescribeGuest();
}

void TestGuest::WriteRegion(std::uint64_t region) {
  const std::uint32_t revision = kRevision;
  std::memcpy(host.Memory(Gpa(region), 4), &revision, 4);
}

void TestGuest::DescribeHost() {
  Set(field::kHostCr0, host.state.cr0);
  Set(field::kHostCr4, host.state.cr4);
  Set(field::kHostCr3, 0x5000);
  Set(field::kHostCs, 8);
  Set(field::kHostTr, 0x18);
  Set(field::kHostRip, kHostRip);
  Set(field::kHostRsp, 0x8888);
}

void TestGuest::DescribeGuest() {
  Set(field::kGuestCr0, host.state.cr0);
  Set(field::kGuestCr4, host.state.cr4);
  Set(field::kGuestCr3, 0x9000);
  Set(field::kGuestRip, kGuestRip);
  Set(field::kGuestRflags, 2);
  Set(field::kGuestDr7, 0x400);
  for (unsigned name = 0; name < kSegmentCount; ++name) {
    const SegmentFields& fields = kGuestSegments[name];
    Set(fields.selector, name == kTr ? 0x18 : 0x10);
    Set(fields.limit, 0xffff'ffff);
    Set(fields.access, name == kCs     ? 0xa09b
                       : name == kTr   ? 0x808b
                       : name == kLdtr ? 0x1'0000
                                       : 0xc093);
  }
}

bool TestGuest::Execute(VirtInstruction instruction, std::uint64_t operand) {
  host.operand[0] = operand;
  return unit.Execute(host, {.what = Intercept::kInstruction,
                             .memory = true,
                             .instruction_bytes = 3,
                             .instruction = instruction});
}

bool TestGuest::Enter() { return Execute(VirtInstruction::kVmlaunch) && host.guest_mode(); }

bool TestGuest::Meet(const InterceptedEvent& event) {
  if (event.what == Intercept::kInstruction) {
    unit.Execute(host, event);
    if (!host.left_for) return false;
  } else if (!unit.Leaves(host, event)) {
    return false;
  }
  unit.Leave(host, event);
  return true;
}

}  // namespace pagesaw::vmx
