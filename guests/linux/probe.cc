// Runs under Linux on a guest, and asks of its memory what can be told from outside as well.
//   probe map    maps, touches, protects and unmaps memory in many rounds; prints "mapped N MiB"
//   probe spin   prints where a page of its data and one of its code lie, as /proc/self/pagemap has
//                it, and stays there, now in its own code and now in the kernel's
#include <stdint.h>

#include "guests/linux/system_calls.h"

using guest::Exit;
using guest::Print;
using guest::PrintHex;

namespace {

constexpr uint64_t kPage = 4096;

[[noreturn]] void Fail(const char* what) {
  Print("probe: FAILED: ");
  Print(what);
  Print("\n");
  Exit(1);
}

uint64_t Pattern(uint64_t round, uint64_t page) {
  return (round << 32 | page) * 0x9e37'79b9'7f4a'7c15;
}

// Pages are fresh, keep what is written, and are gone with all their siblings.
void MapAndUnmap() {
  constexpr uint64_t kRounds = 200, kPages = 256;
  for (uint64_t round = 0; round < kRounds; ++round) {
    char* memory = guest::Map(kPages * kPage);
    if (memory == nullptr) Fail("mmap");
    const auto word = [memory](uint64_t page) -> volatile uint64_t& {
      return *reinterpret_cast<volatile uint64_t*>(memory + page * kPage + page % 512 * 8);
    };
    for (uint64_t page = 0; page < kPages; ++page) {
      if (word(page) != 0) Fail("a fresh page is not zero");
      word(page) = Pattern(round, page);
    }
    if (guest::Protect(memory, kPages / 2 * kPage, 1) != 0) Fail("mprotect");
    for (uint64_t page = 0; page < kPages; ++page) {
      if (word(page) != Pattern(round, page)) Fail("a page lost what was written");
    }
    if (guest::Unmap(memory, kPages * kPage) != 0) Fail("munmap");
  }
  Print("mapped 200 MiB\n");
}

void PrintPlace(const char* what, const void* at) {
  Print("probe: ");
  Print(what);
  Print(" gva ");
  PrintHex(reinterpret_cast<uint64_t>(at));
  Print(" gpa ");
  const uint64_t physical = guest::PhysicalAddress(at);
  if (physical == 0) Fail("/proc/self/pagemap");
  PrintHex(physical);
}

[[noreturn]] void Spin() {
  constexpr size_t kRead = 1 << 20;
  char* page = guest::Map(kPage);
  char* buffer = guest::Map(kRead);
  const long zeroes = guest::Open("/dev/zero", 0);
  if (page == nullptr || buffer == nullptr || zeroes < 0) Fail("mmap, or open /dev/zero");
  volatile uint64_t& value = *reinterpret_cast<volatile uint64_t*>(page);
  value = 0x7061'6765'7361'7721;
  PrintPlace("data", page);
  Print(" value ");
  PrintHex(value);
  Print("\n");
  PrintPlace("code", reinterpret_cast<const void*>(&Spin));
  Print("\n");
  for (;;) {
    for (unsigned i = 0; i < 1'000'000; ++i) asm volatile("" : : "r"(value));
    if (guest::ReadAt(static_cast<int>(zeroes), buffer, kRead, 0) != kRead) Fail("read /dev/zero");
  }
}

}  // namespace

extern "C" [[noreturn]] void Main(const long* stack) {
  const char* const* arguments = reinterpret_cast<const char* const*>(stack + 1);
  if (stack[0] == 2 && guest::Same(arguments[1], "map")) {
    MapAndUnmap();
    Exit(0);
  }
  if (stack[0] == 2 && guest::Same(arguments[1], "spin")) Spin();
  Fail("needs one word: map or spin");
}

asm(".globl _start\n_start:\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call Main\n");
