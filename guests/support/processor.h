// The instructions that C++ has no words for.
#ifndef GUESTS_SUPPORT_PROCESSOR_H_
#define GUESTS_SUPPORT_PROCESSOR_H_

#include <stdint.h>

namespace guest {

inline constexpr uint64_t kCr0Wp = 1u << 16;
inline constexpr uint64_t kCr4Smep = 1u << 20;
inline constexpr uint64_t kCr4Smap = 1u << 21;
inline constexpr uint32_t kMsrEfer = 0xc0000080;
inline constexpr uint64_t kEferNxe = 1u << 11;

inline void Out8(uint16_t port, uint8_t value) {
  asm volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
inline void Out32(uint16_t port, uint32_t value) {
  asm volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}
inline uint8_t In8(uint16_t port) {
  uint8_t value;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

inline uint64_t ReadTsc() {
  uint32_t low, high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high));
  return uint64_t{high} << 32 | low;
}
inline uint64_t ReadMsr(uint32_t index) {
  uint32_t low, high;
  asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
  return uint64_t{high} << 32 | low;
}
inline void WriteMsr(uint32_t index, uint64_t value) {
  asm volatile("wrmsr" ::"a"(static_cast<uint32_t>(value)), "d"(static_cast<uint32_t>(value >> 32)),
               "c"(index)
               : "memory");
}

struct CpuidResult {
  uint32_t eax, ebx, ecx, edx;
};
inline CpuidResult Cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  CpuidResult r;
  asm volatile("cpuid"
               : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
               : "a"(leaf), "c"(subleaf));
  return r;
}

inline uint64_t ReadCr0() {
  uint64_t value;
  asm volatile("mov %%cr0, %0" : "=r"(value));
  return value;
}
inline void WriteCr0(uint64_t value) { asm volatile("mov %0, %%cr0" ::"r"(value) : "memory"); }
inline uint64_t ReadCr2() {
  uint64_t value;
  asm volatile("mov %%cr2, %0" : "=r"(value));
  return value;
}
inline uint64_t ReadCr4() {
  uint64_t value;
  asm volatile("mov %%cr4, %0" : "=r"(value));
  return value;
}
inline void WriteCr4(uint64_t value) { asm volatile("mov %0, %%cr4" ::"r"(value) : "memory"); }
inline void LoadCr3(uint64_t value) { asm volatile("mov %0, %%cr3" ::"r"(value) : "memory"); }
inline void InvalidatePage(uint64_t address) {
  asm volatile("invlpg (%0)" ::"r"(address) : "memory");
}

// Ends the machine: its status becomes (value << 1) | 1 by the isa-debug-exit convention.
[[noreturn]] inline void Exit(uint32_t value) {
  Out32(0xf4, value);
  for (;;) asm volatile("cli; hlt");
}

// What CPUID says about paging.
struct Features {
  bool no_execute, gib_pages, smep, smap;
};
inline Features ReadFeatures() {
  const uint32_t extended = Cpuid(0x80000001).edx;
  const uint32_t leaf7 = Cpuid(0).eax >= 7 ? Cpuid(7).ebx : 0;
  return {(extended >> 20 & 1) != 0, (extended >> 26 & 1) != 0, (leaf7 >> 7 & 1) != 0,
          (leaf7 >> 20 & 1) != 0};
}

}  // namespace guest

#endif  // GUESTS_SUPPORT_PROCESSOR_H_
