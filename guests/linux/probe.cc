// Runs under Linux on a guest, and asks of its memory what can be told from outside as well.
//   probe map    maps, touches, protects and unmaps memory in many rounds; prints "mapped N MiB"
//   probe spin   prints where a page of it lies, as /proc/self/pagemap has it, and stays there
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

// [linux/pagemap]: bits 0 to 54 are the frame of a page that is present, bit 63.
uint64_t PhysicalAddress(const void* at) {
  const long file = guest::Open("/proc/self/pagemap", 0);
  if (file < 0) Fail("open /proc/self/pagemap");
  const auto address = reinterpret_cast<uint64_t>(at);
  uint64_t entry = 0;
  if (guest::ReadAt(static_cast<int>(file), &entry, sizeof entry, address / kPage * 8) != 8) {
    Fail("read /proc/self/pagemap");
  }
  if ((entry >> 63) == 0) Fail("the page is not present");
  return (entry & ((uint64_t{1} << 55) - 1)) * kPage + address % kPage;
}

[[noreturn]] void Spin() {
  char* page = guest::Map(kPage);
  if (page == nullptr) Fail("mmap");
  volatile uint64_t& value = *reinterpret_cast<volatile uint64_t*>(page);
  value = 0x7061'6765'7361'7721;
  Print("probe: gva ");
  PrintHex(reinterpret_cast<uint64_t>(page));
  Print(" gpa ");
  PrintHex(PhysicalAddress(page));
  Print(" value ");
  PrintHex(value);
  Print("\n");
  for (;;) asm volatile("" : : "r"(value));
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
