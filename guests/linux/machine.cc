#include "guests/linux/machine.h"

#include <stdint.h>

#include "guests/linux/system_calls.h"

namespace guest {
namespace {

// [linux/kvm] "API description"
constexpr long kGetApiVersion = 0xae00, kCreateVm = 0xae01, kGetRunBytes = 0xae04,
               kGetSupportedCpuid = 0xc008ae05, kCreateVcpu = 0xae41, kGetDirtyLog = 0x4010ae42,
               kSetMemory = 0x4020ae46, kSetTssAddress = 0xae47, kCreateIrqchip = 0xae60,
               kCreatePit = 0x4040ae77, kRun = 0xae80, kSetRegisters = 0x4090ae82,
               kGetSpecial = 0x8138ae83, kSetSpecial = 0x4138ae84, kSetCpuid = 0x4008ae90;
constexpr uint32_t kLogDirtyPages = 1, kReadOnly = 2;
constexpr uint32_t kExitIo = 2, kExitHalt = 5, kExitMmio = 6;
constexpr uint64_t kMaxMemoryBytes = 1ull << 30;

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
  union {
    struct {
      uint8_t direction, bytes;  // 1: out
      uint16_t port;
      uint32_t count;
      uint64_t data_offset;
    } io;
    struct {
      uint64_t address;
      uint8_t data[8];
      uint32_t bytes;
      uint8_t write;
    } mmio;
  };
};

long Control(int file, long request, const void* argument, const char* what) {
  const long result = SystemCall(16, file, request, reinterpret_cast<long>(argument));
  if (result < 0) Fail(what, result);
  return result;
}

void SetSegments(SpecialRegisters& special, Mode mode) {
  const bool wide = mode != Mode::k16;
  Segment data = {};
  data.limit = wide ? ~0u : 0xffff;
  data.selector = wide ? 0x18 : 0;
  data.type = 3;
  data.present = data.s = 1;
  data.db = data.g = wide;
  special.ds = special.es = special.ss = special.fs = special.gs = data;
  Segment code = data;
  code.selector = wide ? 0x10 : 0;
  code.type = 11;
  code.db = mode == Mode::k32;
  code.l = mode == Mode::k64;
  special.cs = code;
}

}  // namespace

void Fail(const char* what, long value) {
  Print("vmm: FAILED: ");
  Print(what);
  Print(" ");
  PrintHex(static_cast<uint64_t>(value));
  Print("\n");
  Exit(1);
}

