// A small virtual machine monitor for Linux's KVM, which runs under Linux on a guest: what it runs
// is a guest's guest. Three programs, in 16-bit mode, in 32-bit mode with paging and in 64-bit
// mode, print through a port and write to a page; the log of dirty pages must tell of that page.
#include <stdint.h>

#include "guests/linux/system_calls.h"

using guest::Exit;
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

constexpr uint64_t kMemoryBytes = 1 << 20;
constexpr uint64_t kCode = 0x1000, kText = 0x2000, kTables = 0x10000;

// [linux/kvm] "API description"
constexpr long kGetApiVersion = 0xae00, kCreateVm = 0xae01, kGetRunBytes = 0xae04,
               kCreateVcpu = 0xae41, kGetDirtyLog = 0x4010ae42, kSetMemory = 0x4020ae46,
               kSetTssAddress = 0xae47, kRun = 0xae80, kSetRegisters = 0x4090ae82,
               kGetSpecial = 0x8138ae83, kSetSpecial = 0x4138ae84;
constexpr uint32_t kLogDirtyPages = 1;
constexpr uint32_t kExitIo = 2, kExitHalt = 5;

struct MemoryRegion {
  uint32_t slot, flags;
  uint64_t base, bytes, user_address;
};
struct DirtyLog {
  uint32_t slot, padding;
  uint64_t bitmap;
};
struct Registers {
  uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8_to_r15[8], rip, rflags;
};
struct Segment {
  uint64_t base;
  uint32_t limit;
  uint16_t selector;
  uint8_t type, present, dpl, db, s, l, g, avl, unusable, padding;
};
struct Table {
  uint64_t base;
  uint16_t limit, padding[3];
};
struct SpecialRegisters {
  Segment cs, ds, es, fs, gs, ss, tr, ldt;
  Table gdt, idt;
  uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupts[4];
};
static_assert(sizeof(Registers) == 0x90 && sizeof(SpecialRegisters) == 0x138);
struct RunPage {
  uint8_t requests[8];
  uint32_t exit_reason;
  uint8_t state[20];
  struct {
    uint8_t direction, size;
    uint16_t port;
    uint32_t count;
    uint64_t data_offset;
  } io;
};

[[noreturn]] void Fail(const char* what, long value) {
  Print("vmm: FAILED: ");
  Print(what);
  Print(" ");
  PrintHex(static_cast<uint64_t>(value));
  Print("\n");
  Exit(1);
}

long Control(int file, long request, const void* argument, const char* what) {
  const long result = guest::SystemCall(16, file, request, reinterpret_cast<long>(argument));
  if (result < 0) Fail(what, result);
  return result;
}

enum class Mode { k16, k32, k64 };

struct Program {
  Mode mode;
  const char *code, *code_end;
  const char* text;
  unsigned dirty_page;
};

