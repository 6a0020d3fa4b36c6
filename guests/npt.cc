// A hypervisor for AMD processors in miniature: runs a guest of a few instructions with nested
// paging, provokes every kind of nested page fault, and checks exit code, EXITINFO1 and EXITINFO2
// of each, and A and D in the nested tables. Exits with status 1 if all went well, 3 if not.
// `switches=N` on the command line times as many VMRUNs, each with the #VMEXIT that ends it. With
// `stay` the guest then stays alive, to be looked at: its 2005000h is 2004000h of the hypervisor's;
// with `stay-plain` as well, but without nested paging.
//
// Physical memory, in MiB: image at 1, nested tables 4 to 6, the guest's tables 6 to 8, control
// block and save area at 8, the probed pages 32 to 34. Needs 48 MiB.
#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"
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
)");
extern "C" const char guest_read[], guest_write[], guest_fetch[], guest_call[], guest_stay[];

namespace guest {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kMemory = 48 * kMiB;
constexpr uint64_t kControlBlock = 8 * kMiB, kSaveArea = 8 * kMiB + 0x1000;
constexpr uint64_t kProbed = 32 * kMiB + 0x5000;
constexpr uint64_t kGlobal = 1u << 8;  // reserved in the upper tables of AMD's processors

constexpr uint64_t kEferSvme = 1u << 12;
constexpr uint64_t kExitPageFault = 0x4e, kExitVmmcall = 0x81, kExitNested = 0x400;

PageTables* nested;   // what the hypervisor gives the guest as its memory
PageTables* own;      // the guest's own
uint64_t guest_root;  // its CR3
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
  SetSegment(0x410, 0xa9b);  // CS, 64 bits
  SetSegment(0x420, 0xc93);  // SS
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
  asm volatile("clgi; vmrun; stgi" : : "a"(kControlBlock), "D"(address) : "memory");
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

// The guest runs in supervisor mode: what is a user's traps its fetches, and so its code must not
// be. [amd/vol2] "Guest Mode Execute Trap"
void ExecuteTrap() {
  const uint64_t code = reinterpret_cast<uint64_t>(guest_fetch) & ~(2 * kMiB - 1);
  const Changed supervisor(*nested, code, 2, 0, kUser);
  Expect("trap: fetch from a user's page", guest_fetch, kProbed, kExitNested, 0x1'0000'0011,
         kProbed, true);
  Expect("trap: read of a user's page", guest_read, kProbed, kExitVmmcall, 0, 0, true);
  const Changed changed(*nested, kProbed, 1, 0, kUser);
  Expect("trap: fetch from a supervisor's page", guest_fetch, kProbed, kExitVmmcall, 0, 0, true);
  Expect("trap: write to a supervisor's page", guest_write, kProbed + 8, kExitVmmcall, 0, 0, true);
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
  if ((Cpuid(0x8000'000a).edx >> 17 & 1) != 0) ExecuteTrap();
  if (const uint64_t count = NumberOf(*info, "switches", 0); count != 0) Switches(count);
  const bool plain = HasWord(*info, "stay-plain");
  if (plain || HasWord(*info, "stay")) Stay(!plain);
  Print(wrong ? "something is wrong\n" : "all is well\n");
  Exit(wrong ? 1 : 0);
}
