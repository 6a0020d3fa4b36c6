// Random VMs against the manuals: every kind of table that a processor can be given, one to four
// vCPUs in an order that one seed decides.
//
//   --seed=N     the first seed (default: 1)
//   --seconds=S  how long (default: 20)
//   --steps=N    steps of each VM (default: 3000)
//   --kind=NAME  shadow, ept, ept-mbec, npt or npt-gmet; or, where the guest is a hypervisor,
//                nested-ept, nested-ept-mbec, nested-npt or nested-npt-gmet (default: all in turn,
//                shadow four times, nested ones twice)
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

import pagesaw.tests.mmu.choices;
import pagesaw.tests.mmu.differential_vm;
import pagesaw.tests.mmu.nested_vm;
import pagesaw.tests.mmu.random_vm;

namespace pagesaw {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

unsigned long g_seed = 1;
unsigned long g_seconds = 20;
unsigned long g_steps = 3000;
int g_kind = -1;

constexpr unsigned kKinds = RandomVm::kKinds + NestedVm::kKinds;
// The kinds of VM that seeds stand for, in turn. Shadowed tables have the most to go wrong.
constexpr unsigned kTurns[] = {0, 5, 1, 6, 0, 7, 2, 8, 0, 5, 3, 6, 0, 7, 4, 8};

const char* NameOf(unsigned kind) {
  return kind < RandomVm::kKinds ? RandomVm::NameOf(kind)
                                 : NestedVm::NameOf(kind - RandomVm::kKinds);
}

std::unique_ptr<DifferentialVm> MakeVm(unsigned kind, Choices& choices) {
  const unsigned vcpus = 1 + static_cast<unsigned>(choices.Below(4));
  if (kind < RandomVm::kKinds) return std::make_unique<RandomVm>(kind, vcpus, choices);
  return std::make_unique<NestedVm>(kind - RandomVm::kKinds, vcpus, choices);
}

std::optional<std::string> RunOne(std::uint64_t seed, std::uint64_t& accesses,
                                  std::uint64_t& unchecked) {
  Choices choices(seed);
  const unsigned kind = g_kind >= 0 ? static_cast<unsigned>(g_kind)
                                    : kTurns[seed % (sizeof(kTurns) / sizeof(kTurns[0]))];
  const std::unique_ptr<DifferentialVm> vm = MakeVm(kind, choices);
  for (unsigned long step = 0; step < g_steps; ++step) {
    std::optional<std::string> complaint = vm->Step();
    if (!complaint && step % 512 == 511) complaint = vm->CheckAllSptes();
    if (complaint) {
      return "seed " + std::to_string(seed) + ", step " + std::to_string(step) + ": " + *complaint +
             "\n" + vm->Describe();
    }
  }
  accesses += vm->accesses();
  unchecked += vm->unchecked();
  return std::nullopt;
}

TEST(MmuDifferential, EveryAccessEndsAsTheManualsAllow) {
  const auto start = steady_clock::now();
  auto next_word = start + seconds(60);
  std::uint64_t accesses = 0, unchecked = 0;
  unsigned long seed = g_seed;
  for (; steady_clock::now() < start + seconds(g_seconds); ++seed) {
    const std::optional<std::string> complaint = RunOne(seed, accesses, unchecked);
    ASSERT_FALSE(complaint) << *complaint;
    if (steady_clock::now() < next_word) continue;
    next_word += seconds(60);
    std::printf("seed %lu, %llu accesses\n", seed, static_cast<unsigned long long>(accesses));
    std::fflush(stdout);
  }
  std::printf("seeds %lu to %lu: %llu accesses compared, %llu had too many outcomes to tell\n",
              g_seed, seed - 1, static_cast<unsigned long long>(accesses - unchecked),
              static_cast<unsigned long long>(unchecked));
  // A test that compares nothing proves nothing.
  EXPECT_LT(unchecked * 10, accesses);
}

bool ParseFlag(const char* argument) {
  const std::string_view text = argument;
  const auto number = [&](std::string_view name, unsigned long& value) {
    if (!text.starts_with(name)) return false;
    char* end = nullptr;
    value = std::strtoul(argument + name.size(), &end, 10);
    return *end == '\0' && end != argument + name.size();
  };
  if (text.starts_with("--kind=")) {
    for (unsigned kind = 0; kind < kKinds; ++kind) {
      if (text.substr(7) == NameOf(kind)) g_kind = static_cast<int>(kind);
    }
    return g_kind >= 0;
  }
  return number("--seed=", g_seed) || number("--seconds=", g_seconds) ||
         number("--steps=", g_steps);
}

}  // namespace
}  // namespace pagesaw

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    if (pagesaw::ParseFlag(argv[i])) continue;
    std::fprintf(stderr, "error: %s: want --seed=N, --seconds=N, --steps=N or --kind=NAME, of",
                 argv[i]);
    for (unsigned kind = 0; kind < pagesaw::kKinds; ++kind) {
      std::fprintf(stderr, " %s", pagesaw::NameOf(kind));
    }
    std::fprintf(stderr, "\n");
    return 2;
  }
  std::printf("first seed %lu\n", pagesaw::g_seed);
  return RUN_ALL_TESTS();
}
