module;
#include <cstdint>
module pagesaw.plugins.svm.exits;

import pagesaw.plugins.svm.svm_bits;

namespace pagesaw::svm {
namespace {

// MOV to or from a control register, and not CLTS, LMSW or SMSW.
constexpr std::uint64_t kMovesControl = std::uint64_t{1} << 63;

// [amd/vol2] "IOIO Intercepts": EXITINFO1
std::uint64_t PortInfo(const PortAccess& io) {
  std::uint64_t info = std::uint64_t{io.port} << 16 | (io.in ? 1u : 0);
  info |= std::uint64_t{io.bytes} << 4;  // 1, 2 or 4
  if (io.string) {
    info |= 1u << 2 | (io.repeated ? 1u << 3 : 0) | std::uint64_t{io.segment} << 10;
    info |= std::uint64_t{io.address_bytes} / 2 << 7;  // 16, 32 or 64 bits: 1, 2 or 4
  }
  return info;
}

// [amd/vol2] "Task Switch Intercept": EXITINFO2
std::uint64_t TaskSwitchInfo(const InterceptedEvent& event) {
  std::uint64_t info = event.has_error_code ? std::uint64_t{1} << 44 | event.error_code : 0;
  switch (static_cast<TaskSwitchSource>(event.number)) {
    case TaskSwitchSource::kIret:
      return info | std::uint64_t{1} << 36;
    case TaskSwitchSource::kJump:
      return info | std::uint64_t{1} << 38;
    case TaskSwitchSource::kCall:
    case TaskSwitchSource::kGate:
      return info;
  }
  return info;
}

}  // namespace

std::uint64_t EventWord(const DeliveredEvent& event) {
  EventType type = EventType::kException;
  switch (event.kind) {
    case DeliveredEvent::Kind::kExternalInterrupt:
      type = EventType::kInterrupt;
      break;
    case DeliveredEvent::Kind::kNmi:
      type = EventType::kNmi;
      break;
    case DeliveredEvent::Kind::kSoftwareInterrupt:
      type = EventType::kSoftwareInterrupt;
      break;
    case DeliveredEvent::Kind::kException:
    case DeliveredEvent::Kind::kSoftwareException:
    case DeliveredEvent::Kind::kPrivilegedException:
      break;
  }
  return event.vector | std::uint64_t{static_cast<std::uint8_t>(type)} << 8 |
         (event.has_error_code ? kEventHasError : 0) | kEventValid |
         std::uint64_t{event.error_code} << 32;
}

DeliveredEvent InjectedEvent(std::uint64_t word, std::uint64_t next_rip) {
  using Kind = DeliveredEvent::Kind;
  DeliveredEvent event = {.vector = static_cast<std::uint8_t>(word),
                          .error_code = static_cast<std::uint32_t>(word >> 32),
                          .return_rip = next_rip};
  switch (static_cast<EventType>(word >> 8 & 7)) {
    case EventType::kInterrupt:
      event.kind = Kind::kExternalInterrupt;
      break;
    case EventType::kNmi:
      event.kind = Kind::kNmi;
      event.vector = 2;
      break;
    case EventType::kSoftwareInterrupt:
      event.kind = Kind::kSoftwareInterrupt;
      break;
    case EventType::kException:
      event.kind =
          event.vector == 3 || event.vector == 4 ? Kind::kSoftwareException : Kind::kException;
      event.has_error_code = (word & kEventHasError) != 0;
      break;
  }
  return event;
}

ExitInfo ExitInfoOf(const InterceptedEvent& event, std::uint64_t next_rip) {
  switch (event.what) {
    case Intercept::kException:
      return {event.has_error_code ? event.error_code : 0, event.number == 14 ? event.value : 0};
    case Intercept::kIo:
      return {PortInfo(event.io), next_rip};
    case Intercept::kWriteMsr:
      return {1, 0};
    case Intercept::kReadControl:
    case Intercept::kWriteControl:
      return {kMovesControl | event.gpr, 0};
    case Intercept::kReadDebug:
    case Intercept::kWriteDebug:
      return {event.gpr, 0};
    case Intercept::kSoftwareInterrupt:
      return {event.number, 0};
    case Intercept::kInvlpg:
      return {event.value, 0};
    case Intercept::kInstruction:
      return {event.instruction == VirtInstruction::kInvlpga ? event.value : 0, 0};
    case Intercept::kTaskSwitch:
      return {event.value & 0xffff, TaskSwitchInfo(event)};
    default:
      return {};
  }
}

}  // namespace pagesaw::svm
