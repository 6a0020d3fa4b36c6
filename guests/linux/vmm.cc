// A small virtual machine monitor for Linux's KVM, which runs under Linux on a guest: what it runs
// is a guest's guest.
//   vmm programs       three programs, in 16-bit, 32-bit and 64-bit mode, print through a port and
//                      write to a page; the log of dirty pages tells of it
//   vmm linux FILE     boots a Linux kernel until it has printed some lines
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
)");
extern "C" const char l2_16[], l2_16_end[], l2_32[], l2_32_end[], l2_64[], l2_64_end[];

namespace {

constexpr unsigned kSerialPort = 0x3f8, kSerialStatus = 0x3fd;
constexpr uint64_t kTables = 0x10000;

struct Program {
  Mode mode;
  const char *code, *code_end;
  const char* text;
  unsigned dirty_page;
};

void RunProgram(Machine& machine, const Program& program) {
  constexpr uint64_t kCode = 0x1000, kText = 0x2000;
  for (const char* c = program.code; c != program.code_end; ++c) {
    machine.memory()[kCode + static_cast<uint64_t>(c - program.code)] = *c;
  }
  uint64_t length = 0;
  do machine.memory()[kText + length] = program.text[length];
  while (program.text[length++] != 0);
  machine.Enter(program.mode, kCode, kTables, 0);
  machine.TakeDirtyPages();  // what was so far
  machine.Run([](const Machine::PortAccess& access) {
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

void RunPrograms() {
  Machine machine(1 << 20, false);
  RunProgram(machine, {Mode::k16, l2_16, l2_16_end, "hello from 16-bit mode\n", 3});
  RunProgram(machine, {Mode::k32, l2_32, l2_32_end, "hello from 32-bit mode with paging\n", 4});
  RunProgram(machine, {Mode::k64, l2_64, l2_64_end, "hello from 64-bit mode\n", 5});
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
  machine.Run([&lines](const Machine::PortAccess& access) {
    if (access.write) {
      if (access.port == kSerialPort) {
        guest::Write(1, access.data, 1);
        if (access.data[0] == '\n') ++lines;
      }
      return lines < kLines;
    }
    for (unsigned i = 0; i < access.bytes; ++i) access.data[i] = 0xff;
    if (access.port == kSerialStatus) access.data[0] = 0x60;  // ready to transmit
    return true;
  });
  if (lines < kLines) Fail("lines printed", lines);
}

}  // namespace

extern "C" [[noreturn]] void Main(const long* stack) {
  const char* const* arguments = reinterpret_cast<const char* const*>(stack + 1);
  if (stack[0] == 2 && guest::Same(arguments[1], "programs")) {
    RunPrograms();
  } else if (stack[0] == 3 && guest::Same(arguments[1], "linux")) {
    BootLinux(arguments[2]);
  } else {
    Fail("needs 'programs' or 'linux FILE'; words given:", stack[0]);
  }
  Print("vmm: done\n");
  Exit(0);
}

asm(".globl _start\n_start:\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call Main\n");
