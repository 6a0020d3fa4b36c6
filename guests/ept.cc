// A hypervisor for Intel processors in miniature: runs a guest of a few instructions on extended
// page tables, with every combination of rights at several levels and every kind of access, and
// checks exit reason, qualification and address of each, and A and D; then gives the guest a
// virtual APIC and a time of its own. Exits with status 1 if all went well, 3 if not.
// On the command line `switches=N` times as many VM entries, each with the VM exit that ends it,
// `faults=N` the guest's first accesses to as many pages, `loop=N` and `guest_loop=N` as many
// iterations of a loop here and in the guest.
// With `stay` the guest then stays alive, to be looked at: its linear 40000000h is the probed
// page; with `stay-plain` as well, but without EPT, and reads 2000000h.
//
// Physical memory, in MiB: image at 1, EPT 4 to 6, the guest's tables 6 to 8, VMX regions at 8, the
// probed page at 32. The guest sees that page at 512 GiB. Needs 48 MiB.
#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"
#include "guests/support/selectors.h"
#include "guests/support/traps.h"

// What the guest executes: one access at RDI, then VMCALL. `ept_enter` returns behind a VM exit, or
// nonzero if there is no VM entry. `ept_switch` resumes a guest that meets its VMCALL again and
// again, and returns how often it did not.
asm(R"(
        .globl guest_read, guest_write, guest_fetch, guest_call, guest_stay
        .globl ept_enter, ept_switch
guest_read:
        mov (%rdi), %rax
        vmcall
guest_write:
        mov %rax, (%rdi)
        vmcall
guest_fetch:
        jmp *%rdi
guest_call:
        vmcall
guest_stay:
        mov (%rdi), %rax
        jmp guest_stay

        .globl guest_read_register, guest_write_register, guest_tsc, guest_wait, guest_result
guest_read_register:
        mov (%rdi), %eax
        mov %rax, guest_result(%rip)
        vmcall
guest_write_register:
        movl $0x40041, (%rdi)
        vmcall
guest_tsc:
        rdtsc
        shl $32, %rdx
        or %rdx, %rax
        mov %rax, guest_result(%rip)
        vmcall
guest_wait:
        sti
        hlt
guest_loop:
        mov guest_count(%rip), %rdi
        mov guest_base(%rip), %rsi
        call nested_loop
        vmcall
guest_touch:
        mov guest_count(%rip), %rdi
        mov guest_base(%rip), %rsi
        call nested_touch
        vmcall
        .globl guest_loop, guest_touch, guest_count, guest_base
        .balign 8
guest_result:
        .quad 0
guest_count:
        .quad 0
guest_base:
        .quad 0

ept_switch:
        push %rbx
        push %rbp
        mov %rdi, %rbx
        mov $0x6c14, %eax
        vmwrite %rsp, %rax
        lea 1f(%rip), %rcx
        mov $0x6c16, %eax
        vmwrite %rcx, %rax
1:      dec %rbx
        js 2f
        vmresume
2:      lea 1(%rbx), %rax
        pop %rbp
        pop %rbx
        ret
ept_enter:
        push %rbx
        push %rbp
        mov $0x6c14, %eax
        vmwrite %rsp, %rax
        lea 1f(%rip), %rcx
        mov $0x6c16, %eax
        vmwrite %rcx, %rax
        test %esi, %esi
        jz 2f
        vmresume
2:      vmlaunch
1:      setbe %al
        movzbl %al, %eax
        pop %rbp
        pop %rbx
        ret
)");
extern "C" const char guest_read[], guest_write[], guest_fetch[], guest_call[], guest_stay[],
    guest_read_register[], guest_write_register[], guest_tsc[], guest_wait[];
extern "C" const char guest_loop[], guest_touch[];
extern "C" volatile uint64_t guest_result, guest_count, guest_base;
extern "C" void nested_loop(uint64_t iterations, uint64_t base);
extern "C" uint64_t ept_switch(uint64_t count);
extern "C" int ept_enter(uint64_t address, int resumes);

