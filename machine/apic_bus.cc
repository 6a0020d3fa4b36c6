module;
#include <vector>
module pagesaw.machine.apic_bus;

namespace pagesaw {
namespace {

bool Includes(const ApicMessage& message, const ApicReceiver* receiver,
              const ApicReceiver* sender) {
  switch (message.shorthand) {
    case Shorthand::kSelf:
      return receiver == sender;
    case Shorthand::kAll:
      return true;
    case Shorthand::kOthers:
      return receiver != sender;
    default:
      return receiver->IsDestination(message);
  }
}

}  // namespace

void ApicBus::Send(const ApicMessage& message, const ApicReceiver* sender) const {
  ApicReceiver* lowest = nullptr;
  for (ApicReceiver* receiver : receivers_) {
    if (!Includes(message, receiver, sender)) continue;
    if (message.mode != DeliveryMode::kLowestPriority) {
      receiver->Accept(message);
    } else if (lowest == nullptr ||
               receiver->arbitration_priority() < lowest->arbitration_priority()) {
      lowest = receiver;
    }
  }
  if (lowest != nullptr) lowest->Accept(message);
}

}  // namespace pagesaw
