// How much faster two processors are than one: the loop of speed.cc on the first alone, then on
// both at once, each over a buffer of its own, again and again. Each round prints `round SINGLE_NS
// BOTH_NS`, the time for the same number of iterations each. Command line: `iterations=N rounds=N`.
// Exits with status 1. Needs two processors and 64 MiB.
#include <stdint.h>

#include "guests/support/console.h"
#include "guests/support/multiboot.h"
#include "guests/support/processor.h"

extern "C" uint64_t speed_call(uint64_t buffer, uint64_t iterations);
extern "C" void start_second();
extern "C" [[noreturn]] void second_main();

namespace guest {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kFirstBuffer = 16 * kMiB, kSecondBuffer = 32 * kMiB;

// What the second processor is to do, and what it has done.
struct alignas(64) Counter {
  uint64_t value = 0;
};
Counter iterations, asked, done;

uint64_t Load(const Counter& counter) { return __atomic_load_n(&counter.value, __ATOMIC_ACQUIRE); }
void Store(Counter& counter, uint64_t value) {
  __atomic_store_n(&counter.value, value, __ATOMIC_RELEASE);
}
void WaitFor(const Counter& counter, uint64_t value) {
  while (Load(counter) != value) asm volatile("pause");
}

}  // namespace
}  // namespace guest

void second_main() {
  using namespace guest;
  for (uint64_t round = 0;; ++round) {
    Store(done, round);
    WaitFor(asked, round + 1);
    speed_call(kSecondBuffer, iterations.value);
  }
}

extern "C" void GuestMain(const guest::MultibootInfo* info) {
  using namespace guest;
  iterations.value = NumberOf(*info, "iterations", 50'000'000);
  const uint64_t rounds = NumberOf(*info, "rounds", 5);
  InitConsole();
  start_second();
  for (uint64_t round = 0; round < rounds; ++round) {
    WaitFor(done, round);
    const uint64_t begin = ReadTsc();
    speed_call(kFirstBuffer, iterations.value);
    const uint64_t middle = ReadTsc();
    Store(asked, round + 1);
    speed_call(kFirstBuffer, iterations.value);
    WaitFor(done, round + 1);
    Print("round ", middle - begin, " ", ReadTsc() - middle, "\n");
  }
  Out32(0xf4, 0);
  for (;;) asm volatile("hlt");
}
