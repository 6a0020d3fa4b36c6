// Every rule of the walk of linear addresses, in every paging mode, against the oracle: what is
// reserved, who may do what, in which order faults are found, what error code they have, and what
// A and D are afterwards. Nothing is left to chance: each sweep goes through all combinations.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.paging_oracle;
import pagesaw.mmu.test_memory;

namespace pagesaw {
namespace {

constexpr std::uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPs = 0x80;
constexpr std::uint64_t kXd = std::uint64_t{1} << 63;
constexpr std::uint64_t Bit(unsigned bit) { return std::uint64_t{1} << bit; }

constexpr std::array<oracle::Access, 13> kAllAccesses = {{
    {},
    {.with_ac = true},
    {.user = true},
    {.write = true},
    {.write = true, .with_ac = true},
    {.write = true, .user = true},
    {.fetch = true},
    {.fetch = true, .with_ac = true},
    {.fetch = true, .user = true},
    {.shadow_stack = true},
    {.user = true, .shadow_stack = true},
    {.write = true, .shadow_stack = true},
    {.write = true, .user = true, .shadow_stack = true},
}};

// Those that a processor makes: without CR4.CET there are no accesses to shadow stacks.
std::span<const oracle::Access> AccessesOf(const oracle::Processor& p) {
  return std::span(kAllAccesses).first(p.cet ? kAllAccesses.size() : 9);
}

Access OursOf(const oracle::Access& access) {
  const Privilege by = access.user ? Privilege::kUser : Privilege::kSupervisor;
  if (access.shadow_stack) {
    return access.write ? Access::ShadowStackWrite(by) : Access::ShadowStackRead(by);
  }
  const Access ours = access.fetch   ? Access::Fetch(by)
                      : access.write ? Access::Write(by)
                                     : Access::Read(by);
  return access.with_ac ? ours.WithSmapWaived() : ours;
}

PagingState StateOf(const oracle::Processor& p) {
  PagingState state;
  const auto set = [](std::uint64_t& word, std::uint64_t bit, bool on) { word |= on ? bit : 0; };
  state.cr0 = kCr0Pe;
  set(state.cr0, kCr0Pg, p.levels != 0);
  set(state.cr0, kCr0Wp, p.wp);
  set(state.cr4, kCr4Pae, p.levels >= 3);
  set(state.cr4, kCr4Pse, p.pse);
  set(state.cr4, kCr4La57, p.levels == 5);
  set(state.cr4, kCr4Smep, p.smep);
  set(state.cr4, kCr4Smap, p.smap);
  set(state.cr4, kCr4Pke, p.pke);
  set(state.cr4, kCr4Pks, p.pks);
  set(state.cr4, kCr4Cet, p.cet);
  set(state.efer, kEferLme | kEferLma, p.levels >= 4);
  set(state.efer, kEferNxe, p.nxe);
  state.cr3 = p.root;
  state.pkru = p.pkru;
  state.pkrs = p.pkrs;
  std::copy(std::begin(p.pdpte), std::end(p.pdpte), state.pdptes.begin());
  state.features.physical_bits = static_cast<std::uint8_t>(p.maxphyaddr);
  state.features.gib_pages = p.pages_1g;
  state.features.pse36_bits = static_cast<std::uint8_t>(p.pse36_bits);
  state.features.root_bit8_reserved = p.root_bit8_mbz;
  return state;
}

// One way through tables: the table of level n is the frame n, and the entry that translates
// kLinear is the second of each, so that no entry is found by an index of 0.
class OneWay {
 public:
  static constexpr std::uint64_t kLinear = 0x0001'0080'4020'1abc;
  static constexpr std::uint64_t kLinear32 = 0x0040'1abc;

  static constexpr std::uint64_t kMemoryBytes = 64 << 10;

  explicit OneWay(unsigned levels) : levels_(levels), walker_(memory_) {
    processor_.levels = levels;
    processor_.root = std::uint64_t{levels} << 12;
  }

  unsigned levels() const { return levels_; }
  oracle::Processor& processor() { return processor_; }
  std::uint64_t linear() const {
    if (levels_ == 2) return kLinear32;
    return levels_ == 3 ? 0x4020'1abc : kLinear & (Bit(levels_ == 4 ? 47 : 56) - 1);
  }

  // Takes over what `processor()` says.
  void Reset() { walker_.Reset(StateOf(processor_)); }

  // An entry at `level` that grants everything and has A and D set.
  std::uint64_t Good(unsigned level) const {
    if (levels_ == 3 && level == 3) return 2u << 12 | kP;
    const std::uint64_t target = level == 1 ? 0x5000 : std::uint64_t{level - 1} << 12;
    return target | kP | kW | kU | kA | kD;
  }

