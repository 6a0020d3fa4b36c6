// What the registers of control-flow enforcement can hold.
module;
#include <cstdint>
export module pagesaw.cpu.cet_registers;

export import pagesaw.cpu.core;

export namespace pagesaw::cpu {

// Whether IA32_U_CET and IA32_S_CET take `value`. [intel/vol4] "Architectural MSRs", IA32_U_CET
bool IsLegalCet(const Core& core, std::uint64_t value);
// Whether IA32_PL0_SSP to IA32_PL3_SSP take `value`.
bool IsLegalSsp(const Core& core, std::uint64_t value);

}  // namespace pagesaw::cpu
