#include "guests/support/traps.h"

#include "guests/support/console.h"
#include "guests/support/processor.h"
#include "guests/support/selectors.h"

extern "C" {
extern char trap_entries[], trap_call[], probe_return[], boot_stack_end[];
extern uint64_t probe_stack;
extern uint64_t gdt[];
uint64_t probe_read(uint64_t address);
uint64_t probe_write(uint64_t address);
uint64_t probe_fetch(uint64_t address);
uint64_t probe_user(uint64_t entry, uint64_t stack_end, uint64_t argument);
}

namespace guest {
namespace {

constexpr unsigned kEntryBytes = 16;  // .balign in traps.S
constexpr uint64_t kPageFault = 14;
constexpr uint64_t kCall = 0x80;

// [intel/vol3] "64-Bit Mode IDT"
struct [[gnu::packed]] Gate {
  uint16_t offset_low, selector;
  uint8_t stack, type;
  uint16_t offset_middle;
  uint32_t offset_high, reserved;
};

struct [[gnu::packed]] TablePointer {
  uint16_t limit;
  uint64_t base;
};

// [intel/vol3] "Task Management in 64-bit Mode"
struct [[gnu::packed]] TaskState {
  uint32_t reserved;
  uint64_t rsp[3];
  uint64_t reserved2;
  uint64_t ist[7];
  uint64_t reserved3;
  uint16_t reserved4, io_map;
};

Gate idt[kCall + 1];
TaskState task_state;
alignas(16) char trap_stack[8192];
PageFaultHandler page_fault_handler;
ProbeResult probe;

void SetGate(unsigned vector, const char* entry, uint8_t type) {
  const uint64_t offset = reinterpret_cast<uintptr_t>(entry);
  idt[vector] = {static_cast<uint16_t>(offset),
                 KERNEL_CODE,
                 0,
                 type,
                 static_cast<uint16_t>(offset >> 16),
                 static_cast<uint32_t>(offset >> 32),
                 0};
}

void LoadTaskState() {
  task_state.rsp[0] = reinterpret_cast<uintptr_t>(trap_stack) + sizeof trap_stack;
  task_state.io_map = sizeof task_state;
  const uint64_t base = reinterpret_cast<uintptr_t>(&task_state);
  constexpr uint64_t kAvailableTask = 0x89;
  uint64_t* descriptor = &gdt[TASK_STATE / 8];
  descriptor[0] = (sizeof task_state - 1) | (base & 0xff'ffff) << 16 | kAvailableTask << 40 |
                  (base >> 24 & 0xff) << 56;
  descriptor[1] = base >> 32;
  asm volatile("ltr %w0" ::"r"(TASK_STATE));
}

void EndProbe(TrapFrame& frame) {
  frame.rip = reinterpret_cast<uintptr_t>(probe_return);
  frame.rsp = probe_stack;
  frame.cs = KERNEL_CODE;
  frame.ss = KERNEL_DATA;
}

}  // namespace

extern "C" void HandleTrap(TrapFrame* frame) {
  if (frame->vector == kPageFault) {
    const uint64_t address = ReadCr2();
    if (page_fault_handler != nullptr && page_fault_handler(address, frame->error_code)) return;
    if (probe_stack != 0) {
      probe = {true, frame->error_code, address, 0};
      EndProbe(*frame);
      return;
    }
  }
  if (frame->vector == kCall && probe_stack != 0) {
    EndProbe(*frame);
    return;
  }
  Print("exception ", frame->vector, " error code ", Hex{frame->error_code}, " at ",
        Hex{frame->rip}, " cs ", Hex{frame->cs}, " cr2 ", Hex{ReadCr2()}, "\n");
  Exit(1);
}

void InitTraps() {
  constexpr uint8_t kInterruptGate = 0x8e, kUserInterruptGate = 0xee;
  for (unsigned i = 0; i < 32; ++i) SetGate(i, trap_entries + kEntryBytes * i, kInterruptGate);
  SetGate(kCall, trap_call, kUserInterruptGate);
  const TablePointer pointer = {sizeof idt - 1, reinterpret_cast<uintptr_t>(idt)};
  asm volatile("lidt %0" ::"m"(pointer));
  LoadTaskState();
}

void SetPageFaultHandler(PageFaultHandler handler) { page_fault_handler = handler; }

ProbeResult Probe(ProbeKind kind, uint64_t address) {
  probe = {};
  uint64_t value = 0;
  switch (kind) {
    case ProbeKind::kRead:
      value = probe_read(address);
      break;
    case ProbeKind::kWrite:
      value = probe_write(address);
      break;
    case ProbeKind::kFetch:
      value = probe_fetch(address);
      break;
  }
  probe.value = value;
  return probe;
}

ProbeResult RunUser(uint64_t entry, uint64_t stack_end, uint64_t argument) {
  probe = {};
  const uint64_t value = probe_user(entry, stack_end, argument);
  probe.value = value;
  return probe;
}

}  // namespace guest
