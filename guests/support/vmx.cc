#include "guests/support/vmx.h"

#include "guests/support/console.h"
#include "guests/support/processor.h"
#include "guests/support/selectors.h"

// `ept_enter` returns behind a VM exit, or nonzero if there is no VM entry.
asm(R"(
        .globl guest_read, guest_write, guest_fetch, ept_enter
guest_read:
        mov (%rdi), %rax
        vmcall
guest_write:
        mov %rax, (%rdi)
        vmcall
guest_fetch:
        jmp *%rdi
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
extern "C" int ept_enter(uint64_t address, int resumes);

namespace guest {
namespace {

constexpr uint64_t kRegions = 8 * kMiB, kRegionsOfOne = 0x2000;
constexpr uint64_t kEptRoot = 4 * kMiB, kEptRoot5 = 4 * kMiB + 0x1000;

uint64_t ept_next = 4 * kMiB + 0x2000;
PageTables* own;
bool launched[2] = {};  // by processor

unsigned ThisProcessor() { return Cpuid(1).ebx >> 24 & 1; }

void BuildTables() {
  reinterpret_cast<uint64_t*>(kEptRoot5)[0] = kEptRoot | kEptAll;
  for (uint64_t at = 0; at < kVmxMemory; at += 2 * kMiB) {
    own->Map(at, at, PageSize::k2M, kWritable);
    const bool small = at == 6 * kMiB;
    for (uint64_t page = at; small && page < at + 2 * kMiB; page += 4096) {
      EptEntry(page, 1) = page | kEptAll | kWriteBack;
    }
    if (!small) EptEntry(at, 2) = at | kEptAll | kWriteBack | kPageSize;
  }
}

uint64_t Required(uint32_t msr) { return ReadMsr(msr) & 0xffff'ffff; }

void Describe() {
  VmWrite(0x4000, Required(0x48d));
  VmWrite(kPrimaryControls, Required(0x48e) | uint64_t{1} << 31);
  VmWrite(0x400c, Required(0x48f) | 1u << 9);
  VmWrite(kEntryControls, Required(0x490) | 1u << 9);
  VmWrite(kExceptionBitmap, 0xffff'ffff);  // every exception
  VmWrite(kSecondaryControls, kSecondaryEpt | (HasSplitExecute() ? kSecondarySplit : 0));
  VmWrite(0x2800, ~uint64_t{0});
  for (uint64_t host = 0; host <= 0x400; host += 0x400) {
    VmWrite(kGuestCr0 + host, ReadCr0());
    VmWrite(kGuestCr4 + host, ReadCr4());
  }
  VmWrite(kGuestCr3, own->root());
  uint64_t cr3;
  asm volatile("mov %%cr3, %0" : "=r"(cr3));
  VmWrite(0x6c02, cr3);
  struct [[gnu::packed]] {
    uint16_t limit;
    uint64_t base;
  } table;
  asm volatile("sgdt %0" : "=m"(table));
  VmWrite(0x6c0c, table.base);
  asm volatile("sidt %0" : "=m"(table));
  VmWrite(0x6c0e, table.base);
  VmWrite(0x0c02, KERNEL_CODE);
  VmWrite(0x0c0c, TASK_STATE);
  for (uint64_t access = 0x4814; access <= 0x4820; access += 2) VmWrite(access, 0x1'0000);
  VmWrite(0x0802, KERNEL_CODE);
  VmWrite(0x4802, 0xffff'ffff);
  VmWrite(0x4816, 0xa09b);
  VmWrite(0x480e, 0x67);
  VmWrite(0x4822, 0x8b);
  VmWrite(0x681a, 0x400);
  VmWrite(0x6820, 2);
}

}  // namespace

void VmWrite(uint64_t field, uint64_t value) {
  asm volatile("vmwrite %0, %1" ::"r"(value), "r"(field) : "cc", "memory");
}

uint64_t VmRead(uint64_t field) {
  uint64_t value;
  asm volatile("vmread %1, %0" : "=r"(value) : "r"(field) : "cc");
  return value;
}

bool HasSplitExecute() { return (ReadMsr(0x48b) >> 32 & kSecondarySplit) != 0; }

void SplitExecute(bool on) {
  const uint64_t others = VmRead(kSecondaryControls) & ~kSecondarySplit;
  VmWrite(kSecondaryControls, others | (on ? kSecondarySplit : 0));
}

uint64_t& EptEntry(uint64_t gpa, int level) {
  uint64_t table = kEptRoot5;
  for (int at = 5;; --at) {
    uint64_t& entry = reinterpret_cast<uint64_t*>(table)[gpa >> (3 + 9 * at) & 511];
    if (at == level) return entry;
    if (entry == 0) {
      entry = ept_next | kEptAll;
      ept_next += 0x1000;
    }
    table = entry & kAddressMask;
  }
}

uint64_t EptRoot() { return kEptRoot; }

void SetEptPointer(bool accessed_dirty, int levels) {
  const uint64_t root = levels == 5 ? kEptRoot5 : kEptRoot;
  VmWrite(kEptPointer,
          root | static_cast<uint64_t>(levels - 1) << 3 | 6 | (accessed_dirty ? 1u << 6 : 0));
}

void ForgetEpt() {
  struct {
    uint64_t pointer, reserved;
  } all = {};
  asm volatile("invept %0, %1" ::"m"(all), "r"(uint64_t{2}) : "cc", "memory");
}

void StartVmx(PageTables& tables) {
  own = &tables;
  BuildTables();
  StartVmxOnSecond();
}

void StartVmxOnSecond() {
  WriteCr0(ReadCr0() | 1u << 5);
  WriteCr4(ReadCr4() | 1u << 13);
  const uint64_t vmxon = kRegions + ThisProcessor() * kRegionsOfOne, vmcs = vmxon + 0x1000;
  *reinterpret_cast<uint32_t*>(vmxon) = *reinterpret_cast<uint32_t*>(vmcs) =
      static_cast<uint32_t>(ReadMsr(0x480));
  asm volatile("vmxon %0; vmclear %1; vmptrld %1" ::"m"(vmxon), "m"(vmcs) : "cc", "memory");
  Describe();
  SetEptPointer(true);
}

uint64_t RunVmx(const void* code, uint64_t address, bool forgets) {
  if (forgets) ForgetEpt();
  VmWrite(0x681e, reinterpret_cast<uint64_t>(code));
  if (ept_enter(address, launched[ThisProcessor()]) != 0) {
    Print("no VM entry, error ", Hex{VmRead(0x4400), 2}, "\n");
    Exit(1);
  }
  launched[ThisProcessor()] = true;
  return VmRead(kExitReason);
}

}  // namespace guest
