// How events enter the guest: delivery through the IDT in every mode, double and triple faults, the
// instructions that ask for it, and IRET, which leads back.
module;
#include <cstdint>
#include <optional>
export module pagesaw.cpu.exceptions;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

enum class Delivery : std::uint8_t {
  kDone,         // the handler's first instruction is next, at `core.rip`
  kLeave,        // `core.stop` is kExit or kAlone: nothing has changed, the event must come again
  kIntercepted,  // it must not be: guest mode is to be left for `core.guest.met`
  kShutdown,     // a triple fault: `core.activity` and `core.exit` say so, `core.stop` is kExit
};

// Delivers `pending`. At the call `core.rip` is where execution stands: what an event that is not a
// software interrupt returns to (a fault's own instruction, the next one for others), and where
// exceptions met on the way return to. Only software interrupts have a `return_rip` of their own.
// Exceptions met during delivery are delivered instead, or as double fault, before it returns.
Delivery Deliver(Core& core, const Pending& pending);

// What is to be delivered when the exception `nested` comes up while `current` is, found inside or
// by the outside to which a delivery left for a table fault: it, or a double fault. Nothing: a
// triple fault; `core.activity` says so. Loads CR2.
std::optional<Pending> DuringDelivery(Core& core, const Pending& current, Pending nested);

// In guest mode: whether it is to be left, for `core.guest.met`, instead of the exception `pending`
// or of a shutdown.
bool ExceptionLeaves(Core& core, const Pending& pending);
bool ShutdownLeaves(Core& core);

bool Int(Core& core, const Op& op);  // vector in `immediate`
bool Int1(Core& core, const Op& op);
bool Int3(Core& core, const Op& op);
bool Into(Core& core, const Op& op);
bool Iret(Core& core, const Op& op);

}  // namespace pagesaw::cpu
