// Exceptions, and probes: accesses that may fault, made to learn whether and how.
#ifndef GUESTS_SUPPORT_TRAPS_H_
#define GUESTS_SUPPORT_TRAPS_H_

#include <stdint.h>

namespace guest {

// What traps.S pushes.
struct TrapFrame {
  uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
  uint64_t vector, error_code, rip, cs, rflags, rsp, ss;
};

// Loads the IDT and the task state. Exceptions outside probes print themselves and end the machine.
void InitTraps();

// Asked first at every page fault; true: the access is tried again. Null: none.
using PageFaultHandler = bool (*)(uint64_t address, uint64_t error_code);
void SetPageFaultHandler(PageFaultHandler handler);

struct ProbeResult {
  bool faulted = false;
  uint64_t error_code = 0;  // of the #PF
  uint64_t address = 0;     // CR2
  uint64_t value = 0;       // RAX at the end
};

enum class ProbeKind { kRead, kWrite, kFetch };

// One access to `address` from ring 0: a load or store of 8 bytes, or a call.
ProbeResult Probe(ProbeKind kind, uint64_t address);

// Runs code at `entry` in ring 3, RDI = `argument`, until it executes INT 80h or takes a #PF.
ProbeResult RunUser(uint64_t entry, uint64_t stack_end, uint64_t argument);

}  // namespace guest

// Position-independent ring-3 code that does one access at RDI, then INT 80h.
extern "C" const char user_read[], user_write[], user_fetch[], user_probes_end[];

#endif  // GUESTS_SUPPORT_TRAPS_H_
