// A virtual machine of one processor by Linux's KVM, for programs without a library.
#ifndef GUESTS_LINUX_MACHINE_H_
#define GUESTS_LINUX_MACHINE_H_

#include <stdint.h>

#include "guests/linux/system_calls.h"

namespace guest {

// What a processor is to begin in. Paging is on in the wider two.
enum class Mode { k16, k32, k64 };

// Ends the program with a message and status 1.
[[noreturn]] void Fail(const char* what, long value);

class Machine {
 public:
  // Where a device of the machine is reached: what is written, or room for what is read.
  struct PortAccess {
    bool write;
    unsigned bytes;
    unsigned port;
    unsigned char* data;
  };

  // `memory_bytes` from 0 on. With `irqchip`, KVM has interrupt controllers and a timer for it, and
  // does not return when it halts.
  Machine(uint64_t memory_bytes, bool irqchip);

  char* memory() { return memory_; }
  void Put(uint64_t at, uint64_t value, unsigned bytes);

  // Puts page tables at `tables` (5 pages) and the processor at `entry`, with interrupts off.
  // In 32-bit mode linear 0 is physical 0, by a page of 4 MiB, and so is linear 4 MiB, by pages of
  // 4 KiB; in 64-bit mode linear 0 and linear 1 GiB are, by pages of 2 MiB.
  void Enter(Mode mode, uint64_t entry, uint64_t tables, uint64_t rsi);

  // Runs until the processor halts, or `on_port` says false.
  template <class OnPort>
  void Run(const OnPort& on_port) {
    for (;;) {
      PortAccess access;
      const bool halted = !RunOnce(access);
      if (halted || (access.data != nullptr && !on_port(access))) return;
    }
  }

  // A bit for each of the first 64 pages written since the last call.
  uint64_t TakeDirtyPages();

 private:
  // False: it halted. `access.data` is null if nothing is asked for.
  bool RunOnce(PortAccess& access);
  void CopyCpuid(int kvm);

  int vm_ = -1, vcpu_ = -1;
  char* memory_ = nullptr;
  unsigned char* run_ = nullptr;
};

}  // namespace guest

#endif  // GUESTS_LINUX_MACHINE_H_
