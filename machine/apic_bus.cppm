// Carries interrupt messages between the local APICs of a VM.
// [intel/vol3] "Advanced Programmable Interrupt Controller (APIC)"
module;
#include <cstdint>
#include <vector>
export module pagesaw.machine.apic_bus;

export namespace pagesaw {

// How a message is delivered, as ICR and LVT entries encode it.
enum class DeliveryMode : std::uint8_t {
  kFixed = 0,
  kLowestPriority = 1,
  kSmi = 2,
  kNmi = 4,
  kInit = 5,
  kStartUp = 6,
  kExternal = 7,
};

enum class Shorthand : std::uint8_t { kNone = 0, kSelf = 1, kAll = 2, kOthers = 3 };

struct ApicMessage {
  DeliveryMode mode = DeliveryMode::kFixed;
  std::uint8_t vector = 0;
  bool logical = false;  // how `destination` is read
  bool level = false;    // level triggered
  Shorthand shorthand = Shorthand::kNone;
  std::uint32_t destination = 0;
  bool wide = false;  // `destination` has 32 bits (x2APIC), else 8
};

// A local APIC as the bus sees it. Any thread.
class ApicReceiver {
 public:
  virtual ~ApicReceiver() = default;
  virtual bool IsDestination(const ApicMessage& message) const = 0;
  // The lower, the sooner it gets a lowest-priority message.
  virtual std::uint8_t arbitration_priority() const = 0;
  virtual void Accept(const ApicMessage& message) = 0;
};

// Who wants to know when a level-triggered interrupt has been handled. Any thread.
class EoiListener {
 public:
  virtual ~EoiListener() = default;
  virtual void EndOfInterrupt(std::uint8_t vector) = 0;
};

// Receivers are attached before the first message; they outlive the bus's last one.
class ApicBus {
 public:
  void Attach(ApicReceiver& receiver) { receivers_.push_back(&receiver); }

  // Delivers `message`; to how many. `sender` may be null for messages of devices. The caller
  // holds no lock of an APIC.
  unsigned Send(const ApicMessage& message, const ApicReceiver* sender) const;

  // The one listener, or none; outlives the last message.
  void Listen(EoiListener& listener) { listener_ = &listener; }
  // A local APIC ended a level-triggered interrupt. The caller holds no lock of an APIC.
  void BroadcastEoi(std::uint8_t vector) const {
    if (listener_ != nullptr) listener_->EndOfInterrupt(vector);
  }

 private:
  std::vector<ApicReceiver*> receivers_;
  EoiListener* listener_ = nullptr;
};

}  // namespace pagesaw
