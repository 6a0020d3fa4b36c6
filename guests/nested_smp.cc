// A hypervisor on two processors whose guests run at the same time over the same nested tables,
// EPT or NPT, and count in a page that is mapped, again and again, to another frame, read-only, and
// not at all. Once the other processor has said that it has forgotten what it had cached, nothing
// arrives by the old entry any more; and no count is lost. Exits with status 1 if all went well, 3
// if not. `rounds=N` on the command line: of changes. Needs two processors and 48 MiB.
//
// Physical memory, in MiB: the image at 1, EPT or NPT 4 to 6, the guests' tables 6 to 8, regions
// and control blocks at 8, frames for what is counted at 32.
#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"
#include "guests/support/traps.h"
#include "guests/support/vmx.h"

// Counts at RDI, and then a page behind, and so on.
asm(R"(
        .globl count_vmcall, count_vmmcall
count_vmcall:
        mov $500, %ecx
1:      lock incq (%rdi)
        incq 0x1000(%rdi)
        dec %ecx
        jnz 1b
        vmcall
count_vmmcall:
        mov $500, %ecx
1:      lock incq (%rdi)
        incq 0x1000(%rdi)
        dec %ecx
        jnz 1b
        vmmcall
)");
extern "C" const char count_vmcall[], count_vmmcall[];
extern "C" void start_second();
extern "C" [[noreturn]] void second_main();