// A machine of one processor with 1 MiB at 0.
class Machine {
 public:
  explicit Machine(int kvm) {
    vm_ = static_cast<int>(Control(kvm, kCreateVm, nullptr, "KVM_CREATE_VM"));
    // Intel's processors need room for a task segment.
    Control(vm_, kSetTssAddress, reinterpret_cast<const void*>(0xfffb'd000), "KVM_SET_TSS_ADDR");
    memory_ = guest::Map(kMemoryBytes);
    if (memory_ == nullptr) Fail("mmap", 0);
    const MemoryRegion region = {0, kLogDirtyPages, 0, kMemoryBytes,
                                 reinterpret_cast<uint64_t>(memory_)};
    Control(vm_, kSetMemory, &region, "KVM_SET_USER_MEMORY_REGION");
    vcpu_ = static_cast<int>(Control(vm_, kCreateVcpu, nullptr, "KVM_CREATE_VCPU"));
    const long bytes = Control(kvm, kGetRunBytes, nullptr, "KVM_GET_VCPU_MMAP_SIZE");
    // Shared, readable and writable.
    run_ = reinterpret_cast<volatile RunPage*>(guest::SystemCall(9, 0, bytes, 3, 1, vcpu_, 0));
  }

  void Run(const Program& program) {
    for (const char* c = program.code; c != program.code_end; ++c) {
      memory_[kCode + static_cast<uint64_t>(c - program.code)] = *c;
    }
    uint64_t length = 0;
    do memory_[kText + length] = program.text[length];
    while (program.text[length++] != 0);
    SetSpecial(program.mode);
    Registers registers = {};
    registers.rsp = 0x8000;
    registers.rip = kCode;
    registers.rflags = 2;
    Control(vcpu_, kSetRegisters, &registers, "KVM_SET_REGS");
    uint64_t dirty[kMemoryBytes / 4096 / 64];
    ReadDirty(dirty);  // what was so far
    UntilHalted();
    ReadDirty(dirty);
    if ((dirty[0] >> program.dirty_page & 1) == 0) Fail("no dirty page", program.dirty_page);
    if (memory_[program.dirty_page * 4096] != 0x5a) Fail("not written", program.dirty_page);
    Print("vmm: dirty pages ");
    PrintHex(dirty[0]);
    Print("\n");
  }

 private:
  void Put(uint64_t at, uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; ++i) memory_[at + i] = static_cast<char>(value >> (8 * i));
  }

  void ReadDirty(uint64_t* bitmap) {
    const DirtyLog log = {0, 0, reinterpret_cast<uint64_t>(bitmap)};
    Control(vm_, kGetDirtyLog, &log, "KVM_GET_DIRTY_LOG");
  }

  void SetSpecial(Mode mode) {
    SpecialRegisters special;
    Control(vcpu_, kGetSpecial, &special, "KVM_GET_SREGS");
    const bool wide = mode != Mode::k16;
    Segment data = {};
    data.limit = wide ? ~0u : 0xffff;
    data.selector = wide ? 16 : 0;
    data.type = 3;
    data.present = data.s = 1;
    data.db = data.g = wide;
    Segment code = data;
    code.selector = wide ? 8 : 0;
    code.type = 11;
    code.db = mode == Mode::k32;
    code.l = mode == Mode::k64;
    special.cs = code;
    special.ds = special.es = special.ss = special.fs = special.gs = data;
    special.cr0 = special.cr3 = special.cr4 = special.efer = 0;
    special.cr0 = 0x10;
    if (mode == Mode::k32) {
      // Linear 0: itself, by a page of 4 MiB; linear 4 MiB: a table of pages of 4 KiB.
      Put(kTables, 0x83, 4);
      Put(kTables + 4, (kTables + 0x1000) | 3, 4);
      for (uint64_t page = 0; page < 16; ++page) {
        Put(kTables + 0x1000 + page * 4, page << 12 | 3, 4);
      }
      special.cr3 = kTables;
      special.cr4 = 0x10;  // PSE
      special.cr0 = 0x8000'0011;
    } else if (mode == Mode::k64) {
      // Linear 0 and linear 1 GiB: physical 0, by pages of 2 MiB.
      const uint64_t pml4 = kTables + 0x2000, pdpt = pml4 + 0x1000, pd = pdpt + 0x1000;
      Put(pml4, pdpt | 3, 8);
      Put(pdpt, pd | 3, 8);
      Put(pdpt + 8, pd | 3, 8);
      Put(pd, 0x83, 8);
      special.cr3 = pml4;
      special.cr4 = 0x20;    // PAE
      special.efer = 0x500;  // LME, LMA
      special.cr0 = 0x8000'0011;
    }
    Control(vcpu_, kSetSpecial, &special, "KVM_SET_SREGS");
  }

  void UntilHalted() {
    for (;;) {
      Control(vcpu_, kRun, nullptr, "KVM_RUN");
      if (run_->exit_reason == kExitHalt) return;
      if (run_->exit_reason != kExitIo) Fail("exit reason", run_->exit_reason);
      guest::Write(
          1, reinterpret_cast<const char*>(const_cast<const RunPage*>(run_)) + run_->io.data_offset,
          run_->io.size);
    }
  }

  int vm_ = -1, vcpu_ = -1;
  char* memory_ = nullptr;
  volatile RunPage* run_ = nullptr;
};

}  // namespace

extern "C" [[noreturn]] void Main(const long*) {
  const long kvm = guest::Open("/dev/kvm", 2);
  if (kvm < 0) Fail("open /dev/kvm", kvm);
  const int file = static_cast<int>(kvm);
  if (Control(file, kGetApiVersion, nullptr, "KVM_GET_API_VERSION") != 12) Fail("API version", 0);
  Machine machine(file);
  machine.Run({Mode::k16, l2_16, l2_16_end, "hello from 16-bit mode\n", 3});
  machine.Run({Mode::k32, l2_32, l2_32_end, "hello from 32-bit mode with paging\n", 4});
  machine.Run({Mode::k64, l2_64, l2_64_end, "hello from 64-bit mode\n", 5});
  Print("vmm: done\n");
  Exit(0);
}

asm(".globl _start\n_start:\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call Main\n");
