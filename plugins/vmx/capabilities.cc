module;
#include <cstdint>
#include <optional>
module pagesaw.plugins.vmx.capabilities;

import pagesaw.core.paging_state;
import pagesaw.plugins.vmx.vmcs;
import pagesaw.plugins.vmx.vmx_bits;

namespace pagesaw::vmx {
namespace {

// Bits that are 1 by default and that every processor lets be 1. Of the few of them that mean
// something, the "true" MSRs say that they may be 0. [intel/vol3] "Reserved Controls and Default
// Settings"
constexpr std::uint32_t kPinDefault1 = 0x16;
constexpr std::uint32_t kPrimaryDefault1 = 0x0401'e172;
constexpr std::uint32_t kExitDefault1 = 0x3'6dff;
constexpr std::uint32_t kEntryDefault1 = 0x11ff;
constexpr std::uint32_t kPrimaryFlexible = primary::kCr3Load | primary::kCr3Store;
constexpr std::uint32_t kExitFlexible = exits::kSaveDebug;
constexpr std::uint32_t kEntryFlexible = entry::kLoadDebug;

constexpr std::uint32_t kPin = pin::kInterruptExiting | pin::kNmiExiting | pin::kVirtualNmis |
                               pin::kPreemptionTimer | pin::kPostedInterrupts;
constexpr std::uint32_t kPrimary =
    primary::kInterruptWindow | primary::kTscOffset | primary::kHlt | primary::kInvlpg |
    primary::kMwait | primary::kRdpmc | primary::kRdtsc | primary::kCr8Load | primary::kCr8Store |
    primary::kTprShadow | primary::kNmiWindow | primary::kMovDr | primary::kIoExiting |
    primary::kIoBitmaps | primary::kMonitorTrap | primary::kMsrBitmaps | primary::kMonitor |
    primary::kPause | primary::kSecondary;
constexpr std::uint32_t kExit = exits::kHost64 | exits::kAcknowledge | exits::kSavePat |
                                exits::kLoadPat | exits::kSaveEfer | exits::kLoadEfer |
                                exits::kSavePreemptionTimer;
constexpr std::uint32_t kEntry = entry::kGuest64 | entry::kLoadPat | entry::kLoadEfer;

std::uint32_t SecondaryOf(const VirtHost& host, bool splits_execute) {
  const auto if_has = [&host](const char* feature, std::uint32_t bit) {
    return host.Has(feature) ? bit : 0;
  };
  const bool split = splits_execute && host.Has("ept_mode_based_exec");
  return if_has("ept", secondary::kEpt | secondary::kUnrestrictedGuest | secondary::kVmFunctions |
                           secondary::kPageModificationLog | secondary::kViolationException) |
         (split ? secondary::kModeBasedExecute : 0) | secondary::kVmcsShadowing |
         secondary::kApicAccesses | secondary::kX2apicMode | secondary::kApicRegisters |
         secondary::kVirtualInterrupts | secondary::kPauseLoop | secondary::kTscScaling |
         secondary::kDescriptorTables | secondary::kWbinvd | secondary::kVpid |
         if_has("rdtscp", secondary::kRdtscp) | if_has("rdrand", secondary::kRdrand) |
         if_has("rdseed", secondary::kRdseed) | if_has("invpcid", secondary::kInvpcid) |
         if_has("xsaves", secondary::kXsaves);
}

bool HasCet(const VirtHost& host) { return host.Has("shstk") || host.Has("ibt"); }

AllowedControls WithDefaults(std::uint32_t controls, std::uint32_t default1,
                             std::uint32_t flexible) {
  return {.required = default1 & ~flexible, .allowed = controls | default1};
}

std::uint64_t Pair(const AllowedControls& controls, std::uint32_t default1 = 0) {
  return (controls.required | default1) | std::uint64_t{controls.allowed} << 32;
}

constexpr std::uint64_t kCr0Ne = 1u << 5;

// [intel/vol3] "Basic VMX Information"
constexpr std::uint64_t Basic() {
  constexpr std::uint64_t kWriteBack = std::uint64_t{6} << 50;
  constexpr std::uint64_t kTellsIo = std::uint64_t{1} << 54;  // INS and OUTS
  constexpr std::uint64_t kTrueControls = std::uint64_t{1} << 55;
  constexpr std::uint64_t kAnyErrorCode = std::uint64_t{1} << 56;  // of exceptions injected
  return kRevision | std::uint64_t{kRegionBytes} << 32 | kWriteBack | kTellsIo | kTrueControls |
         kAnyErrorCode;
}

// [intel/vol3] "Miscellaneous Data"
constexpr std::uint64_t Misc() {
  constexpr std::uint64_t kActivityStates = 7u << 6;  // HLT, shutdown, wait-for-SIPI
  constexpr std::uint64_t kWritesAnyField = 1u << 29;
  constexpr std::uint64_t kInjectsWithLength0 = 1u << 30;
  constexpr std::uint64_t kStoresLongMode = 1u << 5;  // exits store EFER.LMA in the entry controls
  return kPreemptionTimerShift | kStoresLongMode | kActivityStates | kCr3TargetCount << 16 |
         kWritesAnyField | kInjectsWithLength0;
}

// INVVPID, of every type. [intel/vol3] "VPID and EPT Capabilities"
constexpr std::uint64_t kInvvpid = std::uint64_t{1} << 32 | std::uint64_t{15} << 40;

}  // namespace

Capabilities::Capabilities(const VirtHost& host, bool splits_execute)
    : pin_(WithDefaults(kPin, kPinDefault1, 0)),
      primary_(WithDefaults(kPrimary, kPrimaryDefault1, kPrimaryFlexible)),
      secondary_({.required = 0, .allowed = SecondaryOf(host, splits_execute)}),
      exit_(
          WithDefaults(kExit | (HasCet(host) ? exits::kLoadCet : 0), kExitDefault1, kExitFlexible)),
      entry_(WithDefaults(kEntry | (HasCet(host) ? entry::kLoadCet : 0), kEntryDefault1,
                          kEntryFlexible)),
      cr0_({.required = kCr0Pe | kCr0Ne | kCr0Pg, .allowed = 0xffff'ffff}),
      cr4_({.required = kCr4Vmxe, .allowed = host.limits().cr4}),
      ept_5_levels_(host.Has("la57")) {}

FixedBits Capabilities::unrestricted_cr0() const {
  return {.required = cr0_.required & ~(kCr0Pe | kCr0Pg), .allowed = cr0_.allowed};
}

// Execute-only entries, 4 and perhaps 5 levels, write-back tables, pages of 2 MiB and 1 GiB, INVEPT
// of both types, A and D, advanced information about violations.
std::uint64_t Capabilities::EptCapabilities() const {
  constexpr std::uint64_t k4Levels = 1u << 6, k5Levels = 1u << 7;
  constexpr std::uint64_t kOthers = 1u << 0 | 1u << 14 | 1u << 16 | 1u << 17 | 1u << 20 | 1u << 21 |
                                    1u << 22 | 1u << 25 | 1u << 26;
  if (!has_ept()) return 0;
  return kOthers | k4Levels | (ept_5_levels_ ? k5Levels : 0);
}

std::optional<std::uint64_t> Capabilities::Msr(std::uint32_t index) const {
  switch (index) {
    case kMsrBasic:
      return Basic();
    case kMsrPinControls:
      return Pair(pin_, kPinDefault1);
    case kMsrPrimaryControls:
      return Pair(primary_, kPrimaryDefault1);
    case kMsrExitControls:
      return Pair(exit_, kExitDefault1);
    case kMsrEntryControls:
      return Pair(entry_, kEntryDefault1);
    case kMsrMisc:
      return Misc();
    case kMsrCr0Fixed0:
      return cr0_.required;
    case kMsrCr0Fixed1:
      return cr0_.allowed;
    case kMsrCr4Fixed0:
      return cr4_.required;
    case kMsrCr4Fixed1:
      return cr4_.allowed;
    case kMsrVmcsEnum:
      return Field::HighestIndex() << 1;
    case kMsrSecondaryControls:
      return Pair(secondary_);
    case kMsrEptVpidCap:
      return kInvvpid | EptCapabilities();
    case kMsrVmfunc:
      if (!functions()) return std::nullopt;
      return kEptpSwitching;
    case kMsrTruePinControls:
      return Pair(pin_);
    case kMsrTruePrimaryControls:
      return Pair(primary_);
    case kMsrTrueExitControls:
      return Pair(exit_);
    case kMsrTrueEntryControls:
      return Pair(entry_);
    default:
      return std::nullopt;
  }
}

}  // namespace pagesaw::vmx