namespace guest {
namespace {

constexpr uint64_t kFrames[] = {32 * kMiB, 32 * kMiB + 0x3000};  // of what moves
constexpr uint64_t kSteady = 32 * kMiB + 0x1000;                 // of what does not
constexpr uint64_t kGpa = uint64_t{512} << 30;                   // where the guests have them
constexpr uint64_t kLinear = uint64_t{1} << 30;

PageTables* own;
PageTables* npt;  // null: EPT

unsigned ThisProcessor() { return Cpuid(1).ebx >> 24 & 1; }

// -- SVM

constexpr uint64_t kEferSvme = 1u << 12;

template <typename T>
T& Field(uint64_t offset) {
  return *reinterpret_cast<T*>(8 * kMiB + ThisProcessor() * 0x2000 + offset);
}

void StartSvm() {
  WriteMsr(kMsrEfer, ReadMsr(kMsrEfer) | kEferSvme);
  WriteMsr(0xc001'0117, 8 * kMiB + ThisProcessor() * 0x2000 + 0x1000);
  Field<uint32_t>(0x008) = 0xffff'ffff;  // every exception
  Field<uint32_t>(0x00c) = 1u << 31;     // shutdown
  Field<uint32_t>(0x010) = 3;            // VMRUN, VMMCALL
  Field<uint32_t>(0x058) = 1;            // ASID
  Field<uint64_t>(0x090) = 1;            // nested paging
  Field<uint64_t>(0x0b0) = npt->root();
  Field<uint16_t>(0x412) = 0xa9b;  // CS, 64 bits
  Field<uint16_t>(0x422) = 0xc93;  // SS
  Field<uint64_t>(0x4d0) = ReadMsr(kMsrEfer);
  Field<uint64_t>(0x548) = ReadCr4();
  Field<uint64_t>(0x550) = own->root();
  Field<uint64_t>(0x558) = ReadCr0();
  Field<uint64_t>(0x560) = 0x400;
  Field<uint64_t>(0x568) = 0xffff'0ff0;
  Field<uint64_t>(0x570) = 2;
  Field<uint64_t>(0x668) = 0x0007'0406'0007'0406;
}

// -- either

enum class End { kDone, kNestedFault, kOther };

// One piece of counting, at `address`. `forgets`: with nothing cached.
End Count(uint64_t address, bool forgets) {
  if (npt == nullptr) {
    const uint64_t reason = RunVmx(count_vmcall, address, forgets);
    if (reason == kExitVmcall) return End::kDone;
    return reason == kExitViolation ? End::kNestedFault : End::kOther;
  }
  Field<uint8_t>(0x05c) = forgets ? 1 : 0;
  Field<uint64_t>(0x578) = reinterpret_cast<uint64_t>(count_vmmcall);
  asm volatile("clgi; vmrun; stgi"
               :
               : "a"(&Field<uint64_t>(0)), "D"(address)
               : "rcx", "cc", "memory");
  const uint64_t code = Field<uint64_t>(0x070);
  return code == 0x81 ? End::kDone : code == 0x400 ? End::kNestedFault : End::kOther;
}

uint64_t& LeafOf(uint64_t gpa) { return npt != nullptr ? npt->Entry(gpa, 1) : EptEntry(gpa, 1); }

void BuildTables() {
  if (npt != nullptr) {
    for (uint64_t at = 0; at < kVmxMemory; at += 2 * kMiB) {
      own->Map(at, at, PageSize::k2M, kWritable);
      npt->Map(at, at, PageSize::k2M, kWritable | kUser);
    }
    npt->Map(kGpa, kFrames[0], PageSize::k4K, kWritable | kUser);
    npt->Map(kGpa + 0x1000, kSteady, PageSize::k4K, kWritable | kUser);
  } else {
    EptEntry(kGpa, 1) = kFrames[0] | kEptAll | kWriteBack;
    EptEntry(kGpa + 0x1000, 1) = kSteady | kEptAll | kWriteBack;
  }
  own->Map(kLinear, kGpa, PageSize::k4K, kWritable);
  own->Map(kLinear + 0x1000, kGpa + 0x1000, PageSize::k4K, kWritable);
}

// -- what the processors say to one another

struct alignas(64) Shared {
  uint64_t value = 0;
};
Shared generation, seen, faults, stop, stopped, started, others;

uint64_t Load(const Shared& shared) { return __atomic_load_n(&shared.value, __ATOMIC_ACQUIRE); }
void Store(Shared& shared, uint64_t value) {
  __atomic_store_n(&shared.value, value, __ATOMIC_RELEASE);
}
// False if that takes for ever.
bool WaitAbove(const Shared& shared, uint64_t value) {
  for (uint64_t tries = 0; tries < 2'000'000'000; ++tries) {
    if (Load(shared) > value) return true;
    asm volatile("pause");
  }
  return false;
}

uint64_t CountedIn(uint64_t frame, unsigned processor) {
  const uint64_t& count = *reinterpret_cast<uint64_t*>(frame + 64 * processor);
  return __atomic_load_n(&count, __ATOMIC_ACQUIRE);
}

bool wrong = false;

void Check(const char* name, uint64_t round, bool ok) {
  if (ok) return;
  Print(name, ", round ", round, ": WRONG\n");
  wrong = true;
}

// Changes the entry, and waits until nobody can use what it was.
void Change(uint64_t round, uint64_t& entry, uint64_t value) {
  __atomic_store_n(&entry, value, __ATOMIC_RELEASE);
  Store(generation, Load(generation) + 1);
  Check("the other goes on", round, WaitAbove(seen, Load(generation) - 1));
}

// The other counts, and so does this one, at the same time.
void Round(uint64_t round) {
  uint64_t& entry = LeafOf(kGpa);
  const uint64_t was = entry, old_frame = was & kAddressMask;
  const unsigned kind = round % 3;
  if (kind == 0) {
    const uint64_t new_frame = old_frame == kFrames[0] ? kFrames[1] : kFrames[0];
    Change(round, entry, (was & ~kAddressMask) | new_frame);
    const uint64_t before = CountedIn(old_frame, 0) + CountedIn(old_frame, 1);
    Check("counting", round, Count(kLinear, true) == End::kDone);
    Check("nothing goes to the old frame", round,
          CountedIn(old_frame, 0) + CountedIn(old_frame, 1) == before);
    return;
  }
  const uint64_t right = kind == 1 ? uint64_t{2} : uint64_t{7};  // W; all
  Change(round, entry, was & ~right);
  const uint64_t before = CountedIn(old_frame, 0) + CountedIn(old_frame, 1);
  const uint64_t met = Load(faults);
  Check("what is refused here", round, Count(kLinear, true) == End::kNestedFault);
  Check("what is refused there", round, WaitAbove(faults, met));
  Check("nothing is counted", round, CountedIn(old_frame, 0) + CountedIn(old_frame, 1) == before);
  Change(round, entry, was);
  Check("counting again", round, Count(kLinear, true) == End::kDone);
}

}  // namespace
}  // namespace guest

void second_main() {
  using namespace guest;
  if (npt != nullptr) {
    StartSvm();
  } else {
    StartVmxOnSecond();
  }
  Store(started, 1);
  uint64_t known = 0;
  while (Load(stop) == 0) {
    const uint64_t now = Load(generation);
    const End end = Count(kLinear + 64, now != known);
    known = now;
    if (end == End::kNestedFault) Store(faults, Load(faults) + 1);
    if (end == End::kOther) Store(others, Load(others) + 1);
    Store(seen, now);
  }
  Store(stopped, 1);
  for (;;) asm volatile("cli; hlt");
}

extern "C" void GuestMain(const guest::MultibootInfo* info) {
  using namespace guest;
  InitConsole();
  InitTraps();
  PageTables nested_tables(4 * kMiB, 6 * kMiB), own_tables(6 * kMiB, 8 * kMiB);
  own = &own_tables;
  if ((Cpuid(1).ecx >> 5 & 1) != 0) {
    StartVmx(own_tables);
  } else {
    npt = &nested_tables;
  }
  BuildTables();
  if (npt != nullptr) StartSvm();
  start_second();
  Check("the other starts", 0, WaitAbove(started, 0));
  const uint64_t rounds = NumberOf(*info, "rounds", 300);
  for (uint64_t round = 0; round < rounds && !wrong; ++round) Round(round);
  Store(stop, 1);
  Check("the other stops", rounds, WaitAbove(stopped, 0));
  Check("other exits", rounds, Load(others) == 0);
  for (unsigned processor = 0; processor < 2; ++processor) {
    Check("no count is lost", rounds,
          CountedIn(kFrames[0], processor) + CountedIn(kFrames[1], processor) ==
              CountedIn(kSteady, processor));
    Print("counted ", CountedIn(kSteady, processor), "\n");
  }
  Print("faults ", Load(faults), "\n", wrong ? "something is wrong\n" : "all is well\n");
  Exit(wrong ? 1 : 0);
}