namespace guest {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kMemory = 48 * kMiB;
constexpr uint64_t kVmxon = 8 * kMiB, kVmcs = 8 * kMiB + 0x1000, kLog = 8 * kMiB + 0x2000;
constexpr uint64_t kProbed = 32 * kMiB;               // to the hypervisor
constexpr uint64_t kProbedGpa = uint64_t{512} << 30;  // to the guest
constexpr uint64_t kLinear = uint64_t{1} << 30;       // where the guest maps it

// EPT entries.
constexpr uint64_t kRead = 1, kWrite = 2, kExecute = 4, kUserExecute = 1u << 10;
constexpr uint64_t kAllRights = kRead | kWrite | kExecute | kUserExecute;
constexpr uint64_t kEptAccessed = 1u << 8, kEptDirty = 1u << 9, kWriteBack = 6u << 3;

// Exit reasons, bits of the qualification.
constexpr uint64_t kVmcall = 18, kViolation = 48, kMisconfiguration = 49;
constexpr uint64_t kChecked = 0x1ff;  // without the advanced information
constexpr uint64_t kFinal = 0x180, kOfTable = 0x80;

constexpr uint64_t kApicAccess = 44, kApicWrite = 56;

// The APIC-access page and the virtual-APIC page.
constexpr uint64_t kAccessPage = 8 * kMiB + 0x3000, kApicPage = 8 * kMiB + 0x4000;

constexpr uint64_t kSecondaryEpt = 2, kSecondaryLog = 1u << 17, kSecondarySplit = 1u << 22;

uint64_t ept_root = 4 * kMiB, ept_next = 4 * kMiB + 0x1000;
PageTables* own;
bool split = false;  // mode-based execute control is there
bool launched = false, wrong = false;

void Write(uint64_t field, uint64_t value) {
  asm volatile("vmwrite %0, %1" ::"r"(value), "r"(field) : "cc", "memory");
}
uint64_t Read(uint64_t field) {
  uint64_t value;
  asm volatile("vmread %1, %0" : "=r"(value) : "r"(field) : "cc");
  return value;
}

// The entry for `gpa` in the table of `level`, whose way is made if need be.
uint64_t& Entry(uint64_t gpa, int level) {
  uint64_t table = ept_root;
  for (int at = 4;; --at) {
    uint64_t& entry = reinterpret_cast<uint64_t*>(table)[gpa >> (3 + 9 * at) & 511];
    if (at == level) return entry;
    if (entry == 0) {
      entry = ept_next | kAllRights;
      ept_next += 0x1000;
    }
    table = entry & kAddressMask;
  }
}

void BuildTables() {
  for (uint64_t at = 0; at < kMemory; at += 2 * kMiB) {
    own->Map(at, at, PageSize::k2M, kWritable);
    const bool small = at == 6 * kMiB;
    for (uint64_t page = at; small && page < at + 2 * kMiB; page += 4096) {
      Entry(page, 1) = page | kAllRights | kWriteBack;
    }
    if (!small) Entry(at, 2) = at | kAllRights | kWriteBack | kPageSize;
  }
  own->Map(kLinear, kProbedGpa, PageSize::k4K, kWritable);
  Entry(kProbedGpa, 1) = kProbed | kAllRights | kWriteBack;
  *reinterpret_cast<uint32_t*>(kProbed) = 0xc1010f;  // VMCALL
}

uint64_t Required(uint32_t msr) { return ReadMsr(msr) & 0xffff'ffff; }

void Describe() {
  Write(0x4000, Required(0x48d));
  Write(0x4002, Required(0x48e) | uint64_t{1} << 31);
  Write(0x400c, Required(0x48f) | 1u << 9);
  Write(0x4012, Required(0x490) | 1u << 9);
  Write(0x4004, 0xffff'ffff);  // every exception
  Write(0x401e, kSecondaryEpt | (split ? kSecondarySplit : 0));
  Write(0x2800, ~uint64_t{0});
  for (uint64_t host = 0; host <= 0x400; host += 0x400) {
    Write(0x6800 + host, ReadCr0());
    Write(0x6804 + host, ReadCr4());
  }
  Write(0x6802, own->root());
  uint64_t cr3;
  asm volatile("mov %%cr3, %0" : "=r"(cr3));
  Write(0x6c02, cr3);
  struct [[gnu::packed]] {
    uint16_t limit;
    uint64_t base;
  } table;
  asm volatile("sgdt %0" : "=m"(table));
  Write(0x6c0c, table.base);
  asm volatile("sidt %0" : "=m"(table));
  Write(0x6c0e, table.base);
  Write(0x0c02, KERNEL_CODE);
  Write(0x0c0c, TASK_STATE);
  for (uint64_t access = 0x4814; access <= 0x4820; access += 2) Write(access, 0x1'0000);
  Write(0x0802, KERNEL_CODE);
  Write(0x4802, 0xffff'ffff);
  Write(0x4816, 0xa09b);
  Write(0x480e, 0x67);
  Write(0x4822, 0x8b);
  Write(0x681a, 0x400);
  Write(0x6820, 2);
}

void SetPointer(bool accessed_dirty) {
  Write(0x201a, ept_root | 3u << 3 | 6 | (accessed_dirty ? 1u << 6 : 0));
}

void ForgetEpt() {
  struct {
    uint64_t pointer, reserved;
  } all = {};
  asm volatile("invept %0, %1" ::"m"(all), "r"(uint64_t{2}) : "cc", "memory");
}

// Runs `code` with `address`. The exit reason.
uint64_t Run(const char* code, uint64_t address) {
  ForgetEpt();
  Write(0x681e, reinterpret_cast<uint64_t>(code));
  if (ept_enter(address, launched) != 0) {
    Print("no VM entry, error ", Hex{Read(0x4400), 2}, "\n");
    Exit(1);
  }
  launched = true;
  return Read(0x4402);
}

void Check(const char* name, bool ok) {
  Print(Padded{name, 40}, ok ? "ok\n" : "WRONG\n");
  wrong = wrong || !ok;
}

// What an access that needs `need` meets where `rights` is granted. [intel/vol3] "EPT
// Misconfigurations", "Exit Qualification for EPT Violations"
struct Expected {
  uint64_t reason, qualification;
};
Expected ExpectedOf(uint64_t rights, uint64_t need, uint64_t access) {
  if (!split) rights = (rights & 7) | ((rights & kExecute) != 0 ? kUserExecute : 0);
  if ((rights & (kRead | kWrite)) == kWrite) return {kMisconfiguration, 0};
  if ((rights & need) != 0) return {kVmcall, 0};
  const uint64_t user = split && (rights & kUserExecute) != 0 ? 1u << 6 : 0;
  return {kViolation, access | (rights & 7) << 3 | user | kFinal};
}

// Every combination of rights in the entry of `level`, every access.
void Rights(int level) {
  struct Access {
    const char* code;
    uint64_t need, bit;
    bool user;  // the linear address is a user's
  };
  const Access accesses[] = {{guest_read, kRead, 1, false},
                             {guest_write, kWrite, 2, false},
                             {guest_fetch, kExecute, 4, false},
                             {guest_fetch, kUserExecute, 4, true}};
  uint64_t& entry = Entry(kProbedGpa, level);
  const uint64_t was = entry;
  bool ok = true;
  for (uint64_t set = 0; set < 16; ++set) {
    const uint64_t rights = (set & 7) | (set & 8) << 7;
    for (const Access& access : accesses) {
      for (int table = 4; table > 0; --table) {
        uint64_t& upper = own->Entry(kLinear, table);
        upper = access.user ? upper | kUser : upper & ~kUser;
      }
      const uint64_t address = kLinear + (access.bit == 4 ? 0 : 8);
      entry = (was & ~kAllRights) | rights;
      const uint64_t reason = Run(access.code, address);
      entry = was;
      const Expected want = ExpectedOf(rights, access.need, access.bit);
      bool good = reason == want.reason;
      if (good && reason == kViolation) {
        good = (Read(0x6400) & kChecked) == want.qualification && Read(0x640a) == address;
      }
      if (good && reason != kVmcall) good = Read(0x2400) == kProbedGpa + (address & 0xfff);
      if (!good) {
        Print("rights ", Hex{rights, 3}, " access ", Hex{access.bit, 1}, ": ", Hex{reason, 2}, " ",
              Hex{Read(0x6400), 3}, ", not ", Hex{want.reason, 2}, " ", Hex{want.qualification, 3},
              "\n");
      }
      ok = ok && good;
    }
  }
  for (int table = 4; table > 0; --table) own->Entry(kLinear, table) &= ~kUser;
  Check(level == 1 ? "rights of the leaf" : "rights of a table", ok);
}

void ReservedBits() {
  struct Row {
    int level;
    uint64_t bits;
  };
  const uint64_t wide = uint64_t{1} << 51;
  bool ok = true;
  const Row rows[] = {Row{1, 2u << 3}, Row{1, 3u << 3}, Row{1, 7u << 3}, Row{1, wide},
                      Row{2, 1u << 3}, Row{2, 1u << 6}, Row{3, 1u << 4}, Row{4, 1u << 7},
                      Row{4, 1u << 5}, Row{4, wide}};
  for (const Row& row : rows) {
    uint64_t& entry = Entry(kProbedGpa, row.level);
    const uint64_t was = entry;
    entry = (row.level == 1 ? was & ~uint64_t{7u << 3} : was) | row.bits;
    ok = Run(guest_read, kLinear) == kMisconfiguration && Read(0x6400) == 0 && ok;
    entry &= ~kAllRights;  // of an entry that is not present nothing is reserved
    ok = Run(guest_read, kLinear) == kViolation && (Read(0x6400) & kChecked) == (1 | kFinal) && ok;
    entry = was;
  }
  Check("reserved bits", ok);
}

// Accesses to the guest's own tables.
void GuestTables() {
  uint64_t& entry = Entry(own->root(), 1);
  const uint64_t was = entry;
  const uint64_t all_execute = kExecute | (split ? kUserExecute : 0);
  const uint64_t rights = 1u << 3 | 1u << 5 | (split ? 1u << 6 : 0);  // without W, in bits 6:3
  for (int pass = 0; pass < 2; ++pass) {
    const bool accessed_dirty = pass == 1;
    SetPointer(accessed_dirty);
    const uint64_t both = accessed_dirty ? 3 : 1;
    entry = was & ~kAllRights;
    bool ok = Run(guest_read, kLinear) == kViolation && Read(0x2400) == own->root() + 0 &&
              (Read(0x6400) & kChecked) == (both | kOfTable);
    entry = (was & ~kAllRights) | kRead | all_execute;
    own->Entry(kLinear, 4) |= kAccessed;
    own->Entry(0, 4) |= kAccessed;
    if (accessed_dirty) {
      ok = ok && Run(guest_read, kLinear) == kViolation &&
           (Read(0x6400) & kChecked) == (3 | rights | kOfTable);
    } else {
      ok = ok && Run(guest_read, kLinear) == kVmcall;
      own->Entry(0, 4) &= ~kAccessed;
      ok = ok && Run(guest_read, kLinear) == kViolation &&
           (Read(0x6400) & kChecked) == (3 | rights | kOfTable);
    }
    entry = was;
    Check(accessed_dirty ? "the guest's tables, with A and D" : "the guest's tables", ok);
  }
}

// A walk that reads its tables from a device meets what nested tables refuse all the same, also
// where the device is known.
void TablesInDevice() {
  constexpr uint64_t kDevice = 0xdfff'f000;
  SetPointer(true);
  uint64_t& entry = Entry(kProbedGpa, 1);
  const uint64_t was = entry;
  entry = kDevice | kRead | kExecute | (split ? kUserExecute : 0) | kWriteBack;
  bool ok = Run(guest_read, kLinear) == kVmcall;
  Write(0x6802, kProbedGpa);
  ok = ok && Run(guest_read, kLinear) == kViolation && Read(0x2400) == kProbedGpa;
  ok =
      ok && (Read(0x6400) & kChecked) == (3 | kOfTable | 1u << 3 | 1u << 5 | (split ? 1u << 6 : 0));
  Write(0x6802, own->root());
  entry = was;
  Check("tables in a device", ok);
}

void AccessedAndDirty() {
  SetPointer(true);
  uint64_t& leaf = Entry(kProbedGpa, 1);
  leaf &= ~(kEptAccessed | kEptDirty);
  bool ok = Run(guest_read, kLinear) == kVmcall && (leaf & kEptAccessed) != 0;
  ok = ok && (leaf & kEptDirty) == 0 && (Entry(kProbedGpa, 4) & kEptAccessed) != 0;
  ok = ok && Run(guest_write, kLinear + 8) == kVmcall && (leaf & kEptDirty) != 0;
  Check("A and D", ok);

  own->Entry(ept_root, 2) &= ~(kAccessed | kDirty);
  ok = Run(guest_write, ept_root + 0xff8) == kVmcall;
  Check("A and D of the guest's, for a write to EPT",
        ok && (own->Entry(ept_root, 2) & (kAccessed | kDirty)) == (kAccessed | kDirty));

  // [intel/vol3] "Page-Modification Logging"
  Write(0x401e, Read(0x401e) | kSecondaryLog);
  Write(0x200e, kLog);
  Write(0x0812, 0);
  leaf &= ~kEptDirty;
  ok = Run(guest_write, kLinear + 8) == kVmcall && Read(0x0812) == 0xffff;
  ok = ok && *reinterpret_cast<uint64_t*>(kLog) == kProbedGpa;
  leaf &= ~kEptDirty;
  ok = ok && Run(guest_write, kLinear + 8) == 62 && (leaf & kEptDirty) == 0;
  Write(0x401e, Read(0x401e) & ~kSecondaryLog);
  Check("log of written pages, and its end", ok);
}

uint32_t& ApicRegister(uint64_t offset) { return *reinterpret_cast<uint32_t*>(kApicPage + offset); }

// An access to a register: the exit reason, and the qualification if it is not VMCALL's.
void ExpectRegister(const char* name, const char* code, uint64_t offset, uint64_t reason,
                    uint64_t qualification) {
  const uint64_t got = Run(code, kAccessPage + offset), told = Read(0x6400);
  Print(Padded{name, 40}, got, " ", Hex{told, 4});
  const bool ok = got == reason && (reason == kVmcall || told == qualification);
  Print(ok ? " ok\n" : " WRONG\n");
  wrong = wrong || !ok;
}

// Accesses, a self-IPI and its delivery through a table of the guest's own.
// [intel/vol3] "APIC Virtualization and Virtual Interrupts"
void VirtualApic() {
  constexpr uint32_t kVector = 0x41, kRequested = 0x220;
  constexpr uint64_t kTable = 8 * kMiB + 0x5000, kStackTop = 8 * kMiB + 0x7000;
  const uint64_t pin = Read(0x4000), primary = Read(0x4002), secondary = Read(0x401e);
  Write(0x4000, pin | 1);
  Write(0x4002, primary | 1u << 21);
  Write(0x401e, secondary | 1u << 0 | 1u << 8 | 1u << 9);
  Write(0x2012, kApicPage);
  Write(0x2014, kAccessPage);
  ApicRegister(0x30) = 0x5'0014;
  ExpectRegister("APIC: read", guest_read_register, 0x30, kVmcall, 0);
  Check("  is of the page", guest_result == 0x5'0014);
  ExpectRegister("APIC: read of the current count", guest_read_register, 0x390, kApicAccess, 0x390);
  ExpectRegister("APIC: read of 8 bytes", guest_read, 0x30, kApicAccess, 0x30);
  Check("  which has a length", Read(0x440c) == 3);
  ExpectRegister("APIC: write to the version", guest_write_register, 0x30, kApicAccess, 0x1030);
  ExpectRegister("APIC: fetch", guest_fetch, 0x30, kApicAccess, 0x2030);
  ExpectRegister("APIC: write of the timer's divisor", guest_write_register, 0x3e0, kApicWrite,
                 0x3e0);
  Check("  which is done", ApicRegister(0x3e0) == 0x4'0041);
  ExpectRegister("APIC: self-IPI", guest_write_register, 0x300, kVmcall, 0);
  Check("  waits", ApicRegister(kRequested) == 1u << kVector % 32 && Read(0x0810) == kVector);

  const auto handler = reinterpret_cast<uint64_t>(guest_call);
  auto* const gate = reinterpret_cast<uint64_t*>(kTable + kVector * 16);
  gate[0] = (handler & 0xffff) | uint64_t{KERNEL_CODE} << 16 | uint64_t{0x8e00} << 32 |
            (handler >> 16 & 0xffff) << 48;
  gate[1] = handler >> 32;
  Write(0x6816, Read(0x6c0c));  // GDT
  Write(0x4810, 0xffff);
  Write(0x6818, kTable);
  Write(0x4812, 0xfff);
  Write(0x681c, kStackTop);
  const bool called = Run(guest_wait, 0) == kVmcall;
  Check("  and ends the wait of HLT", called && Read(0x681e) == handler &&
                                          Read(0x0810) == kVector << 8 &&
                                          ApicRegister(kRequested) == 0);
  Write(0x6820, 2);
  Write(0x0810, 0);
  Write(0x4000, pin);
  Write(0x4002, primary);
  Write(0x401e, secondary);
}

void ScaledTime() {
  constexpr uint64_t kOffset = uint64_t{1} << 60;
  const uint64_t primary = Read(0x4002), secondary = Read(0x401e);
  Write(0x4002, primary | 1u << 3);
  Write(0x401e, secondary | 1u << 25);
  Write(0x2010, kOffset);
  Write(0x2032, uint64_t{3} << 48);
  const uint64_t before = ReadTsc();
  const bool called = Run(guest_tsc, 0) == kVmcall;
  const uint64_t after = ReadTsc(), inside = guest_result - kOffset;
  Check("three times the time and an offset",
        called && inside >= 3 * before && inside <= 3 * after);
  Write(0x4002, primary);
  Write(0x401e, secondary);
}

void Switches(uint64_t count) {
  Check("VMCALL", Run(guest_call, 0) == kVmcall);
  const uint64_t begin = ReadTsc();
  Check("VMCALL, again and again", ept_switch(count) == 0);
  Print(count, " switches, ticks of each: ", (ReadTsc() - begin) / count, "\n");
}

// Page faults are the guest's own.
void Stay(bool nests) {
  SetPointer(true);
  Write(0x4004, ~(1u << 14));
  if (!nests) Write(0x401e, 0);
  Print("the guest stays\n");
  const uint64_t reason = Run(guest_stay, nests ? kLinear : kProbed);
  Print("the guest was left, exit reason ", Hex{reason, 2}, "\n");
  wrong = true;
}

constexpr uint64_t kLoopStack = 8 * kMiB + 0x8000;

// Pages of 4 KiB that the guest has not touched yet, all of them one page of the hypervisor's.
void Faults(uint64_t count) {
  constexpr uint64_t kGpa = uint64_t{514} << 30, kFrom = uint64_t{2} << 30, kMost = 131072;
  if (count > kMost) count = kMost;
  for (uint64_t at = 0; at < count * 4096; at += 2 * kMiB) {
    own->Map(kFrom + at, kGpa + at, PageSize::k2M, kWritable);
  }
  for (uint64_t at = 0; at < count * 4096; at += 4096) {
    Entry(kGpa + at, 1) = kProbed | kAllRights | kWriteBack;
  }
  guest_count = count;
  guest_base = kFrom;
  Write(0x681c, kLoopStack);
  const uint64_t begin = ReadTsc();
  Check("pages touched", Run(guest_touch, 0) == kVmcall);
  Print(count, " pages, ticks of each: ", (ReadTsc() - begin) / count, "\n");
}

// The same loop here or in the guest.
void Loop(uint64_t count, bool in_guest) {
  constexpr uint64_t kBase = 40 * kMiB;
  guest_count = count;
  guest_base = kBase;
  const uint64_t begin = ReadTsc();
  if (in_guest) {
    Write(0x681c, kLoopStack);
    Check("loop", Run(guest_loop, 0) == kVmcall);
  } else {
    nested_loop(count, kBase);
  }
  const uint64_t end = ReadTsc();
  Print(count,
        in_guest ? " iterations in the guest, ticks: " : " iterations here, ticks: ", end - begin,
        "\n");
}

}  // namespace
}  // namespace guest

extern "C" void GuestMain(const guest::MultibootInfo* info) {
  using namespace guest;
  InitConsole();
  InitTraps();
  PageTables own_tables(6 * kMiB, 8 * kMiB);
  own = &own_tables;
  split = (ReadMsr(0x48b) >> 32 & kSecondarySplit) != 0;
  WriteCr0(ReadCr0() | 1u << 5);
  WriteCr4(ReadCr4() | 1u << 13);
  uint64_t vmxon = kVmxon, vmcs = kVmcs;
  *reinterpret_cast<uint32_t*>(kVmxon) = *reinterpret_cast<uint32_t*>(kVmcs) =
      static_cast<uint32_t>(ReadMsr(0x480));
  asm volatile("vmxon %0; vmclear %1; vmptrld %1" ::"m"(vmxon), "m"(vmcs) : "cc", "memory");
  BuildTables();
  Describe();
  for (int pass = 0; pass < 2; ++pass) {
    const bool accessed_dirty = pass == 1;
    Print(accessed_dirty ? "with A and D\n" : "without A and D\n");
    SetPointer(accessed_dirty);
    Rights(1);
    Rights(2);
    Rights(4);
    ReservedBits();
  }
  GuestTables();
  TablesInDevice();
  AccessedAndDirty();
  VirtualApic();
  ScaledTime();
  if (const uint64_t count = NumberOf(*info, "switches", 0); count != 0) Switches(count);
  if (const uint64_t count = NumberOf(*info, "faults", 0); count != 0) Faults(count);
  if (const uint64_t count = NumberOf(*info, "loop", 0); count != 0) Loop(count, false);
  if (const uint64_t count = NumberOf(*info, "guest_loop", 0); count != 0) Loop(count, true);
  const bool plain = HasWord(*info, "stay-plain");
  if (plain || HasWord(*info, "stay")) Stay(!plain);
  Print(wrong ? "something is wrong\n" : "all is well\n");
  Exit(wrong ? 1 : 0);
}
