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
#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"
#include "guests/support/selectors.h"
#include "guests/support/traps.h"

// What the guest executes: one access at RDI, then VMMCALL.
asm(R"(
        .globl guest_read, guest_write, guest_fetch, guest_call, guest_stay
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

// Instructions that tell their operands, and others.
        .globl guest_load_cr3, guest_read_dr7, guest_int, guest_invlpg, guest_invlpga, guest_save
        .globl guest_load, guest_branch, guest_branch_end, guest_tsc
guest_load_cr3:
        mov %rdi, %cr3
guest_read_dr7:
        mov %dr7, %rdx
guest_int:
        int $0x55
guest_invlpg:
        invlpg 8(%rdi)
guest_invlpga:
        invlpga
guest_save:
        vmsave
        vmmcall
guest_load:
        vmload
        vmmcall
guest_branch:
        jmp guest_branch_end
        nop
guest_branch_end:
        vmmcall
guest_tsc:
        rdtsc
        shl $32, %rdx
        or %rdx, %rax
        vmmcall
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
extern "C" const char guest_read[], guest_write[], guest_fetch[], guest_call[], guest_stay[],
    guest_load_cr3[], guest_read_dr7[], guest_int[], guest_invlpg[], guest_invlpga[], guest_save[],
    guest_load[], guest_branch[], guest_branch_end[], guest_tsc[];

extern "C" const char guest_loop[], guest_touch[];
extern "C" volatile uint64_t guest_count, guest_base;
extern "C" void nested_loop(uint64_t iterations, uint64_t base);

namespace guest {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kMemory = 48 * kMiB;
constexpr uint64_t kControlBlock = 8 * kMiB, kSaveArea = 8 * kMiB + 0x1000;
constexpr uint64_t kProbed = 32 * kMiB + 0x5000;
constexpr uint64_t kGlobal = 1u << 8;  // reserved in the upper tables of AMD's processors

constexpr uint64_t kEferSvme = 1u << 12;
constexpr uint64_t kExitPageFault = 0x4e, kExitVmmcall = 0x81, kExitNested = 0x400;

PageTables* nested;       // what the hypervisor gives the guest as its memory
PageTables* own;          // the guest's own
uint64_t guest_root;      // its CR3
bool guest_user = false;  // it runs in user mode
bool wrong = false;

template <typename T>
T& Field(uint64_t offset) {
  return *reinterpret_cast<T*>(kControlBlock + offset);
}

// [amd/vol2] "Layout of VMCB"
void SetSegment(uint64_t offset, uint16_t attributes) {
  Field<uint16_t>(offset + 2) = attributes;
  Field<uint32_t>(offset + 4) = 0xffff'ffff;
}

void Describe(const char* code, bool execute_trap) {
  for (uint64_t at = 0; at < 4096; at += 8) Field<uint64_t>(at) = 0;
  Field<uint32_t>(0x008) = 0xffff'ffff;           // every exception
  Field<uint32_t>(0x00c) = 1u << 31;              // shutdown
  Field<uint32_t>(0x010) = 3;                     // VMRUN, VMMCALL
  Field<uint32_t>(0x058) = 1;                     // ASID
  Field<uint8_t>(0x05c) = 1;                      // forget everything
  Field<uint64_t>(0x090) = execute_trap ? 9 : 1;  // nested paging
  Field<uint64_t>(0x0b0) = nested->root();
  const uint16_t privilege = guest_user ? 3 : 0;
  SetSegment(0x410, 0xa9b | privilege << 5);  // CS, 64 bits
  SetSegment(0x420, 0xc93 | privilege << 5);  // SS
  Field<uint8_t>(0x4cb) = static_cast<uint8_t>(privilege);
  Field<uint64_t>(0x4d0) = ReadMsr(kMsrEfer) | kEferSvme;
  Field<uint64_t>(0x548) = ReadCr4();
  Field<uint64_t>(0x550) = guest_root;
  Field<uint64_t>(0x558) = ReadCr0();
  Field<uint64_t>(0x560) = 0x400;        // DR7
  Field<uint64_t>(0x568) = 0xffff'0ff0;  // DR6
  Field<uint64_t>(0x570) = 2;            // RFLAGS
  Field<uint64_t>(0x578) = reinterpret_cast<uint64_t>(code);
  Field<uint64_t>(0x668) = 0x0007'0406'0007'0406;  // PAT
}

void Enter(uint64_t address) {
  asm volatile("clgi; vmrun; stgi"
               : "+D"(address)
               : "a"(kControlBlock)
               : "rsi", "rdx", "cc", "memory");
}

void Expect(const char* name, const char* code, uint64_t address, uint64_t exit, uint64_t info1,
            uint64_t info2, bool execute_trap = false) {
  Describe(code, execute_trap);
  Enter(address);
  const uint64_t got = Field<uint64_t>(0x070), got1 = Field<uint64_t>(0x078),
                 got2 = Field<uint64_t>(0x080);
  Print(Padded{name, 40}, Hex{got, 3}, " ", Hex{got1, 9}, " ", Hex{got2, 7});
  const bool ok = got == exit && (exit == kExitVmmcall || (got1 == info1 && got2 == info2));
  Print(ok ? " ok\n" : " WRONG\n");
  wrong = wrong || !ok;
}

void Check(const char* name, bool ok) {
  Print(Padded{name, 40}, ok ? "ok\n" : "WRONG\n");
  wrong = wrong || !ok;
}

// An entry that is another while this lives.
class Changed {
 public:
  Changed(PageTables& tables, uint64_t linear, int level, uint64_t set, uint64_t clear)
      : entry_(tables.Entry(linear, level)), was_(entry_) {
    entry_ = (was_ & ~clear) | set;
  }
  ~Changed() { entry_ = was_; }

 private:
  uint64_t& entry_;
  const uint64_t was_;
};

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

// Entries that the hypervisor's processor watches, used and written by the guest's walks.
void SharedTables() {
  guest_root = nested->root();
  nested->Entry(kProbed, 1) &= ~(kAccessed | kDirty);
  Expect("nested tables as the guest's own", guest_write, kProbed + 8, kExitVmmcall, 0, 0);
  Check("  A and D", (nested->Entry(kProbed, 1) & (kAccessed | kDirty)) == (kAccessed | kDirty));
  Expect("  fetch", guest_fetch, kProbed, kExitVmmcall, 0, 0);
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

// The code of a data access that met a nested fault, as far as its page goes.
void TellsCode() {
  const Changed changed(*nested, kProbed, 1, 0, kPresent);
  Expect("read, not present, tells its code", guest_read, kProbed, kExitNested, 0x1'0000'0004,
         kProbed);
  bool same = Field<uint8_t>(0x0d0) == 15;
  for (uint64_t i = 0; i < 15; ++i) {
    same = same && Field<char>(0x0d1 + i) == guest_read[i];
  }
  Check("  15 bytes of it", same);
  Expect("fetch, not present, tells none", guest_fetch, kProbed, kExitNested, 0x1'0000'0014,
         kProbed);
  Check("  no bytes", Field<uint8_t>(0x0d0) == 0);
}

// One instruction that is intercepted by `bit` of the word at `offset`, and its operand.
void ExpectOperand(const char* name, const char* code, uint64_t offset, unsigned bit, uint64_t exit,
                   uint64_t info1) {
  Describe(code, false);
  Field<uint32_t>(offset) |= 1u << bit;
  Field<uint64_t>(0x5f8) = kProbed;  // RAX
  Enter(kProbed);
  const bool ok = Field<uint64_t>(0x070) == exit && Field<uint64_t>(0x078) == info1;
  Print(Padded{name, 40}, Hex{Field<uint64_t>(0x070), 3}, " ", Hex{Field<uint64_t>(0x078), 9});
  Print(ok ? " ok\n" : " WRONG\n");
  wrong = wrong || !ok;
}

void DecodeAssists() {
  TellsCode();
  ExpectOperand("MOV to CR3", guest_load_cr3, 0x000, 16 + 3, 0x13, uint64_t{1} << 63 | 7);
  ExpectOperand("MOV from DR7", guest_read_dr7, 0x004, 7, 0x27, 2);
  ExpectOperand("INT n", guest_int, 0x00c, 21, 0x75, 0x55);
  ExpectOperand("INVLPG", guest_invlpg, 0x00c, 25, 0x79, kProbed + 8);
  ExpectOperand("INVLPGA", guest_invlpga, 0x00c, 26, 0x7a, kProbed);
}

// The guest's physical address of its block leads elsewhere than the hypervisor's.
void VirtualLoadAndSave() {
  constexpr uint64_t kStar = 0x600, kMoved = 0x2000;
  static_assert((kProbed & kMoved) == 0);
  const Changed moved(*nested, kProbed, 1, kMoved, 0);
  const uint64_t to = kProbed | kMoved;
  uint64_t& saved = *reinterpret_cast<uint64_t*>(to + kStar);
  saved = 1;
  Describe(guest_save, false);
  Field<uint64_t>(0x0b8) = 2;
  Field<uint64_t>(0x5f8) = kProbed;
  WriteMsr(0xc000'0081, 0x1234'0000'0000);
  Enter(0);
  Check("VMSAVE in the guest's own memory",
        Field<uint64_t>(0x070) == kExitVmmcall && saved == 0x1234'0000'0000);
  saved = 0x5678'0000'0000;
  Describe(guest_load, false);
  Field<uint64_t>(0x0b8) = 2;
  Field<uint64_t>(0x5f8) = kProbed;
  Enter(0);
  Check("VMLOAD from there", ReadMsr(0xc000'0081) == 0x5678'0000'0000);
  const Changed changed(*nested, kProbed, 1, 0, kWritable);
  Describe(guest_save, false);
  Field<uint64_t>(0x0b8) = 2;
  Field<uint64_t>(0x5f8) = kProbed;
  Enter(0);
  Check("VMSAVE to a read-only page", Field<uint64_t>(0x070) == kExitNested &&
                                          Field<uint64_t>(0x078) == 0x1'0000'0007 &&
                                          Field<uint64_t>(0x080) == kProbed);
}

void RecordsOfTheGuest() {
  constexpr uint32_t kDebugctl = 0x1d9;
  Describe(guest_branch, false);
  Field<uint64_t>(0x0b8) = 1;
  Field<uint64_t>(0x670) = 1;
  Enter(0);
  Check("records of the guest's branches",
        Field<uint64_t>(0x678) == reinterpret_cast<uint64_t>(guest_branch) &&
            Field<uint64_t>(0x680) == reinterpret_cast<uint64_t>(guest_branch_end));
  Check("  and not of the hypervisor's", ReadMsr(kDebugctl) == 0);
}

void ScaledTime() {
  constexpr uint32_t kRatio = 0xc000'0104;
  constexpr uint64_t kOffset = uint64_t{1} << 60;
  Describe(guest_tsc, false);
  Field<uint64_t>(0x050) = kOffset;
  WriteMsr(kRatio, uint64_t{1} << 33);
  const uint64_t before = ReadTsc();
  Enter(0);
  const uint64_t after = ReadTsc(), inside = Field<uint64_t>(0x5f8) - kOffset;
  WriteMsr(kRatio, uint64_t{1} << 32);
  Check("twice the time and an offset", inside >= 2 * before && inside <= 2 * after);
}

// Delivered through a table of the guest's own, to an instruction that leaves.
void VirtualNmi() {
  constexpr uint64_t kTable = 8 * kMiB + 0x2000, kStackTop = 8 * kMiB + 0x4000;
  constexpr uint32_t kPending = 1u << 11, kMasked = 1u << 12, kEnabled = 1u << 26;
  const auto handler = reinterpret_cast<uint64_t>(guest_call);
  auto* const gate = reinterpret_cast<uint64_t*>(kTable + 2 * 16);
  gate[0] = (handler & 0xffff) | uint64_t{KERNEL_CODE} << 16 | uint64_t{0x8e00} << 32 |
            (handler >> 16 & 0xffff) << 48;
  gate[1] = handler >> 32;
  struct [[gnu::packed]] {
    uint16_t limit;
    uint64_t base;
  } gdt;
  asm("sgdt %0" : "=m"(gdt));
  const auto enter = [&](uint32_t word) {
    Describe(guest_read, false);
    Field<uint32_t>(0x00c) |= 1u << 1;  // NMI
    Field<uint32_t>(0x060) = word;
    Field<uint32_t>(0x464) = gdt.limit;
    Field<uint64_t>(0x468) = gdt.base;
    Field<uint32_t>(0x484) = 3 * 16 - 1;
    Field<uint64_t>(0x488) = kTable;
    Field<uint64_t>(0x5d8) = kStackTop;
    Enter(kProbed);
    return Field<uint32_t>(0x060);
  };
  Check("virtual NMI",
        enter(kEnabled | kPending) == (kEnabled | kMasked) && Field<uint64_t>(0x578) == handler);
  Check("  waits where it is masked",
        enter(kEnabled | kPending | kMasked) == (kEnabled | kPending | kMasked) &&
            Field<uint64_t>(0x578) != handler);
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
  DecodeAssists();
  VirtualLoadAndSave();
  RecordsOfTheGuest();
  ScaledTime();
  VirtualNmi();
  if (const uint64_t count = NumberOf(*info, "switches", 0); count != 0) Switches(count);
  if (const uint64_t count = NumberOf(*info, "faults", 0); count != 0) Faults(count);
  if (const uint64_t count = NumberOf(*info, "loop", 0); count != 0) Loop(count, false);
  if (const uint64_t count = NumberOf(*info, "guest_loop", 0); count != 0) Loop(count, true);
  const bool plain = HasWord(*info, "stay-plain");
  if (plain || HasWord(*info, "stay")) Stay(!plain);
  Print(wrong ? "something is wrong\n" : "all is well\n");
  Exit(wrong ? 1 : 0);
}
