module;
#include <cstddef>
#include <cstdint>
#include <optional>
module pagesaw.cpu.intercept;

namespace pagesaw::cpu {

bool AskUnit(Core& core, const InterceptedEvent& event) {
  if (!core.unit->Leaves(*core.unit_host, event)) return false;
  core.guest.met = event;
  core.stop = Stop::kLeave;
  return true;
}

void DescribeInstruction(const Core& core, const Op& op, InterceptedEvent& event) {
  event.instruction_bytes = op.length;
  event.memory = op.memory != 0;
  if (!event.memory) return;
  const auto gpr = [](RegisterOffset offset) -> std::optional<Gpr> {
    if (offset >= kZeroRegister) return std::nullopt;
    return static_cast<Gpr>(offset / 8);
  };
  event.operand = {.displacement = static_cast<std::uint64_t>(std::int64_t{op.displacement}),
                   .segment = op.segment,
                   .address_bytes = op.address_bytes,
                   .scale = op.scale,
                   .base = gpr(op.base),
                   .index = gpr(op.index)};
  if (op.base == kIpBaseRegister) event.operand.displacement += core.ip_base;
}

bool AskUnit(Core& core, const Op& op, InterceptedEvent event) {
  DescribeInstruction(core, op, event);
  return AskUnit(core, event);
}

std::byte* AccessApicPage(Core& core, PageAccess::Kind kind, std::uint64_t linear, unsigned bytes) {
  if (!core.alone && kind != PageAccess::Kind::kFetch) {
    core.stop = Stop::kAlone;
    return nullptr;
  }
  return core.unit->AccessApicPage(*core.unit_host,
                                   {.kind = kind,
                                    .offset = static_cast<std::uint16_t>(linear & (kPageBytes - 1)),
                                    .bytes = static_cast<std::uint8_t>(bytes),
                                    .in_delivery = core.delivering.has_value()});
}

DeliveredEvent DeliveredOf(const Pending& pending) {
  using Kind = DeliveredEvent::Kind;
  DeliveredEvent event = {.kind = Kind::kException,
                          .vector = pending.vector,
                          .has_error_code = pending.has_error_code,
                          .error_code = pending.error_code,
                          .return_rip = pending.return_rip};
  switch (pending.event_class) {
    case EventClass::kFault:
    case EventClass::kTrap:
      break;
    case EventClass::kInterrupt:
      event.kind = pending.vector == kNmiVector ? Kind::kNmi : Kind::kExternalInterrupt;
      break;
    case EventClass::kSoftwareInterrupt:
      if (pending.int_n) {
        event.kind = Kind::kSoftwareInterrupt;
      } else {
        event.kind = pending.privileged_software && pending.vector == kDb
                         ? Kind::kPrivilegedException
                         : Kind::kSoftwareException;
      }
      break;
  }
  return event;
}

Pending PendingOf(const DeliveredEvent& event) {
  using Kind = DeliveredEvent::Kind;
  Pending pending = {.vector = event.vector,
                     .has_error_code = event.has_error_code,
                     .error_code = event.error_code,
                     .return_rip = event.return_rip};
  switch (event.kind) {
    case Kind::kExternalInterrupt:
    case Kind::kNmi:
      pending.event_class = EventClass::kInterrupt;
      break;
    case Kind::kException:
      pending.event_class = EventClass::kFault;
      break;
    case Kind::kSoftwareException:
    case Kind::kPrivilegedException:
      pending.event_class = EventClass::kSoftwareInterrupt;
      pending.privileged_software = !event.checks_gate;
      break;
    case Kind::kSoftwareInterrupt:
      pending.event_class = EventClass::kSoftwareInterrupt;
      pending.int_n = true;
      break;
  }
  return pending;
}

}  // namespace pagesaw::cpu