  void Set(unsigned level, std::uint64_t entry) { entries_[level] = entry; }
  void SetGood() {
    for (unsigned level = 1; level <= levels_; ++level) Set(level, Good(level));
  }

  // Writes the entries, walks, and compares all there is to compare. False on the first difference,
  // which is then described.
  [[nodiscard]] bool Agrees(const oracle::Access& access) {
    StoreAll();
    if (levels_ == 3 && processor_.pdpte[1] != entries_[3]) {
      processor_.pdpte[1] = entries_[3];
      Reset();
    }
    bool outside = false;
    const oracle::Verdict want = oracle::Translate(
        processor_, linear(), access, [&](std::uint64_t at, unsigned bytes) -> std::uint64_t {
          outside = outside || at >= kMemoryBytes;
          return outside ? 0 : Read(at, bytes);
        });
    if (outside) return true;  // a bit that is address leads to no memory: nobody's tables
    const WalkResult inspected = walker_.Inspect(InputAddress(linear()), OursOf(access), nullptr);
    if (!Same(want, inspected, access)) return false;
    if (!HasEntries(want, access, false)) return Complain("looking changed an entry", access);
    const WalkResult walked = walker_.Walk(InputAddress(linear()), OursOf(access));
    if (!Same(want, walked, access)) return false;
    return HasEntries(want, access, true) || Complain("A or D are wrong", access);
  }

 private:
  std::uint64_t AddressOf(unsigned level) const {
    return (std::uint64_t{level} << 12) + (levels_ == 2 ? 4 : 8);
  }
  std::uint64_t Read(std::uint64_t at, unsigned bytes) const {
    return bytes == 4 ? memory_.Read<std::uint32_t>(Gpa(at)) : memory_.Read<std::uint64_t>(Gpa(at));
  }
  void StoreAll() {
    for (unsigned level = 1; level <= levels_; ++level) {
      const Gpa at(AddressOf(level));
      if (levels_ == 2) {
        memory_.Write<std::uint32_t>(at, static_cast<std::uint32_t>(entries_[level]));
      } else {
        memory_.Write<std::uint64_t>(at, entries_[level]);
      }
    }
  }

  bool Same(const oracle::Verdict& want, const WalkResult& got, const oracle::Access& access) {
    using Kind = WalkFault::Kind;
    if (want.general_protection) {
      return (!got && got.fault().kind == Kind::kNonCanonical) ||
             Complain("want no address", access);
    }
    if (!want.fault) {
      if (!got) return Complain("faults, should not", access);
      return (got->output.bits() == want.physical &&
              (levels_ == 0 || Number(got->level) == want.level)) ||
             Complain("another address", access);
    }
    if (got) return Complain("does not fault", access);
    const WalkFault& fault = got.fault();
    if (fault.code.bits() != want.code) {
      return Complain(
          "error code " + std::to_string(fault.code.bits()) + ", want " + std::to_string(want.code),
          access);
    }
    const bool present = (want.code & 1) != 0, reserved = (want.code & 8) != 0,
               key = (want.code & 32) != 0;
    const Kind kind = !present   ? Kind::kNotPresent
                      : reserved ? Kind::kMalformed
                      : key      ? Kind::kProtectionKey
                                 : Kind::kRights;
    return (fault.kind == kind && Number(fault.level) == want.level &&
            fault.address.bits() == linear()) ||
           Complain("another fault", access);
  }

  bool HasEntries(const oracle::Verdict& want, const oracle::Access& access, bool walked) const {
    const bool used = walked && !want.fault && !want.general_protection;
    for (unsigned level = 1; level <= levels_; ++level) {
      const std::uint64_t before =
          levels_ == 2 ? static_cast<std::uint32_t>(entries_[level]) : entries_[level];
      const std::uint64_t after =
          used && level >= want.level
              ? oracle::AfterUse(processor_, before, level, want.level, access)
              : before;
      if (Read(AddressOf(level), levels_ == 2 ? 4 : 8) != after) return false;
    }
    return true;
  }

