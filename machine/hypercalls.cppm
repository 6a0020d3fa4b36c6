// What the hypervisor answers to calls of its guest; core/hypercall says what they are.
module;
#include <cstdint>
export module pagesaw.machine.hypercalls;

import pagesaw.core.cpu_state;
import pagesaw.core.hypercall;
import pagesaw.machine.apic_bus;

export namespace pagesaw {

// The call that a processor in `state` is about to make.
Hypercall HypercallOf(const CpuState& state);

// Makes `call`; the answer for RAX. Messages go out over `bus`. Any thread that holds no lock of an
// APIC.
std::uint64_t AnswerHypercall(const Hypercall& call, const ApicBus& bus);

}  // namespace pagesaw
