module;
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
module pagesaw.plugins.vmx.intercepts;

import pagesaw.core.cpu_state;
import pagesaw.core.guest_structures;
import pagesaw.plugins.vmx.vmx_bits;

namespace pagesaw::vmx {
namespace {

constexpr unsigned kPageFaultVector = 14;
constexpr std::uint64_t kCr0Ts = 1u << 3;

// What causes exits whatever the controls say, MSRs unless there are bitmaps.
constexpr Intercept kAlways[] = {Intercept::kTaskSwitch, Intercept::kShutdown, Intercept::kCpuid,
                                 Intercept::kInvd,       Intercept::kXsetbv,   Intercept::kInit,
                                 Intercept::kReadMsr,    Intercept::kWriteMsr, Intercept::kStartUp};

struct Row {
  std::uint32_t control;
  Intercept what;
};
constexpr Row kPrimaryRows[] = {
    {primary::kInterruptWindow, Intercept::kInterruptWindow},
    {primary::kHlt, Intercept::kHlt},
    {primary::kInvlpg, Intercept::kInvlpg},
    {primary::kInvlpg, Intercept::kInvpcid},
    {primary::kMwait, Intercept::kMwait},
    {primary::kRdpmc, Intercept::kRdpmc},
    {primary::kRdtsc, Intercept::kRdtsc},
    {primary::kRdtsc, Intercept::kRdtscp},
    {primary::kCr3Load, Intercept::kWriteControl},
    {primary::kCr8Load, Intercept::kWriteControl},
    {primary::kCr3Store, Intercept::kReadControl},
    {primary::kCr8Store, Intercept::kReadControl},
    {primary::kTprShadow, Intercept::kTprBelowThreshold},
    {primary::kNmiWindow, Intercept::kNmiWindow},
    {primary::kMovDr, Intercept::kReadDebug},
    {primary::kMovDr, Intercept::kWriteDebug},
    {primary::kIoExiting, Intercept::kIo},
    {primary::kIoBitmaps, Intercept::kIo},
    {primary::kMonitorTrap, Intercept::kStep},
    {primary::kMonitor, Intercept::kMonitor},
    {primary::kPause, Intercept::kPause},
};
constexpr Row kSecondaryRows[] = {
    {secondary::kDescriptorTables, Intercept::kReadGdtr},
    {secondary::kDescriptorTables, Intercept::kReadIdtr},
    {secondary::kDescriptorTables, Intercept::kReadLdtr},
    {secondary::kDescriptorTables, Intercept::kReadTr},
    {secondary::kDescriptorTables, Intercept::kWriteGdtr},
    {secondary::kDescriptorTables, Intercept::kWriteIdtr},
    {secondary::kDescriptorTables, Intercept::kWriteLdtr},
    {secondary::kDescriptorTables, Intercept::kWriteTr},
    {secondary::kWbinvd, Intercept::kWbinvd},
    {secondary::kPauseLoop, Intercept::kPause},
    {secondary::kRdrand, Intercept::kRdrand},
    {secondary::kRdseed, Intercept::kRdseed},
    {secondary::kXsaves, Intercept::kXsaves},
    {secondary::kXsaves, Intercept::kXrstors},
};
// Instructions that the guest has only if a control says so.
constexpr Row kEnabledRows[] = {
    {secondary::kRdtscp, Intercept::kRdtscp},
    {secondary::kInvpcid, Intercept::kInvpcid},
    {secondary::kXsaves, Intercept::kXsaves},
};

// [intel/vol3] "Time-Stamp Counter Offset and Multiplier"
GuestTsc TscOf(const Vmcs& vmcs, const Controls& controls) {
  constexpr std::uint8_t kFractionBits = 48;
  GuestTsc tsc;
  if (!controls.HasPrimary(primary::kTscOffset)) return tsc;
  tsc.offset = vmcs.Get(field::kTscOffset);
  if (controls.HasSecondary(secondary::kTscScaling)) {
    tsc.multiplier = vmcs.Get(field::kTscMultiplier);
    tsc.fraction_bits = kFractionBits;
  }
  return tsc;
}

}  // namespace

Intercepts::Intercepts(const Vmcs& vmcs, const Controls& controls)
    : controls_(controls),
      exceptions_(vmcs.Get32(field::kExceptionBitmap)),
      page_fault_mask_(vmcs.Get32(field::kPageFaultMask)),
      page_fault_match_(vmcs.Get32(field::kPageFaultMatch)),
      cr0_({.mask = vmcs.Get(field::kCr0Mask), .shadow = vmcs.Get(field::kCr0Shadow)}),
      cr4_({.mask = vmcs.Get(field::kCr4Mask), .shadow = vmcs.Get(field::kCr4Shadow)}),
      cr3_target_count_(vmcs.Get32(field::kCr3TargetCount)),
      tsc_(TscOf(vmcs, controls)),
      xss_bitmap_(vmcs.Get(field::kXssBitmap)),
      io_bitmap_a_(vmcs.Page(field::kIoBitmapA)),
      io_bitmap_b_(vmcs.Page(field::kIoBitmapB)),
      msr_bitmap_(vmcs.Page(field::kMsrBitmap)) {
  for (std::size_t i = 0; i < std::size(cr3_targets_); ++i) {
    cr3_targets_[i] = vmcs.Get(field::kCr3Targets[i]);
  }
}

GuestEntry Intercepts::Entry() const {
  GuestEntry entry = {
      .intercepts = {}, .exceptions = exceptions_, .tsc = tsc_, .cr0 = cr0_, .cr4 = cr4_};
  // Page faults may leave although their bit is clear.
  if (page_fault_mask_ != 0 || page_fault_match_ != 0) entry.exceptions |= 1u << kPageFaultVector;
  for (const Intercept what : kAlways) entry.intercepts.Add(what);
  for (const Row& row : kPrimaryRows) {
    entry.intercepts.AddIf(controls_.HasPrimary(row.control), row.what);
  }
  for (const Row& row : kSecondaryRows) {
    entry.intercepts.AddIf(controls_.HasSecondary(row.control), row.what);
  }
  for (const Row& row : kEnabledRows) {
    entry.undefined.AddIf(!controls_.HasSecondary(row.control), row.what);
  }
  entry.intercepts.AddIf(cr0_.mask != 0 || cr4_.mask != 0, Intercept::kWriteControl);
  entry.intercepts.AddIf((cr0_.mask & kCr0Ts) != 0, Intercept::kClts);
  entry.intercepts.AddIf((cr0_.mask & 15) != 0, Intercept::kLmsw);
  return entry;
}

// [intel/vol3] "Exception Bitmap", of page faults
bool Intercepts::PageFaultLeaves(std::uint32_t error_code) const {
  const bool bit = (exceptions_ >> kPageFaultVector & 1) != 0;
  const bool matches = (error_code & page_fault_mask_) == page_fault_match_;
  return bit == matches;
}

bool Intercepts::ReadControlLeaves(unsigned number) const {
  if (number == 3) return controls_.HasPrimary(primary::kCr3Store);
  return number == 8 && controls_.HasPrimary(primary::kCr8Store);
}

bool Intercepts::IsCr3Target(std::uint64_t value) const {
  const auto* const end = cr3_targets_ + std::min<unsigned>(cr3_target_count_, 4);
  return std::find(cr3_targets_, end, value) != end;
}

bool Intercepts::WriteControlLeaves(const InterceptedEvent& event) const {
  switch (event.number) {
    case 0:
      return ((event.value ^ cr0_.shadow) & cr0_.mask) != 0;
    case 3:
      return controls_.HasPrimary(primary::kCr3Load) && !IsCr3Target(event.value);
    case 4:
      return ((event.value ^ cr4_.shadow) & cr4_.mask) != 0;
    case 8:
      return controls_.HasPrimary(primary::kCr8Load);
    default:
      return false;
  }
}

// It cannot clear PE. [intel/vol3] "Instructions That Cause VM Exits Conditionally"
bool Intercepts::LmswLeaves(std::uint64_t value) const {
  constexpr std::uint64_t kPe = 1, kOthers = 14;
  const std::uint64_t changed = (value ^ cr0_.shadow) & cr0_.mask;
  return (changed & kOthers) != 0 || (changed & value & kPe) != 0;
}

bool Intercepts::PortLeaves(VirtHost& host, const PortAccess& io) const {
  constexpr std::uint32_t kPorts = 0x1'0000, kHalf = 0x8000;
  if (!controls_.HasPrimary(primary::kIoBitmaps)) return true;
  if (std::uint32_t{io.port} + io.bytes > kPorts) return true;
  for (std::uint32_t i = 0; i < io.bytes; ++i) {
    const std::uint32_t port = io.port + i;
    if (BitmapBit(host, port < kHalf ? io_bitmap_a_ : io_bitmap_b_, port % kHalf)) return true;
  }
  return false;
}

// [intel/vol3] "MSR-Bitmap Address"
bool Intercepts::MsrLeaves(VirtHost& host, std::uint32_t index, bool write) const {
  constexpr std::uint32_t kRange = 0x2000, kHigh = 0xc000'0000;
  if (!controls_.HasPrimary(primary::kMsrBitmaps)) return true;
  const bool high = index - kHigh < kRange;
  if (!high && index >= kRange) return true;
  const std::uint64_t first = (high ? 1u : 0) * kRange + (write ? 2u : 0) * kRange;
  return BitmapBit(host, msr_bitmap_, first + index % kRange);
}

bool Intercepts::SupervisorStateLeaves(const VirtHost& host) const {
  const std::uint64_t mask = static_cast<std::uint32_t>(host.gpr(kRax)) | host.gpr(kRdx) << 32;
  return (mask & host.State().xss & xss_bitmap_) != 0;
}

bool Intercepts::Leaves(VirtHost& host, const InterceptedEvent& event) const {
  switch (event.what) {
    case Intercept::kException:
      return event.number != kPageFaultVector || event.kind != DeliveredEvent::Kind::kException ||
             PageFaultLeaves(event.error_code);
    case Intercept::kReadControl:
      return ReadControlLeaves(event.number);
    case Intercept::kWriteControl:
      return WriteControlLeaves(event);
    case Intercept::kClts:
      return (cr0_.mask & cr0_.shadow & kCr0Ts) != 0;
    case Intercept::kLmsw:
      return LmswLeaves(event.value);
    case Intercept::kIo:
      return PortLeaves(host, event.io);
    case Intercept::kReadMsr:
      return MsrLeaves(host, event.number, false);
    case Intercept::kWriteMsr:
      return MsrLeaves(host, event.number, true);
    case Intercept::kXsaves:
    case Intercept::kXrstors:
      return SupervisorStateLeaves(host);
    default:
      return true;
  }
}

}  // namespace pagesaw::vmx
