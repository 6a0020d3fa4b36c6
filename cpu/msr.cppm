// Model-specific registers and what else a processor tells about itself: CPUID, the time-stamp
// counter, random numbers. Registers that are not the processor's own are asked of the outside.
module;
#include <cstdint>
export module pagesaw.cpu.msr;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// The guest's time-stamp counter now: the host's monotonic clock in nanoseconds plus an offset.
std::uint64_t ReadTsc(const Core& core);
// The same without what guest mode makes of it.
std::uint64_t ReadHostTsc(const Core& core);

// What RDMSR and WRMSR do with MSRs that the processor itself holds. False: refused, or not such.
bool ReadOwnMsr(Core& core, std::uint32_t index, std::uint64_t& value);
bool WriteOwnMsr(Core& core, std::uint32_t index, std::uint64_t value);

bool Rdmsr(Core& core, const Op& op);
bool Wrmsr(Core& core, const Op& op);
bool Rdtsc(Core& core, const Op& op);
bool Rdtscp(Core& core, const Op& op);
bool Rdpmc(Core& core, const Op& op);
bool Rdpid(Core& core, const Op& op);
bool Cpuid(Core& core, const Op& op);
bool Rdrand(Core& core, const Op& op);
bool Rdseed(Core& core, const Op& op);

}  // namespace pagesaw::cpu
