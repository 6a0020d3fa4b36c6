// A hypervisor for AMD processors in miniature: runs a guest of a few instructions with nested
// paging, provokes every kind of nested page fault, and checks exit code, EXITINFO1 and EXITINFO2
// of each, and A and D in the nested tables; then what SVM has besides. Exits with status 1 if all
// went well, 3 if not.
//
// On the command line `switches=N` times as many VMRUNs, each with the #VMEXIT that ends it,
// `faults=N` the guest's first accesses to as many pages, `loop=N` and `guest_loop=N` as many
// iterations of a loop here and in the guest.
// With `stay` the guest then stays alive, to be looked at: its 2005000h is 2004000h of the
// hypervisor's; with `stay-plain` as well, but without nested paging.
//
// Physical memory, in MiB: image at 1, nested tables 4 to 6, the guest's tables 6 to 8, control
// block and save area at 8, the probed pages 32 to 34. Needs 48 MiB.
#include "guests/npt.h"

#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"
#include "guests/support/traps.h"

// What the guest executes: one access at RDI, then VMMCALL.
asm(R"(
        .globl guest_read, guest_write, guest_fetch, guest_call, guest_stay, guest_no_msr
guest_read:
        mov (%rdi), %rax
        vmmcall
guest_write:
        mov %rax, (%rdi)
        vmmcall
guest_fetch:
        jmp *%rdi
guest_call:
        vmmcall
guest_stay:
        mov (%rdi), %rax
        jmp guest_stay
guest_no_msr:
        mov $0xc0ffee, %ecx
        rdmsr
        ud2

guest_loop:
        mov guest_count(%rip), %rdi
        mov guest_base(%rip), %rsi
        call nested_loop
        vmmcall
guest_touch:
        mov guest_count(%rip), %rdi
        mov guest_base(%rip), %rsi
        call nested_touch
        vmmcall
        .globl guest_loop, guest_touch, guest_count, guest_base
        .balign 8
guest_count:
        .quad 0
guest_base:
        .quad 0
)");
extern "C" const char guest_write[], guest_stay[], guest_no_msr[], guest_loop[], guest_touch[];
extern "C" volatile uint64_t guest_count, guest_base;
extern "C" void nested_loop(uint64_t iterations, uint64_t base);

