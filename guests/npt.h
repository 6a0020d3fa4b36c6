// What the parts of the hypervisor in npt.cc share: the control block, the tables of its guest, and
// how a row is made.
#ifndef GUESTS_NPT_H_
#define GUESTS_NPT_H_

#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"
#include "guests/support/selectors.h"

// The guest's code: one access at RDI, then VMMCALL; VMMCALL alone.
extern "C" const char guest_read[], guest_fetch[], guest_call[];

namespace guest {

inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kMemory = 48 * kMiB;
inline constexpr uint64_t kControlBlock = 8 * kMiB, kSaveArea = 8 * kMiB + 0x1000;
inline constexpr uint64_t kProbed = 32 * kMiB + 0x5000;
inline constexpr uint64_t kGlobal = 1u << 8;  // reserved in the upper tables of AMD's processors

inline constexpr uint64_t kEferSvme = 1u << 12;
inline constexpr uint64_t kExitPageFault = 0x4e, kExitVmmcall = 0x81, kExitNested = 0x400;

inline PageTables* nested;       // what the hypervisor gives the guest as its memory
inline PageTables* own;          // the guest's own
inline uint64_t guest_root;      // its CR3
inline bool guest_user = false;  // it runs in user mode
inline bool wrong = false;

template <typename T>
T& Field(uint64_t offset) {
  return *reinterpret_cast<T*>(kControlBlock + offset);
}

// [amd/vol2] "Layout of VMCB"
inline void SetSegment(uint64_t offset, uint16_t attributes) {
  Field<uint16_t>(offset + 2) = attributes;
  Field<uint32_t>(offset + 4) = 0xffff'ffff;
}

inline void Describe(const char* code, bool execute_trap) {
  for (uint64_t at = 0; at < 4096; at += 8) Field<uint64_t>(at) = 0;
  Field<uint32_t>(0x008) = 0xffff'ffff;           // every exception
  Field<uint32_t>(0x00c) = 1u << 31;              // shutdown
  Field<uint32_t>(0x010) = 3;                     // VMRUN, VMMCALL
  Field<uint32_t>(0x058) = 1;                     // ASID
  Field<uint8_t>(0x05c) = 1;                      // forget everything
  Field<uint64_t>(0x090) = execute_trap ? 9 : 1;  // nested paging
  Field<uint64_t>(0x0b0) = nested->root();
  const uint16_t privilege = guest_user ? 3 : 0;
  SetSegment(0x410, 0xa9b | privilege << 5);  // CS, 64 bits
  SetSegment(0x420, 0xc93 | privilege << 5);  // SS
  Field<uint8_t>(0x4cb) = static_cast<uint8_t>(privilege);
  Field<uint64_t>(0x4d0) = ReadMsr(kMsrEfer) | kEferSvme;
  Field<uint64_t>(0x548) = ReadCr4();
  Field<uint64_t>(0x550) = guest_root;
  Field<uint64_t>(0x558) = ReadCr0();
  Field<uint64_t>(0x560) = 0x400;        // DR7
  Field<uint64_t>(0x568) = 0xffff'0ff0;  // DR6
  Field<uint64_t>(0x570) = 2;            // RFLAGS
  Field<uint64_t>(0x578) = reinterpret_cast<uint64_t>(code);
  Field<uint64_t>(0x668) = 0x0007'0406'0007'0406;  // PAT
}

inline void Enter(uint64_t address) {
  asm volatile("clgi; vmrun; stgi"
               : "+D"(address)
               : "a"(kControlBlock)
               : "rsi", "rdx", "cc", "memory");
}

inline void Expect(const char* name, const char* code, uint64_t address, uint64_t exit,
                   uint64_t info1, uint64_t info2, bool execute_trap = false) {
  Describe(code, execute_trap);
  Enter(address);
  const uint64_t got = Field<uint64_t>(0x070), got1 = Field<uint64_t>(0x078),
                 got2 = Field<uint64_t>(0x080);
  Print(Padded{name, 40}, Hex{got, 3}, " ", Hex{got1, 9}, " ", Hex{got2, 7});
  const bool ok = got == exit && (exit == kExitVmmcall || (got1 == info1 && got2 == info2));
  Print(ok ? " ok\n" : " WRONG\n");
  wrong = wrong || !ok;
}

inline void Check(const char* name, bool ok) {
  Print(Padded{name, 40}, ok ? "ok\n" : "WRONG\n");
  wrong = wrong || !ok;
}

// Lets the guest deliver events by the interrupt table at `table`, on the stack that ends at
// `stack_top`, with the segments of the hypervisor.
inline void GiveTables(uint64_t table, uint64_t stack_top) {
  struct [[gnu::packed]] {
    uint16_t limit;
    uint64_t base;
  } gdt;
  asm volatile("sgdt %0" : "=m"(gdt));
  Field<uint32_t>(0x464) = gdt.limit;
  Field<uint64_t>(0x468) = gdt.base;
  Field<uint32_t>(0x484) = 256 * 16 - 1;
  Field<uint64_t>(0x488) = table;
  Field<uint64_t>(0x5d8) = stack_top;
}

// Makes `handler` that of `vector` in the interrupt table at `table`.
inline void SetHandler(uint64_t table, unsigned vector, const char* handler) {
  const auto offset = reinterpret_cast<uint64_t>(handler);
  auto* const gate = reinterpret_cast<uint64_t*>(table + vector * 16);
  gate[0] = (offset & 0xffff) | uint64_t{KERNEL_CODE} << 16 | uint64_t{0x8e00} << 32 |
            (offset >> 16 & 0xffff) << 48;
  gate[1] = offset >> 32;
}

// An entry that is another while this lives.
class Changed {
 public:
  Changed(PageTables& tables, uint64_t linear, int level, uint64_t set, uint64_t clear)
      : entry_(tables.Entry(linear, level)), was_(entry_) {
    entry_ = (was_ & ~clear) | set;
  }
  ~Changed() { entry_ = was_; }

 private:
  uint64_t& entry_;
  const uint64_t was_;
};

// What SVM has besides nested paging.
void TestExtensions();

}  // namespace guest

#endif  // GUESTS_NPT_H_
