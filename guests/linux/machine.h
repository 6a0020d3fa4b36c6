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
  // Where a device of the machine would be reached: what is written, or room for what is read.
  struct Access {
    bool memory;  // that no slot has, or for a write a read-only one; else a port
    bool write;
    unsigned bytes;
    uint64_t at;  // the address, or the port's number
    unsigned char* data;
  };
  enum class Slot { kNone, kWritable, kReadOnly };

  // `memory_bytes` from 0 on. With `irqchip`, KVM has interrupt controllers and a timer for it, and
  // does not return when it halts.
  Machine(uint64_t memory_bytes, bool irqchip);

  char* memory() { return memory_; }
  void Put(uint64_t at, uint64_t value, unsigned bytes);
  // What is in slot `number`, 1 or above: `bytes` bytes of `backing` from `base` on. A slot that is
  // there may be moved; between read-only and writable it must be none.
  void SetSlot(unsigned number, Slot kind, uint64_t base, uint64_t bytes, const char* backing);

  // Puts page tables at `tables` (5 pages) and the processor at `entry`, with interrupts off.
  // In 32-bit mode linear 0 is physical 0, by a page of 4 MiB, and so is linear 4 MiB, by pages of
  // 4 KiB; in 64-bit mode linear 0 and linear 1 GiB are, by pages of 2 MiB.
  void Enter(Mode mode, uint64_t entry, uint64_t tables, uint64_t rsi);

  // Runs until the processor halts, or `on_access` says false.
  template <class OnAccess>
  void Run(const OnAccess& on_access) {
    Access access = {};
    while (RunOnce(access) && on_access(access)) {
    }
  }

  // A bit for each of the first 64 pages written since the last call.
  uint64_t TakeDirtyPages();

 private:
  // False: it halted.
  bool RunOnce(Access& access);
  void CopyCpuid(int kvm);

  int vm_ = -1, vcpu_ = -1;
  char* memory_ = nullptr;
  unsigned char* run_ = nullptr;
};

}  // namespace guest

#endif  // GUESTS_LINUX_MACHINE_H_
