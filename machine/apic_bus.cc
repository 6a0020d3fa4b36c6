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

unsigned ApicBus::Send(const ApicMessage& message, const ApicReceiver* sender) const {
  ApicReceiver* lowest = nullptr;
  unsigned reached = 0;
  for (ApicReceiver* receiver : receivers_) {
    if (!Includes(message, receiver, sender)) continue;
    if (message.mode != DeliveryMode::kLowestPriority) {
      receiver->Accept(message);
      ++reached;
    } else if (lowest == nullptr ||
               receiver->arbitration_priority() < lowest->arbitration_priority()) {
      lowest = receiver;
    }
  }
  if (lowest == nullptr) return reached;
  lowest->Accept(message);
  return 1;
}

}  // namespace pagesaw
