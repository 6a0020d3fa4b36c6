// The system calls of Linux that programs without a library need, and printing on top of them.
// Errors are negative, as the kernel gives them.
#ifndef GUESTS_LINUX_SYSTEM_CALLS_H_
#define GUESTS_LINUX_SYSTEM_CALLS_H_

#include <stddef.h>
#include <stdint.h>

namespace guest {

inline long SystemCall(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0,
                       long f = 0) {
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  long result = number;
  asm volatile("syscall"
               : "+a"(result)
               : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

inline long Write(int file, const void* data, size_t bytes) {
  return SystemCall(1, file, reinterpret_cast<long>(data), static_cast<long>(bytes));
}
inline long Open(const char* path, int flags) {
  return SystemCall(2, reinterpret_cast<long>(path), flags);
}
// Readable and writable, private and anonymous.
inline char* Map(size_t bytes) {
  const long at = SystemCall(9, 0, static_cast<long>(bytes), 3, 0x22, -1, 0);
  return at < 0 && at > -4096 ? nullptr : reinterpret_cast<char*>(at);
}
inline long Protect(void* at, size_t bytes, int rights) {
  return SystemCall(10, reinterpret_cast<long>(at), static_cast<long>(bytes), rights);
}
inline long Unmap(void* at, size_t bytes) {
  return SystemCall(11, reinterpret_cast<long>(at), static_cast<long>(bytes));
}
inline long ReadAt(int file, void* data, size_t bytes, uint64_t offset) {
  return SystemCall(17, file, reinterpret_cast<long>(data), static_cast<long>(bytes),
                    static_cast<long>(offset));
}
// Where the page of `at` lies, 0 if that cannot be known. [linux/pagemap]: bits 0 to 54 are the
// frame of a page that is present, bit 63.
inline uint64_t PhysicalAddress(const void* at) {
  constexpr uint64_t kPage = 4096;
  const long file = Open("/proc/self/pagemap", 0);
  const auto address = reinterpret_cast<uint64_t>(at);
  uint64_t entry = 0;
  const bool read = file >= 0 && ReadAt(static_cast<int>(file), &entry, sizeof entry,
                                        address / kPage * 8) == sizeof entry;
  if (!read || entry >> 63 == 0) return 0;
  return (entry & ((uint64_t{1} << 55) - 1)) * kPage + address % kPage;
}
[[noreturn]] inline void Exit(int status) {
  for (;;) SystemCall(231, status);
}

inline void Print(const char* text) {
  size_t length = 0;
  while (text[length] != 0) ++length;
  Write(1, text, length);
}

inline void PrintHex(uint64_t value) {
  char text[19] = "0x0000000000000000";
  for (unsigned i = 0; i < 16; ++i) text[17 - i] = "0123456789abcdef"[value >> (4 * i) & 15];
  Print(text);
}

inline bool Same(const char* a, const char* b) {
  while (*a != 0 && *a == *b) {
    ++a;
    ++b;
  }
  return *a == *b;
}

}  // namespace guest

#endif  // GUESTS_LINUX_SYSTEM_CALLS_H_
