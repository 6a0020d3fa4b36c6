// A tour of 4-level paging: builds tables with every page size, writes and verifies patterns
// through several aliases, provokes page faults and checks each error code. Then it stays alive,
// remapping a window again and again, so that there is something to look at from outside. With
// `once` on its command line it exits after the tour instead: status 1 if all went well, 3 if not.
//
// Physical memory, in MiB: image at 1, tables 4 to 8, data 32 to 48. Needs 48 MiB.
#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"
#include "guests/support/traps.h"

namespace guest {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

constexpr uint64_t kTables = 4 * kMiB, kTablesEnd = 8 * kMiB;
constexpr uint64_t kData = 32 * kMiB;
constexpr uint64_t kDataPages = 4096;  // 16 MiB
constexpr uint64_t kMemoryNeeded = 48 * kMiB;

// Linear addresses of the windows on the data, one for each page size.
constexpr uint64_t kSmall = 0x10'0000'0000;
constexpr uint64_t kMedium = 0x20'0000'0000;
constexpr uint64_t kLarge = 0x30'0000'0000;
// Linear addresses of pages that refuse something.
constexpr uint64_t kHole = 0x40'0000'0000;
constexpr uint64_t kReadOnly = 0x40'0000'2000;
constexpr uint64_t kNoFetch = 0x40'0000'3000;
constexpr uint64_t kSupervisor = 0x40'0000'4000;
constexpr uint64_t kEdge = 0x40'0000'6000;  // the page behind it is not mapped
constexpr uint64_t kReservedBit = 0x40'0020'0000;
constexpr uint64_t kDemand = 0x50'0000'0000;
constexpr uint64_t kDemandPages = 64;
// Ring 3: code, a page of data that holds a RET, and the top of a stack.
constexpr uint64_t kUserCode = 0x60'0000'0000;
constexpr uint64_t kUserData = 0x60'0000'1000;
constexpr uint64_t kUserReadOnly = 0x60'0000'2000;
constexpr uint64_t kUserNoFetch = 0x60'0000'3000;
constexpr uint64_t kUserStackEnd = 0x60'0000'5000;
// The window that moves while the guest stays alive.
constexpr uint64_t kMoving = 0x70'0000'0000;

constexpr uint64_t kAll = kWritable | kUser;
constexpr uint8_t kRet = 0xc3;

// #PF error code. [intel/vol3] "Page-Fault Exceptions"
constexpr uint64_t kCodePresent = 1, kCodeWrite = 2, kCodeUser = 4, kCodeReserved = 8,
                   kCodeFetch = 16;

PageTables* tables;
unsigned wrong_count;
uint64_t demand_faults;

uint64_t& At(uint64_t linear) { return *reinterpret_cast<uint64_t*>(linear); }

void Check(bool ok) {
  Print(ok ? " ok\n" : " WRONG\n");
  if (!ok) ++wrong_count;
}

// The data page that page `i` of the small window maps: a permutation, so that neighbours are
// apart.
constexpr uint64_t DataPage(uint64_t i) { return kData + (i * 1237 % kDataPages) * 4096; }

void PrintMapping(const char* what, uint64_t linear, uint64_t count, const char* physical) {
  Print("  ", Padded{what, 6}, Hex{linear, 12}, "  ", count,
        count == 1 ? " page on " : " pages on ", physical, "\n");
}

void BuildTables(const Features& features) {
  Print("tables\n");
  // The kernel, identity-mapped by 2 MiB pages up to the end of the data.
  for (uint64_t at = 0; at < kMemoryNeeded; at += 2 * kMiB) {
    tables->Map(at, at, PageSize::k2M, kWritable);
  }
  PrintMapping("2 MiB", 0, kMemoryNeeded / (2 * kMiB), "themselves (the kernel)");
  for (uint64_t i = 0; i < kDataPages; ++i) {
    tables->Map(kSmall + i * 4096, DataPage(i), PageSize::k4K, kAll);
  }
  PrintMapping("4 KiB", kSmall, kDataPages, "the data, shuffled");
  for (uint64_t i = 0; i < 8; ++i) {
    tables->Map(kMedium + i * 2 * kMiB, kData + i * 2 * kMiB, PageSize::k2M, kAll);
  }
  PrintMapping("2 MiB", kMedium, 8, "the data, in order");
  if (features.gib_pages) {
    tables->Map(kLarge, 0, PageSize::k1G, kAll);
    PrintMapping("1 GiB", kLarge, 1, "all memory");
  } else {
    Print("  1 GiB pages are not enumerated\n");
  }
  LoadCr3(tables->root());
  Print("  CR3 = ", Hex{tables->root()}, ", ", tables->frames_used(), " tables\n");
}

// Counts the words of the data, seen in the small window's order at `base`, that hold their
// pattern.
uint64_t CountRight(uint64_t base) {
  uint64_t right = 0;
  for (uint64_t i = 0; i < kDataPages; ++i) {
    if (At(base + DataPage(i)) == (kSmall + i * 4096) * 3) ++right;
  }
  return right;
}

void TouchPatterns(const Features& features) {
  Print("patterns\n");
  for (uint64_t i = 0; i < kDataPages; ++i) At(kSmall + i * 4096) = (kSmall + i * 4096) * 3;
  Print("  written through 4 KiB pages, read through 2 MiB:");
  Check(CountRight(kMedium - kData) == kDataPages);
  if (features.gib_pages) {
    Print("  read through the 1 GiB page:");
    Check(CountRight(kLarge) == kDataPages);
    for (uint64_t i = 0; i < kDataPages; ++i) At(kLarge + kData + i * 4096 + 8) = ~i;
    Print("  written through the 1 GiB page, read through 2 MiB:");
    uint64_t right = 0;
    for (uint64_t i = 0; i < kDataPages; ++i) right += At(kMedium + i * 4096 + 8) == ~i;
    Check(right == kDataPages);
  }
  // Unaligned words across page boundaries: two pages that are not neighbours in memory.
  uint64_t right = 0;
  for (uint64_t i = 1; i < kDataPages; ++i) {
    const uint64_t boundary = kSmall + i * 4096;
    At(boundary - 3) = boundary;
    right += At(boundary - 3) == boundary &&
             *reinterpret_cast<uint8_t*>(DataPage(i - 1) + 4093) == (boundary & 0xff);
  }
  Print("  words across ", kDataPages - 1, " page boundaries:");
  Check(right == kDataPages - 1);
}

void CheckAccessedDirty() {
  Print("accessed and dirty\n");
  uint64_t& leaf = tables->Entry(kSmall, 1);
  const auto clear = [&leaf] {
    leaf &= ~(kAccessed | kDirty);
    InvalidatePage(kSmall);
  };
  const auto bits = [&leaf] { return leaf & (kAccessed | kDirty); };
  clear();
  Print("  untouched: neither");
  Check(bits() == 0);
  static_cast<void>(*reinterpret_cast<volatile uint64_t*>(kSmall));
  Print("  read: A");
  Check(bits() == kAccessed);
  clear();
  *reinterpret_cast<volatile uint64_t*>(kSmall) = 1;
  Print("  written: A and D");
  Check(bits() == (kAccessed | kDirty));
  Print("  every entry above: A");
  Check((tables->Entry(kSmall, 2) & tables->Entry(kSmall, 3) & tables->Entry(kSmall, 4) &
         kAccessed) != 0);
}

void PrintOutcome(const char* what, const ProbeResult& result) {
  Print("  ", Padded{what, 44});
  if (result.faulted) {
    Print("#PF ", Hex{result.error_code, 2}, " at ", Hex{result.address, 12});
  } else {
    Print("no fault");
  }
}

void ExpectFault(const char* what, const ProbeResult& result, uint64_t code, uint64_t address) {
  PrintOutcome(what, result);
  Check(result.faulted && result.error_code == code && result.address == address);
}

void ExpectNoFault(const char* what, const ProbeResult& result) {
  PrintOutcome(what, result);
  Check(!result.faulted);
}

bool MapOnDemand(uint64_t address, uint64_t error_code) {
  if ((error_code & kCodePresent) != 0) return false;
  if (address < kDemand || address >= kDemand + kDemandPages * 4096) return false;
  const uint64_t page = address & ~uint64_t{4095};
  tables->Map(page, kData + (page - kDemand), PageSize::k4K, kWritable);
  ++demand_faults;
  return true;
}

void TakeSupervisorFaults(const Features& features) {
  using enum ProbeKind;
  Print("faults of ring 0\n");
  tables->Map(kReadOnly, kData, PageSize::k4K, 0);
  tables->Map(kEdge, kData, PageSize::k4K, kWritable);
  // An address bit inside the page: reserved however many address bits the processor has.
  tables->Map(kReservedBit, kData | uint64_t{1} << 13, PageSize::k2M, kWritable);
  ExpectFault("read, not present", Probe(kRead, kHole), 0, kHole);
  ExpectFault("write, not present", Probe(kWrite, kHole + 8), kCodeWrite, kHole + 8);
  ExpectFault("read across the end of a mapped page", Probe(kRead, kEdge + 4092), 0, kEdge + 4096);
  ExpectFault("write, reserved bit set", Probe(kWrite, kReservedBit),
              kCodePresent | kCodeWrite | kCodeReserved, kReservedBit);
  ExpectNoFault("read, read-only page", Probe(kRead, kReadOnly));
  ExpectFault("write, read-only page", Probe(kWrite, kReadOnly), kCodePresent | kCodeWrite,
              kReadOnly);
  const uint64_t cr0 = ReadCr0();
  WriteCr0(cr0 & ~kCr0Wp);
  ExpectNoFault("write, read-only page, CR0.WP = 0", Probe(kWrite, kReadOnly));
  WriteCr0(cr0);
  ExpectFault("write again, CR0.WP = 1", Probe(kWrite, kReadOnly), kCodePresent | kCodeWrite,
              kReadOnly);
  if (features.no_execute) {
    tables->Map(kNoFetch, kData, PageSize::k4K, kWritable | kNoExecute);
    At(kData) = kRet;
    ExpectFault("fetch, no-execute page", Probe(kFetch, kNoFetch), kCodePresent | kCodeFetch,
                kNoFetch);
    tables->Entry(kNoFetch, 1) &= ~kNoExecute;
    InvalidatePage(kNoFetch);
    ExpectNoFault("fetch, once the bit is cleared", Probe(kFetch, kNoFetch));
  }
  SetPageFaultHandler(MapOnDemand);
  uint64_t right = 0;
  for (uint64_t i = 0; i < kDemandPages; ++i) At(kDemand + i * 4096 + 16) = i;
  for (uint64_t i = 0; i < kDemandPages; ++i) right += At(kDemand + i * 4096 + 16) == i;
  SetPageFaultHandler(nullptr);
  Print("  ", demand_faults, " pages mapped on demand:");
  Check(demand_faults == kDemandPages && right == kDemandPages);
}

void MapUserPages() {
  const uint64_t code = kData + 4096, data = kData + 2 * 4096, stack = kData + 3 * 4096;
  const auto bytes = static_cast<uint64_t>(user_probes_end - user_read);
  for (uint64_t i = 0; i < bytes; ++i) {
    *reinterpret_cast<char*>(code + i) = user_read[i];
  }
  At(data) = kRet;
  tables->Map(kUserCode, code, PageSize::k4K, kUser);
  tables->Map(kUserData, data, PageSize::k4K, kAll);
  tables->Map(kUserReadOnly, data, PageSize::k4K, kUser);
  tables->Map(kUserNoFetch, data, PageSize::k4K, kAll | kNoExecute);
  tables->Map(kUserStackEnd - 4096, stack, PageSize::k4K, kAll);
  tables->Map(kSupervisor, data, PageSize::k4K, kWritable);
}

ProbeResult ProbeAsUser(ProbeKind kind, uint64_t address) {
  const char* code = kind == ProbeKind::kRead    ? user_read
                     : kind == ProbeKind::kWrite ? user_write
                                                 : user_fetch;
  return RunUser(kUserCode + static_cast<uint64_t>(code - user_read), kUserStackEnd, address);
}

void TakeUserFaults(const Features& features) {
  using enum ProbeKind;
  constexpr uint64_t kUserPresent = kCodeUser | kCodePresent;
  const uint64_t fetch = features.no_execute ? kCodeFetch : 0;
  Print("faults of ring 3\n");
  MapUserPages();
  ExpectNoFault("read, user page", ProbeAsUser(kRead, kUserData));
  ExpectFault("read, not present", ProbeAsUser(kRead, kHole), kCodeUser, kHole);
  ExpectFault("read, supervisor page", ProbeAsUser(kRead, kSupervisor), kUserPresent, kSupervisor);
  ExpectFault("write, supervisor page", ProbeAsUser(kWrite, kSupervisor), kUserPresent | kCodeWrite,
              kSupervisor);
  ExpectFault("write, read-only user page", ProbeAsUser(kWrite, kUserReadOnly),
              kUserPresent | kCodeWrite, kUserReadOnly);
  ExpectNoFault("fetch, user page", ProbeAsUser(kFetch, kUserData));
  ExpectFault("fetch, supervisor page", ProbeAsUser(kFetch, kSupervisor), kUserPresent | fetch,
              kSupervisor);
  if (features.no_execute) {
    ExpectFault("fetch, no-execute user page", ProbeAsUser(kFetch, kUserNoFetch),
                kUserPresent | fetch, kUserNoFetch);
  }
}

// What ring 0 may not do to user pages, where the processor can refuse it.
void TakePreventionFaults(const Features& features) {
  using enum ProbeKind;
  Print("supervisor-mode prevention\n");
  const uint64_t cr4 = ReadCr4();
  ExpectNoFault("fetch of a user page, SMEP off", Probe(kFetch, kUserData));
  if (features.smep) {
    WriteCr4(cr4 | kCr4Smep);
    ExpectFault("fetch of a user page, SMEP on", Probe(kFetch, kUserData),
                kCodePresent | kCodeFetch, kUserData);
  } else {
    Print("  SMEP is not enumerated\n");
  }
  ExpectNoFault("read of a user page, SMAP off", Probe(kRead, kUserData));
  if (features.smap) {
    WriteCr4(cr4 | kCr4Smap);
    ExpectFault("read of a user page, SMAP on", Probe(kRead, kUserData), kCodePresent, kUserData);
    asm volatile("stac" ::: "memory");
    ExpectNoFault("read of a user page, SMAP on, AC set", Probe(kRead, kUserData));
    asm volatile("clac" ::: "memory");
  } else {
    Print("  SMAP is not enumerated\n");
  }
  WriteCr4(cr4);
}

void Delay() {
  for (unsigned i = 0; i < 50'000; ++i) asm volatile("");
}

// Moves a window over the data: 4 KiB pages, and every eighth time a 2 MiB page.
[[noreturn]] void StayAlive() {
  constexpr uint64_t kMovesPerBeat = 6000;
  constexpr uint64_t kMovingLarge = kMoving + 2 * kMiB;
  Print("alive: a window moves over the data, 4 KiB at ", Hex{kMoving}, ", 2 MiB at ",
        Hex{kMovingLarge}, "\n");
  for (uint64_t move = 1;; ++move) {
    const bool large = move % 8 == 0;
    const uint64_t window = large ? kMovingLarge : kMoving;
    const uint64_t to = large ? kData + (move / 8 % 8) * 2 * kMiB : DataPage(move % kDataPages);
    tables->Map(window, to, large ? PageSize::k2M : PageSize::k4K, kWritable);
    InvalidatePage(window);
    At(window + 24) = move;
    if (At(to + 24) != move) {
      Print("move ", move, " of ", Hex{window}, " to ", Hex{to}, " went astray\n");
      Exit(1);
    }
    Delay();
    if (move % kMovesPerBeat == 0) {
      Print("beat ", move / kMovesPerBeat, ": ", move, " moves, CR3 = ", Hex{tables->root()}, ", ",
            Hex{kMoving}, " -> ", Hex{tables->Entry(kMoving, 1) & kAddressMask}, "\n");
    }
  }
}

void Run(const MultibootInfo& info) {
  InitConsole();
  InitTraps();
  const uint64_t memory_end = MemoryEnd(info);
  Print("Pagesaw tour\n");
  if (memory_end < kMemoryNeeded) {
    Print("memory ends at ", Hex{memory_end}, ", ", kMemoryNeeded / kMiB, " MiB are needed\n");
    Exit(1);
  }
  const Features features = ReadFeatures();
  if (features.no_execute) WriteMsr(kMsrEfer, ReadMsr(kMsrEfer) | kEferNxe);
  PageTables own(kTables, kTablesEnd);
  tables = &own;
  BuildTables(features);
  TouchPatterns(features);
  CheckAccessedDirty();
  TakeSupervisorFaults(features);
  TakeUserFaults(features);
  TakePreventionFaults(features);
  Print("tour done, ", uint64_t{wrong_count}, " wrong\n");
  if (HasWord(info, "once")) Exit(wrong_count == 0 ? 0 : 1);
  StayAlive();
}

}  // namespace
}  // namespace guest

extern "C" void GuestMain(const guest::MultibootInfo* info) { guest::Run(*info); }
