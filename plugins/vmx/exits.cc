module;
#include <cstdint>
#include <optional>
module pagesaw.plugins.vmx.exits;

import pagesaw.core.address;
import pagesaw.plugins.vmx.ept;

namespace pagesaw::vmx {
namespace {

struct Row {
  Intercept what;
  ExitReason reason;
};
constexpr Row kRows[] = {
    {Intercept::kException, ExitReason::kExceptionOrNmi},
    {Intercept::kInterrupt, ExitReason::kExternalInterrupt},
    {Intercept::kNmi, ExitReason::kExceptionOrNmi},
    {Intercept::kInit, ExitReason::kInit},
    {Intercept::kStartUp, ExitReason::kStartUp},
    {Intercept::kShutdown, ExitReason::kTripleFault},
    {Intercept::kTaskSwitch, ExitReason::kTaskSwitch},
    {Intercept::kCpuid, ExitReason::kCpuid},
    {Intercept::kHlt, ExitReason::kHlt},
    {Intercept::kInvd, ExitReason::kInvd},
    {Intercept::kWbinvd, ExitReason::kWbinvd},
    {Intercept::kInvlpg, ExitReason::kInvlpg},
    {Intercept::kInvpcid, ExitReason::kInvpcid},
    {Intercept::kRdtsc, ExitReason::kRdtsc},
    {Intercept::kRdtscp, ExitReason::kRdtscp},
    {Intercept::kRdpmc, ExitReason::kRdpmc},
    {Intercept::kRdrand, ExitReason::kRdrand},
    {Intercept::kRdseed, ExitReason::kRdseed},
    {Intercept::kPause, ExitReason::kPause},
    {Intercept::kMonitor, ExitReason::kMonitor},
    {Intercept::kMwait, ExitReason::kMwait},
    {Intercept::kXsetbv, ExitReason::kXsetbv},
    {Intercept::kXsaves, ExitReason::kXsaves},
    {Intercept::kXrstors, ExitReason::kXrstors},
    {Intercept::kIo, ExitReason::kIo},
    {Intercept::kReadMsr, ExitReason::kRdmsr},
    {Intercept::kWriteMsr, ExitReason::kWrmsr},
    {Intercept::kReadControl, ExitReason::kControlRegister},
    {Intercept::kWriteControl, ExitReason::kControlRegister},
    {Intercept::kClts, ExitReason::kControlRegister},
    {Intercept::kLmsw, ExitReason::kControlRegister},
    {Intercept::kReadDebug, ExitReason::kMovDr},
    {Intercept::kWriteDebug, ExitReason::kMovDr},
    {Intercept::kReadGdtr, ExitReason::kGdtrOrIdtr},
    {Intercept::kReadIdtr, ExitReason::kGdtrOrIdtr},
    {Intercept::kWriteGdtr, ExitReason::kGdtrOrIdtr},
    {Intercept::kWriteIdtr, ExitReason::kGdtrOrIdtr},
    {Intercept::kReadLdtr, ExitReason::kLdtrOrTr},
    {Intercept::kReadTr, ExitReason::kLdtrOrTr},
    {Intercept::kWriteLdtr, ExitReason::kLdtrOrTr},
    {Intercept::kWriteTr, ExitReason::kLdtrOrTr},
    {Intercept::kStep, ExitReason::kMonitorTrap},
    {Intercept::kDeadline, ExitReason::kPreemptionTimer},
    {Intercept::kInterruptWindow, ExitReason::kInterruptWindow},
    {Intercept::kNmiWindow, ExitReason::kNmiWindow},
    {Intercept::kTprBelowThreshold, ExitReason::kTprBelowThreshold},
    {Intercept::kApicAccess, ExitReason::kApicAccess},
};

ExitReason ReasonOf(VirtInstruction instruction) {
  switch (instruction) {
    case VirtInstruction::kVmclear:
      return ExitReason::kVmclear;
    case VirtInstruction::kVmlaunch:
      return ExitReason::kVmlaunch;
    case VirtInstruction::kVmptrld:
      return ExitReason::kVmptrld;
    case VirtInstruction::kVmptrst:
      return ExitReason::kVmptrst;
    case VirtInstruction::kVmread:
      return ExitReason::kVmread;
    case VirtInstruction::kVmresume:
      return ExitReason::kVmresume;
    case VirtInstruction::kVmwrite:
      return ExitReason::kVmwrite;
    case VirtInstruction::kVmxoff:
      return ExitReason::kVmxoff;
    case VirtInstruction::kVmxon:
      return ExitReason::kVmxon;
    case VirtInstruction::kInvept:
      return ExitReason::kInvept;
    case VirtInstruction::kInvvpid:
      return ExitReason::kInvvpid;
    case VirtInstruction::kVmfunc:
      return ExitReason::kVmfunc;
    default:
      return ExitReason::kVmcall;
  }
}

// -- exit qualifications. [intel/vol3] "Basic VM-Exit Information"

std::uint64_t TaskSwitchQualification(const InterceptedEvent& event) {
  std::uint64_t source = 0;
  switch (static_cast<TaskSwitchSource>(event.number)) {
    case TaskSwitchSource::kCall:
      source = 0;
      break;
    case TaskSwitchSource::kIret:
      source = 1;
      break;
    case TaskSwitchSource::kJump:
      source = 2;
      break;
    case TaskSwitchSource::kGate:
      source = 3;
      break;
  }
  return (event.value & 0xffff) | source << 30;
}

std::uint64_t ControlQualification(const InterceptedEvent& event) {
  enum AccessType : std::uint64_t { kMovTo, kMovFrom, kClts, kLmsw };
  const std::uint64_t gpr = std::uint64_t{event.gpr} << 8;
  switch (event.what) {
    case Intercept::kReadControl:
      return event.number | kMovFrom << 4 | gpr;
    case Intercept::kWriteControl:
      return event.number | kMovTo << 4 | gpr;
    case Intercept::kClts:
      return kClts << 4;
    default:
      return kLmsw << 4 | (event.memory ? 1u << 6 : 0) | (event.value & 0xffff) << 16;
  }
}

std::uint64_t DebugQualification(const InterceptedEvent& event) {
  const bool from = event.what == Intercept::kReadDebug;
  return event.number | (from ? 1u << 4 : 0) | std::uint64_t{event.gpr} << 8;
}

std::uint64_t PortQualification(const PortAccess& io) {
  return (io.bytes - 1u) | (io.in ? 1u << 3 : 0) | (io.string ? 1u << 4 : 0) |
         (io.repeated ? 1u << 5 : 0) | (io.immediate_port ? 1u << 6 : 0) |
         std::uint64_t{io.port} << 16;
}

bool NamesMemory(const InterceptedEvent& event) {
  switch (event.what) {
    case Intercept::kInvpcid:
    case Intercept::kXsaves:
    case Intercept::kXrstors:
    case Intercept::kReadGdtr:
    case Intercept::kReadIdtr:
    case Intercept::kWriteGdtr:
    case Intercept::kWriteIdtr:
    case Intercept::kReadLdtr:
    case Intercept::kReadTr:
    case Intercept::kWriteLdtr:
    case Intercept::kWriteTr:
    case Intercept::kInstruction:
      return event.memory;
    default:
      return false;
  }
}

std::uint64_t QualificationOf(const InterceptedEvent& event) {
  switch (event.what) {
    case Intercept::kException:
      return event.number == 1 || event.number == 14 ? event.value : 0;
    case Intercept::kInvlpg:
      return event.value;
    case Intercept::kStartUp:
      return event.number;
    case Intercept::kTaskSwitch:
      return TaskSwitchQualification(event);
    case Intercept::kReadControl:
    case Intercept::kWriteControl:
    case Intercept::kClts:
    case Intercept::kLmsw:
      return ControlQualification(event);
    case Intercept::kReadDebug:
    case Intercept::kWriteDebug:
      return DebugQualification(event);
    case Intercept::kIo:
      return PortQualification(event.io);
    case Intercept::kMwait:
    case Intercept::kVirtualApic:
    case Intercept::kApicAccess:
      return event.value;
    default:
      return NamesMemory(event) ? event.operand.displacement : 0;
  }
}

// -- instruction information. [intel/vol3] "Information for VM Exits Due to Instruction Execution"

std::uint32_t AddressSize(std::uint8_t bytes) { return bytes == 8 ? 2 : bytes == 4 ? 1 : 0; }

std::uint32_t MemoryInformation(const MemoryOperand& operand) {
  constexpr std::uint32_t kNoIndex = 1u << 22, kNoBase = 1u << 27;
  std::uint32_t information =
      AddressSize(operand.address_bytes) << 7 | std::uint32_t{operand.segment} << 15;
  if (operand.index) {
    information |= operand.scale | std::uint32_t{*operand.index} << 18;
  } else {
    information |= kNoIndex;
  }
  return information | (operand.base ? std::uint32_t{*operand.base} << 23 : kNoBase);
}

// Memory, or the register `reg`.
std::uint32_t OperandInformation(const InterceptedEvent& event, std::uint8_t reg) {
  constexpr std::uint32_t kIsRegister = 1u << 10;
  return event.memory ? MemoryInformation(event.operand) : kIsRegister | std::uint32_t{reg} << 3;
}

std::uint32_t InstructionInformationOf(const InterceptedEvent& event) {
  const auto identity = [](std::uint32_t number) { return number << 28; };
  const auto table = [&event, &identity](std::uint32_t number) {
    const std::uint32_t size = event.operand_bytes == 2 ? 0 : 1u << 11;
    return MemoryInformation(event.operand) | size | identity(number);
  };
  const std::uint32_t random_size = event.operand_bytes == 8 ? 2 : event.operand_bytes == 4 ? 1 : 0;
  switch (event.what) {
    case Intercept::kReadGdtr:
      return table(0);
    case Intercept::kReadIdtr:
      return table(1);
    case Intercept::kWriteGdtr:
      return table(2);
    case Intercept::kWriteIdtr:
      return table(3);
    case Intercept::kReadLdtr:
      return OperandInformation(event, event.gpr) | identity(0);
    case Intercept::kReadTr:
      return OperandInformation(event, event.gpr) | identity(1);
    case Intercept::kWriteLdtr:
      return OperandInformation(event, event.gpr) | identity(2);
    case Intercept::kWriteTr:
      return OperandInformation(event, event.gpr) | identity(3);
    case Intercept::kRdrand:
    case Intercept::kRdseed:
      return std::uint32_t{event.gpr} << 3 | random_size << 11;
    case Intercept::kXsaves:
    case Intercept::kXrstors:
      return MemoryInformation(event.operand);
    case Intercept::kInvpcid:
      return MemoryInformation(event.operand) | std::uint32_t{event.gpr} << 28;
    case Intercept::kIo:
      if (!event.io.string) return 0;
      return AddressSize(event.io.address_bytes) << 7 | std::uint32_t{event.io.segment} << 15;
    case Intercept::kInstruction:
      break;
    default:
      return 0;
  }
  switch (event.instruction) {
    case VirtInstruction::kVmread:  // the field's encoding is the second operand
      return OperandInformation(event, event.gpr) |
             std::uint32_t{event.memory ? event.gpr : event.second_gpr} << 28;
    case VirtInstruction::kVmwrite:  // and here the first
      return OperandInformation(event, event.second_gpr) | std::uint32_t{event.gpr} << 28;
    case VirtInstruction::kInvept:
    case VirtInstruction::kInvvpid:
      return MemoryInformation(event.operand) | std::uint32_t{event.gpr} << 28;
    default:
      return event.memory ? MemoryInformation(event.operand) : 0;
  }
}

// -- events

EventType EventTypeOf(DeliveredEvent::Kind kind) {
  switch (kind) {
    case DeliveredEvent::Kind::kExternalInterrupt:
      return EventType::kInterrupt;
    case DeliveredEvent::Kind::kNmi:
      return EventType::kNmi;
    case DeliveredEvent::Kind::kException:
      return EventType::kException;
    case DeliveredEvent::Kind::kSoftwareException:
      return EventType::kSoftwareException;
    case DeliveredEvent::Kind::kPrivilegedException:
      return EventType::kPrivilegedException;
    case DeliveredEvent::Kind::kSoftwareInterrupt:
      return EventType::kSoftwareInterrupt;
  }
  return EventType::kException;
}

std::optional<DeliveredEvent> EventBehind(const InterceptedEvent& event, bool acknowledged) {
  const auto vector = static_cast<std::uint8_t>(event.number);
  switch (event.what) {
    case Intercept::kException:
      return DeliveredEvent{.kind = event.kind,
                            .vector = vector,
                            .has_error_code = event.has_error_code,
                            .error_code = event.error_code};
    case Intercept::kNmi:
      return DeliveredEvent{.kind = DeliveredEvent::Kind::kNmi, .vector = 2};
    case Intercept::kInterrupt:
      if (!acknowledged) return std::nullopt;
      return DeliveredEvent{.kind = DeliveredEvent::Kind::kExternalInterrupt, .vector = vector};
    default:
      return std::nullopt;
  }
}

bool IsSoftware(const DeliveredEvent& event) {
  return event.kind == DeliveredEvent::Kind::kSoftwareInterrupt ||
         event.kind == DeliveredEvent::Kind::kSoftwareException ||
         event.kind == DeliveredEvent::Kind::kPrivilegedException;
}

// Software events tell their instruction's length, too.
void RecordDelivered(Vmcs& vmcs, const CpuState& state,
                     const std::optional<DeliveredEvent>& delivered) {
  vmcs.Set(field::kIdtVectoring, delivered ? InformationOf(*delivered) : 0);
  if (!delivered) return;
  if (delivered->has_error_code) vmcs.Set(field::kIdtVectoringErrorCode, delivered->error_code);
  if (IsSoftware(*delivered)) {
    vmcs.Set(field::kInstructionLength, delivered->return_rip - state.rip);
  }
}

}  // namespace

ExitReason ReasonOf(const InterceptedEvent& event) {
  if (event.what == Intercept::kInstruction) return ReasonOf(event.instruction);
  if (event.what == Intercept::kVirtualApic) return static_cast<ExitReason>(event.number);
  for (const Row& row : kRows) {
    if (row.what == event.what) return row.reason;
  }
  return ExitReason::kExceptionOrNmi;
}

std::uint32_t InformationOf(const DeliveredEvent& event) {
  return event.vector | static_cast<std::uint32_t>(EventTypeOf(event.kind)) << 8 |
         (event.has_error_code ? kEventHasError : 0) | kEventValid;
}

DeliveredEvent InjectedEvent(std::uint32_t information, std::uint32_t error_code, std::uint64_t rip,
                             std::uint32_t length) {
  using Kind = DeliveredEvent::Kind;
  DeliveredEvent event = {.kind = Kind::kException,
                          .vector = static_cast<std::uint8_t>(information),
                          .has_error_code = (information & kEventHasError) != 0,
                          .error_code = error_code,
                          .return_rip = rip + length};
  switch (TypeOf(information)) {
    case EventType::kInterrupt:
      event.kind = Kind::kExternalInterrupt;
      break;
    case EventType::kNmi:
      event.kind = Kind::kNmi;
      break;
    case EventType::kSoftwareInterrupt:
      event.kind = Kind::kSoftwareInterrupt;
      event.checks_gate = true;
      break;
    case EventType::kPrivilegedException:
      event.kind = Kind::kPrivilegedException;
      break;
    case EventType::kSoftwareException:
      event.kind = Kind::kSoftwareException;
      event.checks_gate = true;
      break;
    default:
      break;
  }
  return event;
}

void RecordExit(Vmcs& vmcs, const InterceptedEvent& event, const CpuState& state,
                const std::optional<DeliveredEvent>& delivered, bool acknowledged) {
  vmcs.Set(field::kExitReason, static_cast<std::uint32_t>(ReasonOf(event)));
  vmcs.Set(field::kQualification, QualificationOf(event));
  const std::optional<DeliveredEvent> met = EventBehind(event, acknowledged);
  vmcs.Set(field::kExitInterruption, met ? InformationOf(*met) : 0);
  if (met && met->has_error_code) vmcs.Set(field::kExitErrorCode, met->error_code);
  vmcs.Set(field::kInstructionLength, event.instruction_bytes);
  RecordDelivered(vmcs, state, delivered);
  vmcs.Set(field::kInstructionInformation, InstructionInformationOf(event));
  if (event.what == Intercept::kIo && event.io.string) {
    vmcs.Set(field::kGuestLinear, event.value);
  }
}

void RecordNestedFault(Vmcs& vmcs, const NestedFault& fault, const PageFormat& format,
                       const CpuState& state, const std::optional<DeliveredEvent>& delivered) {
  const bool violation = !fault.malformed && !fault.log_full;
  const ExitReason reason = fault.log_full    ? ExitReason::kPageModificationLogFull
                            : fault.malformed ? ExitReason::kEptMisconfiguration
                                              : ExitReason::kEptViolation;
  vmcs.Set(field::kExitReason, static_cast<std::uint32_t>(reason));
  vmcs.Set(field::kQualification, violation ? ViolationQualification(fault, format) : 0);
  vmcs.Set(field::kExitInterruption, 0);
  vmcs.Set(field::kInstructionLength, 0);
  RecordDelivered(vmcs, state, delivered);
  vmcs.Set(field::kInstructionInformation, 0);
  if (fault.log_full) return;
  vmcs.Set(field::kGuestPhysical, fault.address.bits());
  if (fault.linear_valid) vmcs.Set(field::kGuestLinear, fault.linear.bits());
}

}  // namespace pagesaw::vmx
