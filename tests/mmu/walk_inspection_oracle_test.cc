// Walks for people through two stages of tables made of chance, against the oracle: how the access
// ends, what the hypervisor is told, and which entries get A or D.
//   PAGESAW_SEED, PAGESAW_STEPS  where to begin and how many; otherwise a fixed seed
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.paging_oracle;
import pagesaw.mmu.test_memory;
import pagesaw.mmu.walk_inspection;
import pagesaw.tests.mmu.choices;
import pagesaw.tests.mmu.nesting;
import pagesaw.tests.mmu.oracle_words;
import pagesaw.tests.mmu.two_stage_oracle;
import pagesaw.tests.mmu.virtual_cpu;

namespace pagesaw {
namespace {

using Kind = WalkFault::Kind;

// Frames of the hypervisor: nested tables, by level from 5 down, and then what they map. Of the
// guest: its tables in the same order, and pages.
constexpr unsigned kTablesOfLevel = 3, kTables = 5 * kTablesOfLevel, kFrames = 64;

std::uint64_t NumberOf(const char* variable, std::uint64_t otherwise) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

class World {
 public:
  World(const NestingKind& kind, Choices& choices) : kind_(kind), choices_(choices) {
    for (std::uint64_t frame = 0; frame < kFrames; ++frame) {
      for (std::uint64_t i = 0; i < 512; ++i) {
        *At(frame << 12 | i << 3) = frame < kTables ? NestedEntry(frame, i) : GuestEntry();
      }
    }
  }

  const TestMemory& memory() const { return memory_; }
  std::vector<std::uint64_t> Copy() {
    return {At(0), At(0) + kFrames * kPageBytes / sizeof(std::uint64_t)};
  }

  // What the oracle asks.
  std::uint64_t ReadNested(std::uint64_t at, unsigned bytes, bool) { return Read(at, bytes); }
  std::uint64_t ReadGuest(std::uint64_t at, unsigned bytes, bool) {
    met_no_memory = met_no_memory || !IsRam(at);
    return Read(at, bytes);
  }
  bool Forbids(std::uint64_t, const oracle::Access&) const { return false; }
  bool ForbidsFetch(std::uint64_t, bool, bool) const { return false; }
  bool IsMemory(std::uint64_t, bool) const { return true; }
  bool log_full() const { return false; }

  std::uint64_t Read(std::uint64_t at, unsigned bytes) {
    if (!IsRam(at)) return 0;
    const std::uint64_t word = *At(at & ~std::uint64_t{7});
    return bytes == 8 ? word : word >> (8 * (at & 4)) & 0xffff'ffff;
  }

  bool met_no_memory = false;

 private:
  static bool IsRam(std::uint64_t at) { return at < kFrames * kPageBytes; }
  std::uint64_t* At(std::uint64_t gpa) {
    return reinterpret_cast<std::uint64_t*>(memory_.Find(GfnOf(Gpa(gpa)))->HostOf(Gpa(gpa)));
  }
  bool Mostly() { return !choices_.Chance(24); }