  bool Complain(const std::string& what, const oracle::Access& access) const {
    testing::Message words;
    words << what << ": " << levels_ << " levels, " << (access.user ? "user " : "supervisor ")
          << (access.fetch   ? "fetch"
              : access.write ? "write"
                             : "read")
          << (access.with_ac ? " with AC" : "") << (access.shadow_stack ? " of a shadow stack" : "")
          << (processor_.cet ? ", CET" : "") << ", M " << processor_.maxphyaddr
          << (processor_.nxe ? " NXE" : "") << (processor_.wp ? " WP" : "")
          << (processor_.smep ? " SMEP" : "") << (processor_.smap ? " SMAP" : "")
          << (processor_.pke ? " PKE" : "") << (processor_.pks ? " PKS" : "")
          << (processor_.pse ? " PSE" : "") << (processor_.pages_1g ? " 1G" : "") << std::hex
          << " PKRU " << processor_.pkru << " PKRS " << processor_.pkrs;
    for (unsigned level = levels_; level > 0; --level) {
      words << "\n  level " << level << ": " << entries_[level];
    }
    ADD_FAILURE() << words;
    return false;
  }

  const unsigned levels_;
  oracle::Processor processor_;
  std::array<std::uint64_t, 6> entries_ = {};
  TestMemory memory_{kMemoryBytes};
  CpuWalker walker_;
};

class LinearWalk : public testing::TestWithParam<unsigned> {
 protected:
  OneWay way_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Levels, LinearWalk, testing::Values(2, 3, 4, 5),
                         [](const auto& info) { return std::to_string(info.param); });

// Calls `visit` with every combination of the control bits that rights depend on.
template <typename Visit>
void ForEachControl(OneWay& way, Visit visit) {
  const unsigned count = way.levels() >= 4 ? 128 : 32;
  for (unsigned bits = 0; bits < count; ++bits) {
    const auto on = [bits](unsigned bit) { return (bits >> bit & 1) != 0; };
    oracle::Processor& p = way.processor();
    p.nxe = on(0);
    p.wp = on(1);
    p.smep = on(2);
    p.smap = on(3);
    p.cet = on(4);
    p.pke = on(5);
    p.pks = on(6);
    if (p.cet && !p.wp) continue;
    way.Reset();
    visit();
  }
}

TEST_P(LinearWalk, FindsTheSameFaultFirstWhateverEachLevelSays) {
  way_.processor().pkru = 0x5555'5550;  // key 0 and 1 may do all, others nothing
  way_.processor().pkrs = 0xaaaa'aaa0;
  const unsigned levels = way_.levels();
  const auto state = [this](unsigned level, unsigned what) -> std::uint64_t {
    const std::uint64_t good = way_.Good(level);
    switch (what) {
      case 0:
        return good;
      case 1:
        return good & ~kP;
      case 2:
        return good & ~kW;
      case 3:
        return good & ~kU;
      case 4:
        return good | kXd;  // reserved without NXE
      default:
        return good | Bit(51);  // reserved
    }
  };
  const unsigned states = levels == 2 ? 4 : 6;
  unsigned count = 1;
  for (unsigned level = 0; level < levels; ++level) count *= states;
  way_.processor().maxphyaddr = 50;
  ForEachControl(way_, [&] {
    for (unsigned number = 0; number < count; ++number) {
      unsigned rest = number;
      for (unsigned level = 1; level <= levels; ++level, rest /= states) {
        way_.Set(level, state(level, rest % states));
      }
      for (const oracle::Access& access : AccessesOf(way_.processor()))
        ASSERT_TRUE(way_.Agrees(access));
    }
  });
}

TEST_P(LinearWalk, JudgesRightsOfLeavesOfEverySize) {
  const unsigned largest = way_.levels() >= 4 ? 3 : 2;
  ForEachControl(way_, [&] {
    for (unsigned leaf = 1; leaf <= largest; ++leaf) {
      way_.SetGood();
      for (unsigned bits = 0; bits < 64; ++bits) {
        const auto on = [bits](unsigned bit, std::uint64_t mask) {
          return (bits >> bit & 1) != 0 ? mask : 0;
        };
        const std::uint64_t large = leaf == 1 ? 0 : on(5, kPs);
        std::uint64_t frame = way_.Good(leaf) & ~std::uint64_t{0xfff};
        // Bits 20:13 of a 4 MiB page reach beyond 4 GiB; bit 12 of a large page is PAT.
        if (large != 0) frame = (way_.levels() == 2 ? 0x00c7'e000 : 0x40'0000'0000) | Bit(12);
        way_.Set(leaf,
                 frame | kP | large | on(0, kW) | on(1, kU) | on(2, kA) | on(3, kD) | on(4, kXd));
        for (const oracle::Access& access : AccessesOf(way_.processor()))
          ASSERT_TRUE(way_.Agrees(access));
      }
    }
  });
}

TEST_P(LinearWalk, ReservedBitsOfEveryEntryAreThoseOfTheFigures) {
  const unsigned levels = way_.levels();
  for (unsigned m = 36; m <= 52; ++m) {
    for (unsigned features = 0; features < 16; ++features) {
      const auto on = [features](unsigned bit) { return (features >> bit & 1) != 0; };
      oracle::Processor& p = way_.processor();
      p.maxphyaddr = m;
      p.nxe = on(0);
      p.pages_1g = on(1);
      p.root_bit8_mbz = on(2);
      p.pse = on(3);
      p.pse36_bits = std::min(m, 40u);
      way_.Reset();
      for (unsigned level = 1; level <= levels; ++level) {
        way_.SetGood();
        for (std::uint64_t ps : {std::uint64_t{0}, kPs}) {
          if (levels == 3 && level == 3 && ps != 0) continue;
          for (unsigned bit = 1; bit < (levels == 2 ? 32u : 64u); ++bit) {
            // Large leaves start at frame 0.
            const bool leaf = level > 1 && (ps != 0 || bit == 7);
            const std::uint64_t base = leaf ? way_.Good(level) & 0xfff : way_.Good(level);
            const std::uint64_t entry = base | ps | Bit(bit);
            way_.Set(level, entry);
            ASSERT_TRUE(way_.Agrees({.write = true}));
            ASSERT_TRUE(way_.Agrees({.fetch = true, .user = true}));
            // The same bit in an entry that is not present says nothing.
            way_.Set(level, entry & ~kP);
            ASSERT_TRUE(way_.Agrees({}));
          }
        }
      }
    }
  }
}

TEST_P(LinearWalk, ProtectionKeysBindThePagesAndAccessesThatTheyShould) {
  ForEachControl(way_, [&] {
    for (unsigned key : {0u, 1u, 7u, 15u}) {
      for (unsigned registers = 0; registers < 16; ++registers) {
        // Every other key is refused or granted the opposite.
        const std::uint32_t mine = 3u << (2 * key);
        const std::uint32_t user = (registers & 3) << (2 * key);
        const std::uint32_t supervisor = (registers >> 2) << (2 * key);
        way_.processor().pkru = (user ^ ((registers & 1) != 0 ? 0 : ~mine));
        way_.processor().pkrs = (supervisor ^ ((registers & 4) != 0 ? 0 : ~mine));
        way_.Reset();
        for (unsigned bits = 0; bits < 8; ++bits) {
          way_.SetGood();
          std::uint64_t leaf = way_.Good(1) | std::uint64_t{key} << 59;
          if ((bits & 1) != 0) leaf &= ~kW;
          if ((bits & 2) != 0) leaf &= ~kU;
          if ((bits & 4) != 0) leaf |= kXd;
          way_.Set(1, leaf);
          for (const oracle::Access& access : AccessesOf(way_.processor()))
            ASSERT_TRUE(way_.Agrees(access));
        }
      }
    }
  });
}

// A key in an entry that is no leaf is ignored.
TEST_P(LinearWalk, OnlyTheLeafHasAProtectionKey) {
  way_.processor().pke = way_.processor().pks = true;
  way_.processor().pkru = way_.processor().pkrs = ~3u;
  way_.Reset();
  for (unsigned level = 1; level <= way_.levels(); ++level) {
    way_.SetGood();
    way_.Set(level, way_.Good(level) | std::uint64_t{9} << 59);
    for (const oracle::Access& access : AccessesOf(way_.processor()))
      ASSERT_TRUE(way_.Agrees(access));
  }
}

TEST(LinearWalkAddress, IsOneOfTheModeOrNone) {
  for (unsigned levels : {0u, 2u, 3u, 4u, 5u}) {
    const oracle::Processor p = {.levels = levels, .root = 0x1000};
    TestMemory memory(64 << 10);
    CpuWalker walker(memory, StateOf(p));
    for (unsigned bit = 0; bit < 64; ++bit) {
      for (std::uint64_t linear : {Bit(bit), ~std::uint64_t{0} << bit, Bit(bit) - 1}) {
        const oracle::Verdict want =
            oracle::Translate(p, linear, {}, [](std::uint64_t, unsigned) { return 0; });
        const WalkResult got =
            walker.Inspect(InputAddress(linear), Access::Read(Privilege::kSupervisor), nullptr);
        const bool none = !got && got.fault().kind == WalkFault::Kind::kNonCanonical;
        ASSERT_EQ(none, want.general_protection) << levels << " levels, " << std::hex << linear;
        ASSERT_EQ(static_cast<bool>(got), !want.fault && !want.general_protection);
      }
    }
  }
}

}  // namespace
}  // namespace pagesaw
