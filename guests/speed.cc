// Work to be timed from outside: each phase prints `begin NAME COUNT` before and `end NAME` after.
// Counts come from the command line (`a=1000000 d=0`; 0 skips a phase), then it exits with
// status 1.
//
//   a  iterations of six instructions with a load and a store over 1 MiB, in ring 0
//   u  the same in ring 3
//   d  pages of fresh tables: in rounds of 64 MiB, build 4 KiB tables, load CR3, touch every page
//   c  pairs of INVLPG and a load of the page, over 512 pages
//   n  the loads of c alone
//   e  exceptions: UD2, a handler of one instruction, IRETQ
//
// Physical memory, in MiB: image at 1, tables 4 to 8, buffer 16, pages 32 to 96. Needs 96 MiB.
#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/page_tables.h"
#include "guests/support/processor.h"
#include "guests/support/traps.h"

extern "C" const char speed_user_loop[];
extern "C" uint64_t speed_call(uint64_t buffer, uint64_t iterations);
extern "C" void speed_exceptions(uint64_t iterations);

namespace guest {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kMemoryNeeded = 96 * kMiB;
// Tables are built in one of two places while the processor uses those in the other.
constexpr uint64_t kTables[] = {4 * kMiB, 6 * kMiB};
constexpr uint64_t kTablesBytes = 2 * kMiB;
constexpr uint64_t kBuffer = 16 * kMiB;
constexpr uint64_t kPages = 32 * kMiB;
constexpr uint64_t kPagesPerRound = 64 * kMiB / 4096;
constexpr uint64_t kWindow = 0x10'0000'0000;
constexpr uint64_t kWindowPages = 512;

uint64_t* TableAt(uint64_t physical) { return reinterpret_cast<uint64_t*>(physical); }

inline void Touch(uint64_t address) {
  static_cast<void>(*reinterpret_cast<volatile uint64_t*>(address));
}

void MapKernel(PageTables& tables) {
  for (uint64_t at = 0; at < kMemoryNeeded; at += 2 * kMiB) {
    tables.Map(at, at, PageSize::k2M, kWritable | kUser);
  }
}

template <typename Work>
void Phase(const char* name, uint64_t count, Work work) {
  if (count == 0) return;
  Print("begin ", name, " ", count, "\n");
  work(count);
  Print("end ", name, "\n");
}

void BuildAndTouch(uint64_t pages) {
  static unsigned place = 0;
  for (uint64_t done = 0; done < pages; done += kPagesPerRound) {
    place ^= 1;
    PageTables tables(kTables[place], kTables[place] + kTablesBytes);
    MapKernel(tables);
    for (uint64_t i = 0; i < kPagesPerRound; i += 512) {
      // One call makes the tables down to the last; the rest of that is filled in a row.
      tables.Map(kWindow + i * 4096, kPages + i * 4096, PageSize::k4K, kWritable);
      uint64_t* table = TableAt(tables.Entry(kWindow + i * 4096, 2) & kAddressMask);
      for (uint64_t j = 0; j < 512; ++j)
        table[j] = (kPages + (i + j) * 4096) | kWritable | kPresent;
    }
    LoadCr3(tables.root());
    for (uint64_t i = 0; i < kPagesPerRound; ++i) Touch(kWindow + i * 4096);
  }
}

void InvalidateAndLoad(uint64_t pairs) {
  for (uint64_t i = 0; i < pairs; ++i) {
    const uint64_t page = kWindow + i % kWindowPages * 4096;
    InvalidatePage(page);
    Touch(page);
  }
}

void Load(uint64_t loads) {
  for (uint64_t i = 0; i < loads; ++i) Touch(kWindow + i % kWindowPages * 4096);
}

void Run(const MultibootInfo& info) {
  InitConsole();
  InitTraps();
  if (MemoryEnd(info) < kMemoryNeeded) {
    Print("memory ends at ", Hex{MemoryEnd(info)}, ", ", kMemoryNeeded / kMiB, " MiB are needed\n");
    Exit(1);
  }
  PageTables tables(kTables[0], kTables[0] + kTablesBytes);
  MapKernel(tables);
  LoadCr3(tables.root());
  const auto user_loop = reinterpret_cast<uint64_t>(speed_user_loop);
  Phase("a", NumberOf(info, "a", 100'000'000), [](uint64_t n) { speed_call(kBuffer, n); });
  Phase("u", NumberOf(info, "u", 100'000'000), [=](uint64_t n) { RunUser(user_loop, kBuffer, n); });
  // The tables of the last round stay loaded for the phases after it.
  const uint64_t pages = NumberOf(info, "d", 20 * kPagesPerRound);
  BuildAndTouch(1);
  Phase("d", pages, BuildAndTouch);
  Phase("c", NumberOf(info, "c", 1'000'000), InvalidateAndLoad);
  Phase("n", NumberOf(info, "n", 10'000'000), Load);
  Phase("e", NumberOf(info, "e", 1'000'000), speed_exceptions);
  Exit(0);
}

}  // namespace
}  // namespace guest

extern "C" void GuestMain(const guest::MultibootInfo* info) { guest::Run(*info); }
