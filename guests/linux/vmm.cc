// A small virtual machine monitor for Linux's KVM, which runs under Linux on a guest: what it runs
// is a guest's guest.
//   vmm programs       three programs, in 16-bit, 32-bit and 64-bit mode, print through a port and
//                      write to a page; the log of dirty pages tells of it. A fourth uses a memory
//                      slot that is taken away, comes back read-only, and is moved
//   vmm linux FILE     boots a Linux kernel until it has printed some lines
//   vmm spin           a program in 64-bit mode reads a page over and over; prints where that is,
//                      for the program, for its machine and, by /proc/self/pagemap, here
#include <stdint.h>

#include "guests/linux/machine.h"
#include "guests/linux/system_calls.h"

using guest::Exit;
using guest::Fail;
using guest::Machine;
using guest::Mode;
using guest::Print;
using guest::PrintHex;

// The programs. Each prints the text at physical 2000h, by a linear address of its mode, and writes
// to a page of its own.
asm(R"(
        .code16
l2_16:  movw $0x2000, %si
        movw $0x3f8, %dx
1:      lodsb
        testb %al, %al
        jz 2f
        outb %al, %dx
        jmp 1b
2:      movb $0x5a, 0x3000
        hlt
l2_16_end:
        .code32
l2_32:  movl $0x402000, %esi
        movw $0x3f8, %dx
1:      lodsb
        testb %al, %al
        jz 2f
        outb %al, %dx
        jmp 1b
2:      movb $0x5a, 0x404000
        hlt
l2_32_end:
        .code64
l2_64:  movl $0x40002000, %esi
        movw $0x3f8, %dx
1:      lodsb
        testb %al, %al
        jz 2f
        outb %al, %dx
        jmp 1b
2:      movl $0x40005000, %edi
        movb $0x5a, (%rdi)
        hlt
l2_64_end:
        // Counts up the byte at RSI.
l2_count:
        movb (%rsi), %al
        incb %al
        movb %al, (%rsi)
        hlt
l2_count_end:
        // Writes to RSI, says so, and reads there from then on.
l2_spin:
        movabsq $0x7061676573617721, %rax
        movq %rax, (%rsi)
        movw $0x3f8, %dx
        outb %al, %dx
1:      movq (%rsi), %rax
        jmp 1b
l2_spin_end:
)");
extern "C" const char l2_16[], l2_16_end[], l2_32[], l2_32_end[], l2_64[], l2_64_end[], l2_count[],
    l2_count_end[], l2_spin[], l2_spin_end[];

namespace {

constexpr unsigned kSerialPort = 0x3f8, kSerialStatus = 0x3fd;
constexpr uint64_t kTables = 0x10000, kCode = 0x1000;
// In 64-bit mode, of physical 0.
constexpr uint64_t kLinear = 1 << 30;

struct Program {
  Mode mode;
  const char *code, *code_end;
  const char* text;
  unsigned dirty_page;
};

void PutCode(Machine& machine, const char* code, const char* end) {
  for (uint64_t i = 0; code + i != end; ++i) machine.memory()[kCode + i] = code[i];
}

void RunProgram(Machine& machine, const Program& program) {
  constexpr uint64_t kText = 0x2000;
  PutCode(machine, program.code, program.code_end);
  uint64_t length = 0;
  do machine.memory()[kText + length] = program.text[length];
  while (program.text[length++] != 0);
  machine.Enter(program.mode, kCode, kTables, 0);
  machine.TakeDirtyPages();  // what was so far
  machine.Run([](const Machine::Access& access) {
    if (access.memory) Fail("memory that is not there", static_cast<long>(access.at));
    guest::Write(1, access.data, access.bytes);
    return true;
  });
  const uint64_t dirty = machine.TakeDirtyPages();
  if ((dirty >> program.dirty_page & 1) == 0) Fail("no dirty page", program.dirty_page);
  if (machine.memory()[program.dirty_page * 4096] != 0x5a) Fail("not written", program.dirty_page);
  Print("vmm: dirty pages ");
  PrintHex(dirty);
  Print("\n");
}

// A page with one byte that a program counts up, in a slot.
class CountedPage {
 public:
  explicit CountedPage(Machine& machine) : machine_(machine), backing_(guest::Map(kBytes)) {
    if (backing_ == nullptr) Fail("mmap", kBytes);
    backing_[0] = 1;
  }

  void Set(Machine::Slot kind, uint64_t base) { machine_.SetSlot(1, kind, base, kBytes, backing_); }

  // The program counts at physical `at`. The machine sees `reads` and `writes` of memory that is
  // not there, where it reads 40h, the last of them writing `written`; the page holds `held` then.
  void Count(const char* what, uint64_t at, long reads, long writes, long written, long held) {
    long seen_reads = 0, seen_writes = 0, seen_written = 0;
    machine_.Enter(Mode::k64, kCode, kTables, kLinear + at);
    machine_.Run([&](const Machine::Access& access) {
      if (!access.memory || access.at != at || access.bytes != 1) Fail(what, 0x100);
      ++(access.write ? seen_writes : seen_reads);
      if (access.write) {
        seen_written = access.data[0];
      } else {
        access.data[0] = 0x40;
      }
      return true;
    });
    if (seen_reads != reads || seen_writes != writes) Fail(what, seen_reads << 4 | seen_writes);
    if (seen_written != written) Fail(what, seen_written);
    if (backing_[0] != held) Fail(what, backing_[0]);
  }

 private:
  static constexpr uint64_t kBytes = 64 << 10;

