// What SVM has besides the world switch and nested paging, as the hypervisor of npt.cc sees it.
#include "guests/npt.h"

#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"

// Instructions that tell their operands, and others.
asm(R"(
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
)");
extern "C" const char guest_load_cr3[], guest_read_dr7[], guest_int[], guest_invlpg[],
    guest_invlpga[], guest_save[], guest_load[], guest_branch[], guest_branch_end[], guest_tsc[];

namespace guest {
namespace {

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
  SetHandler(kTable, 2, guest_call);
  const auto handler = reinterpret_cast<uint64_t>(guest_call);
  const auto enter = [&](uint32_t word) {
    Describe(guest_read, false);
    Field<uint32_t>(0x00c) |= 1u << 1;  // NMI
    Field<uint32_t>(0x060) = word;
    GiveTables(kTable, kStackTop);
    Enter(kProbed);
    return Field<uint32_t>(0x060);
  };
  Check("virtual NMI",
        enter(kEnabled | kPending) == (kEnabled | kMasked) && Field<uint64_t>(0x578) == handler);
  Check("  waits where it is masked",
        enter(kEnabled | kPending | kMasked) == (kEnabled | kPending | kMasked) &&
            Field<uint64_t>(0x578) != handler);
}

}  // namespace

void TestExtensions() {
  DecodeAssists();
  VirtualLoadAndSave();
  RecordsOfTheGuest();
  ScaledTime();
  VirtualNmi();
}

}  // namespace guest
