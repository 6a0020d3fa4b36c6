// What #VMEXIT tells of the event that it is for, and what EVENTINJ asks for.
// [amd/vol2] "#VMEXIT", "Event Injection", "Decode Assists"
module;
#include <cstdint>
export module pagesaw.plugins.svm.exits;

import pagesaw.core.guest_mode;

export namespace pagesaw::svm {

// EXITINTINFO of an event that was being delivered.
std::uint64_t EventWord(const DeliveredEvent& event);

// What a valid EVENTINJ asks for. Software events return to `next_rip`, behind the instruction they
// stand for.
DeliveredEvent InjectedEvent(std::uint64_t word, std::uint64_t next_rip);

// EXITINFO1 and EXITINFO2 of `event`; `next_rip` is behind its instruction.
struct ExitInfo {
  std::uint64_t first = 0, second = 0;
};
ExitInfo ExitInfoOf(const InterceptedEvent& event, std::uint64_t next_rip);

}  // namespace pagesaw::svm