  Machine& machine_;
  char* const backing_;
};

void UseSlots(Machine& machine) {
  constexpr uint64_t kHere = 2 << 20, kThere = 4 << 20;
  PutCode(machine, l2_count, l2_count_end);
  CountedPage page(machine);
  page.Set(Machine::Slot::kWritable, kHere);
  page.Count("a slot", kHere, 0, 0, 0, 2);
  page.Set(Machine::Slot::kNone, kHere);
  page.Count("a slot that is gone", kHere, 1, 1, 0x41, 2);
  page.Set(Machine::Slot::kReadOnly, kHere);
  page.Count("a read-only slot", kHere, 0, 1, 3, 2);
  page.Set(Machine::Slot::kNone, kHere);
  page.Set(Machine::Slot::kWritable, kHere);
  page.Count("a slot that is back", kHere, 0, 0, 0, 3);
  page.Set(Machine::Slot::kWritable, kThere);
  page.Count("where a slot was", kHere, 1, 1, 0x41, 3);
  page.Count("a slot that moved", kThere, 0, 0, 0, 4);
  Print("vmm: slots as they should be\n");
}

void RunPrograms() {
  Machine machine(1 << 20, false);
  RunProgram(machine, {Mode::k16, l2_16, l2_16_end, "hello from 16-bit mode\n", 3});
  RunProgram(machine, {Mode::k32, l2_32, l2_32_end, "hello from 32-bit mode with paging\n", 4});
  RunProgram(machine, {Mode::k64, l2_64, l2_64_end, "hello from 64-bit mode\n", 5});
  UseSlots(machine);
}

void Spin() {
  constexpr uint64_t kPage = 0x5000;
  Machine machine(1 << 20, false);
  PutCode(machine, l2_spin, l2_spin_end);
  machine.Enter(Mode::k64, kCode, kTables, kLinear + kPage);
  machine.Run([&machine](const Machine::Access&) {
    Print("vmm: linear ");
    PrintHex(kLinear + kPage);
    Print(" physical ");
    PrintHex(kPage);
    const uint64_t here = guest::PhysicalAddress(machine.memory() + kPage);
    if (here == 0) Fail("/proc/self/pagemap", 0);
    Print(" here ");
    PrintHex(here);
    Print("\n");
    return true;
  });
}

// [linux/boot] "64-bit Boot Protocol"
void BootLinux(const char* path) {
  constexpr uint64_t kMemory = 128 << 20, kKernel = 16 << 20, kParameters = 0x20000,
                     kCmdline = 0x21000;
  constexpr unsigned kLines = 20;
  Machine machine(kMemory, true);
  char* memory = machine.memory();
  const long opened = guest::Open(path, 0);
  if (opened < 0) Fail("open the kernel", opened);
  const int file = static_cast<int>(opened);
  unsigned char header[0x300] = {};
  if (guest::ReadAt(file, header, sizeof header, 0) != sizeof header) Fail("header", 0);
  for (unsigned i = 0x1f1; i < 0x202u + header[0x201]; ++i) {
    memory[kParameters + i] = static_cast<char>(header[i]);
  }
  const uint64_t setup = (header[0x1f1] + 1) * 512u;
  uint64_t at = 0;
  for (;;) {
    const long count = guest::ReadAt(file, memory + kKernel + at, 1 << 20, setup + at);
    if (count < 0) Fail("read the kernel", count);
    if (count == 0) break;
    at += static_cast<uint64_t>(count);
  }
  constexpr char kText[] = "earlyprintk=serial,ttyS0,115200 nokaslr";
  for (unsigned i = 0; i < sizeof kText; ++i) memory[kCmdline + i] = kText[i];
  machine.Put(kParameters + 0x210, 0xff, 1);  // a loader without a number
  machine.Put(kParameters + 0x228, kCmdline, 4);
  machine.Put(kParameters + 0x1e8, 2, 1);  // two ranges of RAM
  machine.Put(kParameters + 0x2d0, 0, 8);
  machine.Put(kParameters + 0x2d8, 0x9f000, 8);
  machine.Put(kParameters + 0x2e0, 1, 4);
  machine.Put(kParameters + 0x2e4, 1 << 20, 8);
  machine.Put(kParameters + 0x2ec, kMemory - (1 << 20), 8);
  machine.Put(kParameters + 0x2f4, 1, 4);
  machine.Enter(Mode::k64, kKernel + 0x200, kTables, kParameters);

  unsigned lines = 0;
  machine.Run([&lines](const Machine::Access& access) {
    if (access.write) {
      if (!access.memory && access.at == kSerialPort) {
        guest::Write(1, access.data, 1);
        if (access.data[0] == '\n') ++lines;
      }
      return lines < kLines;
    }
    for (unsigned i = 0; i < access.bytes; ++i) access.data[i] = 0xff;
    if (!access.memory && access.at == kSerialStatus) access.data[0] = 0x60;  // ready to transmit
    return true;
  });
  if (lines < kLines) Fail("lines printed", lines);
}

}  // namespace

extern "C" [[noreturn]] void Main(const long* stack) {
  const char* const* arguments = reinterpret_cast<const char* const*>(stack + 1);
  if (stack[0] == 2 && guest::Same(arguments[1], "programs")) {
    RunPrograms();
  } else if (stack[0] == 2 && guest::Same(arguments[1], "spin")) {
    Spin();
  } else if (stack[0] == 3 && guest::Same(arguments[1], "linux")) {
    BootLinux(arguments[2]);
  } else {
    Fail("needs 'programs', 'spin' or 'linux FILE'; words given:", stack[0]);
  }
  Print("vmm: done\n");
  Exit(0);
}

asm(".globl _start\n_start:\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call Main\n");
