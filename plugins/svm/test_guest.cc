module;
#include <cstdint>
module pagesaw.plugins.svm.test_guest;

namespace pagesaw::svm {

TestGuest::TestGuest() {
  host_.register_limits.cr4 = 0xff'ffff;
  host_.register_limits.efer = 0x1d01;
  host_.register_limits.nested_paging = true;
  CpuState& state = host_.state;
  state.cr0 = 0x8000'0011;
  state.cr3 = 0x2000;
  state.cr4 = 0x20;
  state.efer = 0x1d00;
  state.segments[kCs].attributes = 0xa09b;
  state.segments[kSs].attributes = 0xc093;
  state.rip = 0x5003;
  state.gpr[kRax] = kBlock;
  state.gpr[kRsp] = 0x7000;
  Describe();
}

void TestGuest::Describe() {
  Vmcb block = vmcb();
  block.Set(field::kIntercept4, 3);
  block.Set(field::kAsid, 1);
  block.Set(field::kIoPermissions, kIoMap);
  block.Set(field::kMsrPermissions, kMsrMap);
  block.Set(field::kEfer, 0x1d00);
  block.Set(field::kCr0, 0x8000'0011);
  block.Set(field::kCr3, 0x3000);
  block.Set(field::kCr4, 0x20);
  block.Set(field::kDr6, 0xffff'0ff0);
  block.Set(field::kDr7, 0x400);
  block.Set(field::kRflags, 2);
  block.Set(field::kRip, 0x6000);
  block.SetSegment(SegmentField::kCs, {.attributes = 0xa09b, .limit = ~0u});
  block.SetSegment(SegmentField::kSs, {.attributes = 0xc093, .limit = ~0u});
}

bool TestGuest::Execute(VirtInstruction instruction) {
  return unit_.Execute(
      host_, {.what = Intercept::kInstruction, .instruction_bytes = 3, .instruction = instruction});
}

bool TestGuest::EnterGuest() { return Execute(VirtInstruction::kVmrun) && host_.guest_mode(); }

std::uint64_t TestGuest::Meet(const InterceptedEvent& event) {
  if (!unit_.Leaves(host_, event)) return 0;
  unit_.Leave(host_, event);
  return Get(field::kExitCode);
}

}  // namespace pagesaw::svm