  std::uint64_t NestedEntry(std::uint64_t table, std::uint64_t index) {
    const std::uint64_t level = 5 - table / kTablesOfLevel;
    std::uint64_t frame = choices_.Below(kFrames + 2);
    if (Mostly()) {
      frame = level > 1 ? (6 - level) * kTablesOfLevel + choices_.Below(kTablesOfLevel)
                        : kTables + (index + table) % (kFrames - kTables);
    }
    std::uint64_t entry = frame << 12;
    const bool large = (level == 2 || level == 3) && choices_.Chance(16);
    if (large) entry = 1u << 7;
    if (kind_.amd) {
      for (const std::uint64_t bit : {1u, 2u, 4u}) entry |= Mostly() ? bit : 0;
      entry |= choices_.Below(4) << 5;
      if (choices_.Chance(24)) entry |= std::uint64_t{1} << 63;
      // Two entries of 4 bytes.
      if (choices_.Chance(3)) entry |= (entry & 0xffff'ffff) << 32;
    } else {
      for (const std::uint64_t bit : {1u, 2u, 4u, 1u << 10}) entry |= Mostly() ? bit : 0;
      entry |= choices_.Below(4) << 8;
      if (level == 1 || large) entry |= 6u << 3;
    }
    if (choices_.Chance(64)) entry |= std::uint64_t{1} << choices_.Below(64);
    return entry;
  }

  std::uint64_t GuestEntry() {
    const std::uint64_t frame = Mostly() ? choices_.Below(kFrames) : choices_.Below(0x1000);
    std::uint64_t entry = frame << 12 | choices_.Below(4) << 5;
    for (const std::uint64_t bit : {1u, 2u, 4u}) entry |= Mostly() ? bit : 0;
    if (choices_.Chance(12)) entry |= 1u << 7;
    if (choices_.Chance(12)) entry |= std::uint64_t{1} << 63;
    if (choices_.Chance(12)) entry |= choices_.Below(16) << 59;
    if (choices_.Chance(64)) entry |= std::uint64_t{1} << choices_.Below(64);
    if (choices_.Chance(3)) entry |= (entry & 0xffff'ffff) << 32;
    return entry;
  }

  const NestingKind kind_;
  Choices& choices_;
  TestMemory memory_{kFrames * kPageBytes};
};

PagingState AnyState(const PagingFeatures& features, Choices& choices) {
  PagingState state = {.cr0 = kCr0Pe, .features = features};
  const std::uint64_t mode = choices.Below(8);
  if (choices.Chance(2)) state.cr0 |= kCr0Wp;
  for (const std::uint64_t bit : {kCr4Smep, kCr4Smap, kCr4Pse}) {
    if (choices.Chance(3)) state.cr4 |= bit;
  }
  if (!choices.Chance(4)) state.efer |= kEferNxe;
  if (mode != 0) state.cr0 |= kCr0Pg;
  if (mode >= 2) state.cr4 |= kCr4Pae;
  if (mode >= 4) {
    state.efer |= kEferLme | kEferLma;
    if (choices.Chance(3)) state.cr4 |= kCr4Pke;
    if (choices.Chance(3)) state.cr4 |= kCr4Pks;
    state.pkru = static_cast<std::uint32_t>(choices.Word());
    state.pkrs = static_cast<std::uint32_t>(choices.Word());
  }
  if (mode == 7) state.cr4 |= kCr4La57;
  state.cr3 = choices.Below(kFrames) << 12;
  // Those that loading them would have refused are none.
  for (std::uint64_t& pdpte : state.pdptes) {
    pdpte = choices.Below(kFrames) << 12 | (choices.Chance(6) ? 0 : 1);
  }
  return state;
}

std::uint64_t AnyLinear(const PagingState& state, Choices& choices) {
  const std::uint64_t word = choices.Word();
  if (!state.long_mode() || !state.paging()) {
    // Without paging, mostly where something is.
    return state.paging() || choices.Chance(4) ? word & 0xffff'ffff : word % (kFrames << 12);
  }
  const unsigned unused = 64 - state.linear_bits();
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(word << unused) >> unused);
}

// How `walk` ended, in the oracle's words.
oracle::Ending EndingOf(const InspectedWalk& walk, const Nesting& nesting,
                        const PagingState& state) {
  using EndingKind = oracle::Ending::Kind;
  if (walk.result) {
    for (const NestedWalk& nested : walk.nested) {
      if (nested.stage != Stage::kFinal) continue;
      return {EndingKind::kArrives, nested.result->output.bits(), 0};
    }
  }
  if (walk.result.fault().kind != Kind::kSecondStage) {
    return {EndingKind::kPageFault, walk.result.fault().code.bits(), 0};
  }
  const NestedFault fault = NestedFaultOf(walk.nested.back(), &walk, state);
  return {EndingKind::kNested, fault.address.bits(), nesting.InfoOf(fault)};
}

std::string Text(const oracle::Ending& ending) {
  char text[100];
  std::snprintf(text, sizeof text, "kind %d value %llx info %llx", static_cast<int>(ending.kind),
                static_cast<unsigned long long>(ending.value),
                static_cast<unsigned long long>(ending.info));
  return text;
}

bool Writes(const InspectedWalk& walk, std::uint64_t at) {
  for (const MetAccess& met : walk.met) {
    if (met.gpa.bits() == at && met.access.is_write() && met.stage == Stage::kTable) return true;
  }
  return false;
}

class WalkInspectionOracle : public testing::TestWithParam<NestingKind> {};

TEST_P(WalkInspectionOracle, WalksEndAsAProcessorsDo) {
  const std::uint64_t seed = NumberOf("PAGESAW_SEED", 1), steps = NumberOf("PAGESAW_STEPS", 60);
  PagingFeatures features;
  features.physical_bits = 40;
  features.root_bit8_reserved = GetParam().amd;
  unsigned ended[3] = {}, compared = 0;
  for (std::uint64_t step = 0; step < steps; ++step) {
    SCOPED_TRACE("PAGESAW_SEED=" + std::to_string(seed + step) + " PAGESAW_STEPS=1");
    Choices choices(seed + step);
    World world(GetParam(), choices);
    const std::vector<std::uint64_t> before = world.Copy();
    for (unsigned i = 0; i < 400; ++i) {
      const Nesting nesting =
          AnyNesting(GetParam(), features, choices.Word(), kTablesOfLevel, choices);
      const PagingState state = AnyState(features, choices);
      const std::uint64_t linear = AnyLinear(state, choices);
      const Asked asked = {.kind = static_cast<Asked::Kind>(choices.Below(3)),
                           .by = static_cast<Asked::By>(choices.Below(3))};
      const InspectedWalk walk = InspectLinear(world.memory(), state, &nesting.paging,
                                               InputAddress(linear), AccessOf(asked));
      ASSERT_LE(walk.nested.size(), 7u);
      const oracle::Processor processor = OracleProcessor(state);
      oracle::TwoStageWalk<World> expected(processor, nesting.stage, world);
      world.met_no_memory = false;
      const std::vector<oracle::Ending> endings = expected.Run(linear, OracleAccess(asked));
      if (!walk.result && walk.result.fault().kind == Kind::kNoMemory) {
        ASSERT_TRUE(world.met_no_memory) << i;
        continue;
      }
      ASSERT_FALSE(world.met_no_memory) << i;
      const oracle::Ending got = EndingOf(walk, nesting, state);
      std::string allowed;
      for (const oracle::Ending& ending : endings) allowed += Text(ending) + "\n";
      ASSERT_NE(allowed.find(Text(got) + "\n"), std::string::npos)
          << i << ": " << Text(got) << ", not one of\n"
          << allowed;
      ++ended[static_cast<unsigned>(got.kind)];
      ++compared;
      if (got.kind != oracle::Ending::Kind::kArrives) continue;
      for (const oracle::Use& use : expected.uses()) {
        const bool has = (world.Read(use.at, use.bytes) & use.set) == use.set;
        ASSERT_TRUE(has || Writes(walk, use.at)) << i << " entry at " << use.at;
      }
    }
    ASSERT_EQ(world.Copy(), before) << "changed by looking";
  }
  std::printf("%u compared: %u arrive, %u page faults, %u nested faults\n", compared, ended[0],
              ended[1], ended[2]);
  for (const unsigned count : ended) EXPECT_GE(count, compared / 200);
}

INSTANTIATE_TEST_SUITE_P(Kinds, WalkInspectionOracle,
                         testing::Values(NestingKind{false, false}, NestingKind{false, true},
                                         NestingKind{true, false}, NestingKind{true, true}),
                         [](const auto& info) {
                           return std::string(info.param.amd ? "Npt" : "Ept") +
                                  (info.param.splits_execute ? "Split" : "");
                         });

}  // namespace
}  // namespace pagesaw