Machine::Machine(uint64_t memory_bytes, bool irqchip) {
  if (memory_bytes > kMaxMemoryBytes) Fail("memory", static_cast<long>(memory_bytes));
  const long opened = Open("/dev/kvm", 2);
  if (opened < 0) Fail("open /dev/kvm", opened);
  const int kvm = static_cast<int>(opened);
  const long version = Control(kvm, kGetApiVersion, nullptr, "KVM_GET_API_VERSION");
  if (version != 12) Fail("API version", version);
  vm_ = static_cast<int>(Control(kvm, kCreateVm, nullptr, "KVM_CREATE_VM"));
  // Intel's processors need room for a task segment.
  Control(vm_, kSetTssAddress, reinterpret_cast<const void*>(0xfffb'd000), "KVM_SET_TSS_ADDR");
  if (irqchip) {
    Control(vm_, kCreateIrqchip, nullptr, "KVM_CREATE_IRQCHIP");
    const uint32_t pit[16] = {};
    Control(vm_, kCreatePit, pit, "KVM_CREATE_PIT2");
  }
  memory_ = Map(memory_bytes);
  if (memory_ == nullptr) Fail("mmap", static_cast<long>(memory_bytes));
  const MemoryRegion region = {0, irqchip ? 0 : kLogDirtyPages, 0, memory_bytes,
                               reinterpret_cast<uint64_t>(memory_)};
  Control(vm_, kSetMemory, &region, "KVM_SET_USER_MEMORY_REGION");
  vcpu_ = static_cast<int>(Control(vm_, kCreateVcpu, nullptr, "KVM_CREATE_VCPU"));
  CopyCpuid(kvm);
  const long bytes = Control(kvm, kGetRunBytes, nullptr, "KVM_GET_VCPU_MMAP_SIZE");
  // Shared, readable and writable.
  const long run = SystemCall(9, 0, bytes, 3, 1, vcpu_, 0);
  if (run < 0 && run > -4096) Fail("mmap of the vCPU", run);
  run_ = reinterpret_cast<unsigned char*>(run);
}

// The processor has all that KVM can give it.
void Machine::CopyCpuid(int kvm) {
  constexpr uint32_t kEntries = 100;
  struct {
    uint32_t count, padding;
    uint32_t entries[kEntries][10];
  } cpuid = {.count = kEntries, .padding = 0, .entries = {}};
  Control(kvm, kGetSupportedCpuid, &cpuid, "KVM_GET_SUPPORTED_CPUID");
  Control(vcpu_, kSetCpuid, &cpuid, "KVM_SET_CPUID2");
}

void Machine::Put(uint64_t at, uint64_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) memory_[at + i] = static_cast<char>(value >> (8 * i));
}

void Machine::SetSlot(unsigned number, Slot kind, uint64_t base, uint64_t bytes,
                      const char* backing) {
  const MemoryRegion region = {number, kind == Slot::kReadOnly ? kReadOnly : 0, base,
                               kind == Slot::kNone ? 0 : bytes,
                               reinterpret_cast<uint64_t>(backing)};
  Control(vm_, kSetMemory, &region, "KVM_SET_USER_MEMORY_REGION");
}

void Machine::Enter(Mode mode, uint64_t entry, uint64_t tables, uint64_t rsi) {
  SpecialRegisters special;
  Control(vcpu_, kGetSpecial, &special, "KVM_GET_SREGS");
  SetSegments(special, mode);
  special.cr0 = 0x10;
  special.cr3 = special.cr4 = special.efer = 0;
  if (mode == Mode::k32) {
    Put(tables, 0x83, 4);
    Put(tables + 4, (tables + 0x1000) | 3, 4);
    for (uint64_t page = 0; page < 1024; ++page) {
      Put(tables + 0x1000 + page * 4, page << 12 | 3, 4);
    }
    special.cr4 = 0x10;  // PSE
  } else if (mode == Mode::k64) {
    const uint64_t pdpt = tables + 0x1000, pd = pdpt + 0x1000;
    Put(tables, pdpt | 3, 8);
    Put(pdpt, pd | 3, 8);
    Put(pdpt + 8, pd | 3, 8);
    for (uint64_t page = 0; page < 512; ++page) Put(pd + page * 8, page << 21 | 0x83, 8);
    special.cr4 = 0x20;    // PAE
    special.efer = 0x500;  // LME, LMA
  }
  if (mode != Mode::k16) {
    special.cr3 = tables;
    special.cr0 = 0x8000'0011;  // PG, ET, PE
  }
  Control(vcpu_, kSetSpecial, &special, "KVM_SET_SREGS");
  Registers registers = {};
  registers.rsp = 0x8000;
  registers.rip = entry;
  registers.rsi = rsi;
  registers.rflags = 2;
  Control(vcpu_, kSetRegisters, &registers, "KVM_SET_REGS");
}

bool Machine::RunOnce(Access& access) {
  Control(vcpu_, kRun, nullptr, "KVM_RUN");
  volatile RunPage& run = *reinterpret_cast<volatile RunPage*>(run_);
  switch (run.exit_reason) {
    case kExitHalt:
      return false;
    case kExitIo:
      if (run.io.count != 1) Fail("a string of port accesses", run.io.count);
      access = {.memory = false,
                .write = run.io.direction == 1,
                .bytes = run.io.bytes,
                .at = run.io.port,
                .data = run_ + run.io.data_offset};
      return true;
    case kExitMmio:
      access = {.memory = true,
                .write = run.mmio.write != 0,
                .bytes = run.mmio.bytes,
                .at = run.mmio.address,
                .data = const_cast<unsigned char*>(run.mmio.data)};
      return true;
    default:
      Fail("exit reason", run.exit_reason);
  }
}

uint64_t Machine::TakeDirtyPages() {
  static uint64_t bitmap[kMaxMemoryBytes / 4096 / 64];
  const DirtyLog log = {0, 0, reinterpret_cast<uint64_t>(bitmap)};
  Control(vm_, kGetDirtyLog, &log, "KVM_GET_DIRTY_LOG");
  return bitmap[0];
}

}  // namespace guest