namespace guest {
namespace {

void BuildTables() {
  for (uint64_t at = 0; at < kMemory; at += 2 * kMiB) {
    own->Map(at, at, PageSize::k2M, kWritable);
    const bool small = at == 6 * kMiB || at == 32 * kMiB;
    for (uint64_t page = at; small && page < at + 2 * kMiB; page += 4096) {
      nested->Map(page, page, PageSize::k4K, kWritable | kUser);
    }
    if (!small) nested->Map(at, at, PageSize::k2M, kWritable | kUser);
  }
  *reinterpret_cast<uint32_t*>(kProbed) = 0xd9010f;  // VMMCALL
}

void FinalAddresses() {
  nested->Entry(kProbed, 1) &= ~(kAccessed | kDirty);
  Expect("read", guest_read, kProbed, kExitVmmcall, 0, 0);
  Check("  A, and D only if written",
        (nested->Entry(kProbed, 1) & (kAccessed | kDirty)) == kAccessed);
  Expect("write", guest_write, kProbed + 8, kExitVmmcall, 0, 0);
  Check("  A and D", (nested->Entry(kProbed, 1) & (kAccessed | kDirty)) == (kAccessed | kDirty));
  Expect("fetch", guest_fetch, kProbed, kExitVmmcall, 0, 0);
  {
    const Changed changed(*nested, kProbed, 1, 0, kPresent);
    Expect("read, not present", guest_read, kProbed + 16, kExitNested, 0x1'0000'0004, kProbed + 16);
    Expect("write, not present", guest_write, kProbed, kExitNested, 0x1'0000'0006, kProbed);
  }
  {
    const Changed changed(*nested, kProbed, 1, 0, kUser);
    Expect("read, not a user's", guest_read, kProbed, kExitNested, 0x1'0000'0005, kProbed);
  }
  {
    const Changed changed(*nested, kProbed, 1, 0, kWritable);
    Expect("read, read-only", guest_read, kProbed, kExitVmmcall, 0, 0);
    Expect("write, read-only", guest_write, kProbed + 8, kExitNested, 0x1'0000'0007, kProbed + 8);
  }
  {
    const Changed changed(*nested, kProbed, 1, kNoExecute, 0);
    Expect("fetch, not executable", guest_fetch, kProbed, kExitNested, 0x1'0000'0015, kProbed);
    WriteMsr(kMsrEfer, ReadMsr(kMsrEfer) & ~kEferNxe);
    Expect("read, bit 63 without NXE", guest_read, kProbed, kExitNested, 0x1'0000'000d, kProbed);
    Expect("fetch, bit 63 without NXE", guest_fetch, kProbed, kExitNested, 0x1'0000'000d, kProbed);
    WriteMsr(kMsrEfer, ReadMsr(kMsrEfer) | kEferNxe);
  }
}

void GuestTables() {
  const uint64_t root = own->root();
  {
    const Changed changed(*nested, root, 1, 0, kWritable);
    Expect("table, read-only", guest_read, kProbed, kExitNested, 0x2'0000'0007, root);
  }
  {
    const Changed changed(*nested, root, 1, 0, kPresent);
    Expect("table, not present", guest_read, kProbed, kExitNested, 0x2'0000'0006, root);
  }
  {
    const Changed changed(*nested, 0, 4, kGlobal, 0);
    Expect("table, reserved bit at level 4", guest_read, kProbed, kExitNested, 0x2'0000'000f, root);
  }
  {
    // The page of the guest's PDPT: other tables are met first.
    const uint64_t second = own->Entry(0, 4) & kAddressMask;
    const Changed changed(*nested, second, 1, kNoExecute, kPresent);
    Expect("second table, not present", guest_read, kProbed, kExitNested, 0x2'0000'0006, second);
  }
  {
    // The guest's own refusal comes before that of its final address.
    const Changed refused(*own, kProbed, 2, 0, kWritable);
    const Changed changed(*nested, kProbed, 1, 0, kPresent);
    Expect("guest's fault before the nested one", guest_write, kProbed, kExitPageFault, 3, kProbed);
  }
}

// Bits that no entry has. Those of upper tables are met by the walk of the guest's own.
void ReservedBits() {
  const int width = static_cast<int>(Cpuid(0x8000'0008).eax & 0xff);
  const uint64_t large = 40 * kMiB;
  bool ok = true;
  const auto is_reserved = [&ok](uint64_t at, int level, uint64_t bits) {
    const Changed changed(*nested, at, level, bits, 0);
    Describe(guest_read, false);
    Enter(at);
    const bool by_table = level > 2;
    ok = ok && Field<uint64_t>(0x070) == kExitNested &&
         Field<uint64_t>(0x078) == (by_table ? 0x2'0000'000f : 0x1'0000'000d) &&
         Field<uint64_t>(0x080) == (by_table ? own->root() : at);
  };
  for (int bit = width; bit < 52; ++bit) {
    for (int level = 1; level <= 4; ++level) is_reserved(kProbed, level, uint64_t{1} << bit);
  }
  for (int bit = 13; bit < 21; ++bit) is_reserved(large, 2, uint64_t{1} << bit);
  for (int bit = 13; bit < 30; ++bit) is_reserved(kProbed, 3, kPageSize | uint64_t{1} << bit);
  is_reserved(kProbed, 4, kPageSize);
  is_reserved(kProbed, 4, kGlobal);
  Check("reserved bits", ok);
}

// Whether a refused fetch says that it is one depends on the hypervisor's NXE and SMEP.
void FetchReports() {
  const Changed absent(*nested, kProbed, 1, 0, kPresent);
  Expect("fetch, not present", guest_fetch, kProbed, kExitNested, 0x1'0000'0014, kProbed);
  WriteMsr(kMsrEfer, ReadMsr(kMsrEfer) & ~kEferNxe);
  Expect("  without NXE", guest_fetch, kProbed, kExitNested, 0x1'0000'0004, kProbed);
  if (ReadFeatures().smep) {
    // The tables of the start have user pages alone.
    uint64_t cr3;
    asm volatile("mov %%cr3, %0" : "=r"(cr3));
    LoadCr3(own->root());
    WriteCr4(ReadCr4() | kCr4Smep);
    Expect("  without NXE, with SMEP", guest_fetch, kProbed, kExitNested, 0x1'0000'0014, kProbed);
    WriteCr4(ReadCr4() & ~kCr4Smep);
    LoadCr3(cr3);
  }
  WriteMsr(kMsrEfer, ReadMsr(kMsrEfer) | kEferNxe);
}

// An event on whose way a fault is met is told, and CR2 is as it was.
void WhileDelivering() {
  const Changed absent(*nested, kProbed, 1, 0, kPresent);
  Describe(guest_call, false);
  Field<uint32_t>(0x484) = 0xfff;  // IDTR
  Field<uint64_t>(0x488) = kProbed;
  Field<uint64_t>(0x0a8) = 0x8000'0040;
  Field<uint64_t>(0x640) = 0x1234;
  Enter(0);
  Check("while an interrupt is delivered",
        Field<uint64_t>(0x070) == kExitNested && Field<uint64_t>(0x078) == 0x1'0000'0004 &&
            Field<uint64_t>(0x080) == kProbed + 0x400 && Field<uint64_t>(0x088) == 0x8000'0040 &&
            Field<uint64_t>(0x640) == 0x1234);
}

// RDMSR of a register that nobody has, whose #GP the guest handles: its handler is guest_call.
void MeetBadMsr() {
  constexpr uint64_t kIdt = kProbed + 0x1000, kStack = kProbed + 0x3000;
  SetHandler(kIdt, 13, guest_call);
  Describe(guest_no_msr, false);
  Field<uint32_t>(0x008) = 0;
  GiveTables(kIdt, kStack);
  Enter(0);
}

// Entries that the hypervisor's processor watches, used and written by the guest's walks.
void SharedTables() {
  guest_root = nested->root();
  nested->Entry(kProbed, 1) &= ~(kAccessed | kDirty);
  Expect("nested tables as the guest's own", guest_write, kProbed + 8, kExitVmmcall, 0, 0);
  Check("  A and D", (nested->Entry(kProbed, 1) & (kAccessed | kDirty)) == (kAccessed | kDirty));
  Expect("  fetch", guest_fetch, kProbed, kExitVmmcall, 0, 0);
  MeetBadMsr();
  Check("  exception behind a register's answer", Field<uint64_t>(0x070) == kExitVmmcall);
  guest_root = own->root();
  own->Entry(nested->root(), 2) &= ~(kAccessed | kDirty);
  Expect("write to a nested table", guest_write, nested->root() + 0xff8, kExitVmmcall, 0, 0);
  Check("  A and D of the guest's entry",
        (own->Entry(nested->root(), 2) & (kAccessed | kDirty)) == (kAccessed | kDirty));
}

void LargePages() {
  const uint64_t at = 40 * kMiB + 0x3000;
  Expect("large page, write", guest_write, at, kExitVmmcall, 0, 0);
  Check("  A and D", (nested->Entry(at, 2) & (kAccessed | kDirty)) == (kAccessed | kDirty));
  {
    const Changed changed(*nested, at, 2, 1u << 13, 0);
    Expect("large page, reserved bit", guest_read, at, kExitNested, 0x1'0000'000d, at);
  }
  {
    const Changed changed(*nested, at, 2, 0, kWritable);
    Expect("large page, read-only", guest_write, at, kExitNested, 0x1'0000'0007, at);
  }
}

// What is a user's traps fetches in supervisor mode, and so the code that runs there must not be.
// [amd/vol2] "Guest Mode Execute Trap"
void ExecuteTrap() {
  const uint64_t code = reinterpret_cast<uint64_t>(guest_fetch) & ~(2 * kMiB - 1);
  const Changed supervisor(*nested, code, 2, 0, kUser);
  Expect("trap: fetch from a user's page", guest_fetch, kProbed, kExitNested, 0x1'0000'0011,
         kProbed, true);
  Expect("trap: read of a user's page", guest_read, kProbed, kExitVmmcall, 0, 0, true);
  Expect("trap: write to a user's page", guest_write, kProbed + 8, kExitVmmcall, 0, 0, true);
  const Changed changed(*nested, kProbed, 1, 0, kUser);
  Expect("trap: fetch from a supervisor's page", guest_fetch, kProbed, kExitVmmcall, 0, 0, true);
  Expect("trap: write to a supervisor's page", guest_write, kProbed + 8, kExitVmmcall, 0, 0, true);
  {
    const Changed no_execute(*nested, kProbed, 1, kNoExecute, 0);
    Expect("trap: fetch, not executable", guest_fetch, kProbed, kExitNested, 0x1'0000'0011, kProbed,
           true);
  }
  {
    const Changed absent(*nested, kProbed, 1, 0, kPresent);
    Expect("trap: read, not present", guest_read, kProbed, kExitNested, 0x1'0000'0000, kProbed,
           true);
  }
  {
    const Changed read_only(*nested, own->root(), 1, 0, kWritable);
    Expect("trap: table, read-only", guest_read, kProbed, kExitNested, 0x2'0000'0007, own->root(),
           true);
  }
  {
    const Changed split_table(*nested, kProbed, 3, 0, kUser);
    Expect("trap: a table that is a supervisor's", guest_fetch, kProbed, kExitVmmcall, 0, 0, true);
  }
}

// In user mode the trap is none.
void InUserMode() {
  const uint64_t code = reinterpret_cast<uint64_t>(guest_fetch);
  const Changed top(*own, kProbed, 4, kUser, 0), second(*own, kProbed, 3, kUser, 0);
  const Changed of_code(*own, code, 2, kUser, 0), of_probed(*own, kProbed, 2, kUser, 0);
  const bool has_trap = (Cpuid(0x8000'000a).edx >> 17 & 1) != 0;
  guest_user = true;
  Expect("user: fetch", guest_fetch, kProbed, kExitVmmcall, 0, 0);
  for (int pass = 0; pass < 2; ++pass) {
    const bool trap = pass == 1;
    if (trap && !has_trap) break;
    Print(trap ? "with the trap\n" : "");
    Expect("user: fetch from a user's page", guest_fetch, kProbed, kExitVmmcall, 0, 0, trap);
    {
      const Changed changed(*nested, kProbed, 1, 0, kUser);
      Expect("user: fetch from a supervisor's page", guest_fetch, kProbed,
             trap ? kExitVmmcall : kExitNested, 0x1'0000'0015, kProbed, trap);
      Expect("user: read of a supervisor's page", guest_read, kProbed,
             trap ? kExitVmmcall : kExitNested, 0x1'0000'0005, kProbed, trap);
    }
    const Changed no_execute(*nested, kProbed, 1, kNoExecute, 0);
    Expect("user: fetch, not executable", guest_fetch, kProbed, kExitNested, 0x1'0000'0015, kProbed,
           trap);
  }
  guest_user = false;
}

void Switches(uint64_t count) {
  Describe(guest_call, false);
  Field<uint8_t>(0x05c) = 0;  // forget nothing
  const uint64_t begin = ReadTsc();
  for (uint64_t i = 0; i < count; ++i) Enter(0);
  const uint64_t end = ReadTsc();
  Check("VMMCALL, again and again", Field<uint64_t>(0x070) == kExitVmmcall);
  Print(count, " switches, ticks of each: ", (end - begin) / count, "\n");
}

void Stay(bool nests) {
  nested->Map(kProbed, kProbed - 0x1000, PageSize::k4K, kWritable | kUser);
  Describe(guest_stay, false);
  if (!nests) Field<uint64_t>(0x090) = 0;
  Print("the guest stays\n");
  Enter(kProbed);
  Print("the guest was left, exit code ", Hex{Field<uint64_t>(0x070), 3}, "\n");
  wrong = true;
}

constexpr uint64_t kLoopStack = 8 * kMiB + 0x8000;

// Pages of 4 KiB that the guest has not touched yet, all of them one page of the hypervisor's.
void Faults(uint64_t count) {
  constexpr uint64_t kGpa = uint64_t{2} << 30, kFrom = uint64_t{2} << 30, kMost = 131072;
  if (count > kMost) count = kMost;
  for (uint64_t at = 0; at < count * 4096; at += 2 * kMiB) {
    own->Map(kFrom + at, kGpa + at, PageSize::k2M, kWritable);
  }
  for (uint64_t at = 0; at < count * 4096; at += 4096) {
    nested->Map(kGpa + at, kProbed, PageSize::k4K, kWritable | kUser);
  }
  Describe(guest_touch, false);
  Field<uint64_t>(0x5d8) = kLoopStack;
  guest_count = count;
  guest_base = kFrom;
  const uint64_t begin = ReadTsc();
  Enter(0);
  const uint64_t end = ReadTsc();
  Check("pages touched", Field<uint64_t>(0x070) == kExitVmmcall);
  Print(count, " pages, ticks of each: ", (end - begin) / count, "\n");
}

// The same loop here or in the guest.
void Loop(uint64_t count, bool in_guest) {
  constexpr uint64_t kBase = 40 * kMiB;
  guest_count = count;
  guest_base = kBase;
  const uint64_t begin = ReadTsc();
  if (in_guest) {
    Describe(guest_loop, false);
    Field<uint64_t>(0x5d8) = kLoopStack;
    Enter(0);
    Check("loop", Field<uint64_t>(0x070) == kExitVmmcall);
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
  PageTables nested_tables(4 * kMiB, 6 * kMiB), own_tables(6 * kMiB, 8 * kMiB);
  nested = &nested_tables;
  own = &own_tables;
  guest_root = own->root();
  BuildTables();
  WriteMsr(kMsrEfer, ReadMsr(kMsrEfer) | kEferSvme | kEferNxe);
  WriteMsr(0xc001'0117, kSaveArea);
  FinalAddresses();
  GuestTables();
  SharedTables();
  LargePages();
  ReservedBits();
  FetchReports();
  WhileDelivering();
  InUserMode();
  if ((Cpuid(0x8000'000a).edx >> 17 & 1) != 0) ExecuteTrap();
  TestExtensions();
  if (const uint64_t count = NumberOf(*info, "switches", 0); count != 0) Switches(count);
  if (const uint64_t count = NumberOf(*info, "faults", 0); count != 0) Faults(count);
  if (const uint64_t count = NumberOf(*info, "loop", 0); count != 0) Loop(count, false);
  if (const uint64_t count = NumberOf(*info, "guest_loop", 0); count != 0) Loop(count, true);
  const bool plain = HasWord(*info, "stay-plain");
  if (plain || HasWord(*info, "stay")) Stay(!plain);
  Print(wrong ? "something is wrong\n" : "all is well\n");
  Exit(wrong ? 1 : 0);
}
