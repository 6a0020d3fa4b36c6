// Bits and numbers of VMX outside the layout of the VMCS.
module;
#include <cstdint>
export module pagesaw.plugins.vmx.vmx_bits;

export namespace pagesaw::vmx {

inline constexpr std::uint64_t kCr4Vmxe = 1u << 13;

// [intel/vol3] "IA32_FEATURE_CONTROL", "Basic VMX Information" and the sections behind it
enum Msr : std::uint32_t {
  kMsrTsc = 0x10,
  kMsrFeatureControl = 0x3a,
  kMsrSysenterCs = 0x174,
  kMsrSysenterEsp = 0x175,
  kMsrSysenterEip = 0x176,
  kMsrDebugctl = 0x1d9,
  kMsrPat = 0x277,
  kMsrBasic = 0x480,
  kMsrPinControls = 0x481,
  kMsrPrimaryControls = 0x482,
  kMsrExitControls = 0x483,
  kMsrEntryControls = 0x484,
  kMsrMisc = 0x485,
  kMsrCr0Fixed0 = 0x486,
  kMsrCr0Fixed1 = 0x487,
  kMsrCr4Fixed0 = 0x488,
  kMsrCr4Fixed1 = 0x489,
  kMsrVmcsEnum = 0x48a,
  kMsrSecondaryControls = 0x48b,
  kMsrEptVpidCap = 0x48c,
  kMsrTruePinControls = 0x48d,
  kMsrTruePrimaryControls = 0x48e,
  kMsrTrueExitControls = 0x48f,
  kMsrTrueEntryControls = 0x490,
  kMsrVmfunc = 0x491,
  kMsrSmBase = 0x9e,
  kMsrSmmMonitorControl = 0x9b,
  kMsrEfer = 0xc000'0080,
  kMsrFsBase = 0xc000'0100,
  kMsrGsBase = 0xc000'0101,
};
inline constexpr std::uint64_t kFeatureControlLock = 1u << 0;
inline constexpr std::uint64_t kFeatureControlVmx = 1u << 2;  // outside SMX operation

// [intel/vol3] "Pin-Based VM-Execution Controls"
namespace pin {
inline constexpr std::uint32_t kInterruptExiting = 1u << 0;
inline constexpr std::uint32_t kNmiExiting = 1u << 3;
inline constexpr std::uint32_t kVirtualNmis = 1u << 5;
inline constexpr std::uint32_t kPreemptionTimer = 1u << 6;
inline constexpr std::uint32_t kPostedInterrupts = 1u << 7;
}  // namespace pin

// [intel/vol3] "Processor-Based VM-Execution Controls"
namespace primary {
inline constexpr std::uint32_t kInterruptWindow = 1u << 2;
inline constexpr std::uint32_t kTscOffset = 1u << 3;
inline constexpr std::uint32_t kHlt = 1u << 7;
inline constexpr std::uint32_t kInvlpg = 1u << 9;
inline constexpr std::uint32_t kMwait = 1u << 10;
inline constexpr std::uint32_t kRdpmc = 1u << 11;
inline constexpr std::uint32_t kRdtsc = 1u << 12;
inline constexpr std::uint32_t kCr3Load = 1u << 15;
inline constexpr std::uint32_t kCr3Store = 1u << 16;
inline constexpr std::uint32_t kCr8Load = 1u << 19;
inline constexpr std::uint32_t kCr8Store = 1u << 20;
inline constexpr std::uint32_t kTprShadow = 1u << 21;
inline constexpr std::uint32_t kNmiWindow = 1u << 22;
inline constexpr std::uint32_t kMovDr = 1u << 23;
inline constexpr std::uint32_t kIoExiting = 1u << 24;
inline constexpr std::uint32_t kIoBitmaps = 1u << 25;
inline constexpr std::uint32_t kMonitorTrap = 1u << 27;
inline constexpr std::uint32_t kMsrBitmaps = 1u << 28;
inline constexpr std::uint32_t kMonitor = 1u << 29;
inline constexpr std::uint32_t kPause = 1u << 30;
inline constexpr std::uint32_t kSecondary = 1u << 31;
}  // namespace primary

namespace secondary {
inline constexpr std::uint32_t kApicAccesses = 1u << 0;
inline constexpr std::uint32_t kEpt = 1u << 1;
inline constexpr std::uint32_t kDescriptorTables = 1u << 2;
inline constexpr std::uint32_t kRdtscp = 1u << 3;
inline constexpr std::uint32_t kX2apicMode = 1u << 4;
inline constexpr std::uint32_t kVpid = 1u << 5;
inline constexpr std::uint32_t kWbinvd = 1u << 6;
inline constexpr std::uint32_t kUnrestrictedGuest = 1u << 7;
inline constexpr std::uint32_t kApicRegisters = 1u << 8;
inline constexpr std::uint32_t kVirtualInterrupts = 1u << 9;
inline constexpr std::uint32_t kPauseLoop = 1u << 10;
inline constexpr std::uint32_t kRdrand = 1u << 11;
inline constexpr std::uint32_t kInvpcid = 1u << 12;
inline constexpr std::uint32_t kVmFunctions = 1u << 13;
inline constexpr std::uint32_t kVmcsShadowing = 1u << 14;
inline constexpr std::uint32_t kRdseed = 1u << 16;
inline constexpr std::uint32_t kPageModificationLog = 1u << 17;
inline constexpr std::uint32_t kViolationException = 1u << 18;  // #VE
inline constexpr std::uint32_t kXsaves = 1u << 20;
inline constexpr std::uint32_t kModeBasedExecute = 1u << 22;
inline constexpr std::uint32_t kTscScaling = 1u << 25;
}  // namespace secondary

inline constexpr std::uint64_t kEptpSwitching = 1u << 0;  // of the VM-function controls

// [intel/vol3] "VM-Exit Controls"
namespace exits {
inline constexpr std::uint32_t kSaveDebug = 1u << 2;
inline constexpr std::uint32_t kHost64 = 1u << 9;
inline constexpr std::uint32_t kAcknowledge = 1u << 15;
inline constexpr std::uint32_t kSavePat = 1u << 18;
inline constexpr std::uint32_t kLoadPat = 1u << 19;
inline constexpr std::uint32_t kSaveEfer = 1u << 20;
inline constexpr std::uint32_t kLoadEfer = 1u << 21;
inline constexpr std::uint32_t kSavePreemptionTimer = 1u << 22;
inline constexpr std::uint32_t kLoadCet = 1u << 28;
}  // namespace exits

// [intel/vol3] "VM-Entry Controls"
namespace entry {
inline constexpr std::uint32_t kLoadDebug = 1u << 2;
inline constexpr std::uint32_t kGuest64 = 1u << 9;  // IA-32e mode guest
inline constexpr std::uint32_t kEnterSmm = 1u << 10;
inline constexpr std::uint32_t kLeaveDualMonitor = 1u << 11;
inline constexpr std::uint32_t kLoadPat = 1u << 14;
inline constexpr std::uint32_t kLoadEfer = 1u << 15;
inline constexpr std::uint32_t kLoadCet = 1u << 20;
}  // namespace entry

// VM-entry interruption information, VM-exit interruption information, IDT-vectoring information.
// [intel/vol3] "VM-Entry Controls for Event Injection"
enum class EventType : std::uint8_t {
  kInterrupt = 0,
  kReserved = 1,
  kNmi = 2,
  kException = 3,
  kSoftwareInterrupt = 4,
  kPrivilegedException = 5,
  kSoftwareException = 6,
  kOther = 7,
};
inline constexpr std::uint32_t kEventHasError = 1u << 11;
inline constexpr std::uint32_t kEventUnblocksNmi = 1u << 12;
inline constexpr std::uint32_t kEventValid = 1u << 31;
constexpr EventType TypeOf(std::uint32_t information) {
  return static_cast<EventType>(information >> 8 & 7);
}

// Interruptibility state. [intel/vol3] "Guest Non-Register State"
inline constexpr std::uint32_t kBlockedBySti = 1u << 0;
inline constexpr std::uint32_t kBlockedByMovSs = 1u << 1;
inline constexpr std::uint32_t kBlockedBySmi = 1u << 2;
inline constexpr std::uint32_t kBlockedByNmi = 1u << 3;
enum class ActivityState : std::uint32_t { kActive, kHlt, kShutdown, kWaitForSipi };

// Pending debug exceptions.
inline constexpr std::uint64_t kPendingBreakpoints = 15;
inline constexpr std::uint64_t kPendingEnabled = 1u << 12;
inline constexpr std::uint64_t kPendingStep = 1u << 14;
inline constexpr std::uint64_t kPendingKnown = kPendingBreakpoints | kPendingEnabled | kPendingStep;

// [intel/vol3] "VM Instruction Error Numbers"
enum class InstructionError : std::uint8_t {
  kNone = 0,
  kVmcallInRoot = 1,
  kVmclearAddress = 2,
  kVmclearVmxonPointer = 3,
  kVmlaunchNotClear = 4,
  kVmresumeNotLaunched = 5,
  kControls = 7,
  kHostState = 8,
  kVmptrldAddress = 9,
  kVmptrldVmxonPointer = 10,
  kVmptrldRevision = 11,
  kUnsupportedField = 12,
  kReadOnlyField = 13,
  kVmxonInRoot = 15,
  kEntryWithMovSsBlocking = 26,
  kInvalidOperand = 28,  // of INVEPT, INVVPID
};

// [intel/vol3] "VMX Basic Exit Reasons"
enum class ExitReason : std::uint16_t {
  kExceptionOrNmi = 0,
  kExternalInterrupt = 1,
  kTripleFault = 2,
  kInit = 3,
  kStartUp = 4,
  kInterruptWindow = 7,
  kNmiWindow = 8,
  kTaskSwitch = 9,
  kCpuid = 10,
  kHlt = 12,
  kInvd = 13,
  kInvlpg = 14,
  kRdpmc = 15,
  kRdtsc = 16,
  kVmcall = 18,
  kVmclear = 19,
  kVmlaunch = 20,
  kVmptrld = 21,
  kVmptrst = 22,
  kVmread = 23,
  kVmresume = 24,
  kVmwrite = 25,
  kVmxoff = 26,
  kVmxon = 27,
  kControlRegister = 28,
  kMovDr = 29,
  kIo = 30,
  kRdmsr = 31,
  kWrmsr = 32,
  kInvalidGuestState = 33,
  kMsrLoading = 34,
  kMwait = 36,
  kMonitorTrap = 37,
  kMonitor = 39,
  kPause = 40,
  kTprBelowThreshold = 43,
  kApicAccess = 44,
  kVirtualizedEoi = 45,
  kGdtrOrIdtr = 46,
  kLdtrOrTr = 47,
  kEptViolation = 48,
  kEptMisconfiguration = 49,
  kInvept = 50,
  kRdtscp = 51,
  kPreemptionTimer = 52,
  kInvvpid = 53,
  kWbinvd = 54,
  kXsetbv = 55,
  kApicWrite = 56,
  kRdrand = 57,
  kInvpcid = 58,
  kVmfunc = 59,
  kRdseed = 61,
  kPageModificationLogFull = 62,
  kXsaves = 63,
  kXrstors = 64,
};
inline constexpr std::uint32_t kEntryFailure = 1u << 31;  // in the exit reason

// What VM-entry failures say in the exit qualification. [intel/vol3] "VM-Entry Failures During or
// After Loading Guest State"
inline constexpr std::uint64_t kFailedOtherwise = 0;
inline constexpr std::uint64_t kFailedPdptes = 2;
inline constexpr std::uint64_t kFailedNmiInjection = 3;
inline constexpr std::uint64_t kFailedLinkPointer = 4;

}  // namespace pagesaw::vmx
