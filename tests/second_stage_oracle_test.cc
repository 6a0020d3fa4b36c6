// Every rule of the second stages that plugins bring, against the oracle: EPT with and without
// execute-only entries and large pages, EPT with mode-based execute control, NPT, and NPT with
// guest mode execute trap.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.mmu.paging_oracle;
import pagesaw.mmu.walk;
import pagesaw.plugins.mbec.split_formats;
import pagesaw.plugins.svm.npt_format;
import pagesaw.plugins.vmx.ept_format;

namespace pagesaw {
namespace {

constexpr std::uint64_t Bit(unsigned bit) { return std::uint64_t{1} << bit; }
constexpr std::uint64_t kXd = Bit(63);

// Who and what: 0 to 5.
constexpr unsigned kAccesses = 6;
constexpr bool IsUser(unsigned access) { return access >= 3; }
constexpr bool IsWrite(unsigned access) { return access % 3 == 1; }
constexpr bool IsFetch(unsigned access) { return access % 3 == 2; }
Access OursOf(unsigned access) {
  const Privilege by = IsUser(access) ? Privilege::kUser : Privilege::kSupervisor;
  if (IsFetch(access)) return Access::Fetch(by);
  return IsWrite(access) ? Access::Write(by) : Access::Read(by);
}

// Tables in an array: that of level n is frame 2^n, so that no bit of a link leads from one to
// another; the walk uses one entry of each.
class Tables {
 public:
  static constexpr bool kUpdates = true;
  static constexpr std::uint64_t kAddress = 0x0002'0100'8040'2abc;

  explicit Tables(unsigned levels) : levels_(levels) {}

  unsigned levels() const { return levels_; }
  std::uint64_t address() const { return kAddress & (Bit(12 + 9 * levels_) - 1); }
  std::uint64_t root() const { return FrameOf(levels_); }
  std::uint64_t Target(unsigned level) const {
    return level == 1 ? FrameOf(10) : FrameOf(level - 1);
  }
  void Set(unsigned level, std::uint64_t entry) { entries_[level] = entry; }
  std::uint64_t Get(unsigned level) const { return entries_[level]; }
  // What hardware reads: 0 outside of the tables.
  std::uint64_t Read(std::uint64_t at) {
    const std::uint64_t* entry = At(at);
    left_ = left_ || entry == nullptr;
    return entry != nullptr ? *entry : 0;
  }
  // Whether a read has left the tables since last asked.
  bool TakeLeft() { return std::exchange(left_, false); }

  TableEntry Find(OutputAddress at) {
    return {.host = reinterpret_cast<std::byte*>(At(at.bits()))};
  }
  EntryUpdate PrepareUpdate(OutputAddress) const { return EntryUpdate::kAllowed; }
  bool Finish(Translation&, Access) const { return true; }

  std::string Words(unsigned access) const {
    std::string words =
        std::string(IsUser(access) ? "user " : "supervisor ") + (IsFetch(access)   ? "fetch"
                                                                 : IsWrite(access) ? "write"
                                                                                   : "read");
    for (unsigned level = levels_; level > 0; --level) {
      char text[40];
      std::snprintf(text, sizeof(text), "\n  level %u: %#llx", level,
                    static_cast<unsigned long long>(entries_[level]));
      words += text;
    }
    return words;
  }

 private:
  std::uint64_t* At(std::uint64_t at) {
    for (unsigned level = 1; level <= levels_; ++level) {
      const std::uint64_t index = address() >> (12 + 9 * (level - 1)) & 511;
      if (at == FrameOf(level) + index * 8) return &entries_[level];
    }
    return nullptr;
  }
  static std::uint64_t FrameOf(unsigned number) { return Bit(12 + number); }

  unsigned levels_;
  std::array<std::uint64_t, 6> entries_ = {};
  bool left_ = false;
};

WalkResult Walk(const PageFormat& format, Tables& tables, unsigned access) {
  return WalkTables<AnyLayout>(format,
                               {.table = OutputAddress(tables.root()),
                                .level = static_cast<Level>(tables.levels()),
                                .address = InputAddress(tables.address()),
                                .access = OursOf(access)},
                               tables);
}

// The entries as they are after the walk, and what they must be.
bool HasAccessedDirty(const std::array<std::uint64_t, 6>& before, Tables& tables, bool used,
                      unsigned leaf, std::uint64_t accessed, std::uint64_t dirty) {
  for (unsigned level = 1; level <= tables.levels(); ++level) {
    const std::uint64_t set = used && level >= leaf ? accessed | (level == leaf ? dirty : 0) : 0;
    if (tables.Get(level) != (before[level] | set)) return false;
  }
  return true;
}

std::array<std::uint64_t, 6> Entries(const Tables& tables) {
  std::array<std::uint64_t, 6> entries = {};
  for (unsigned level = 1; level <= tables.levels(); ++level) entries[level] = tables.Get(level);
  return entries;
}

// -- EPT

PageFormat FormatOf(const oracle::Ept& ept, bool accessed_dirty) {
  if (ept.mode_based_execute) return mbec::MakeEptMbecFormat(ept.maxphyaddr);
  return vmx::MakeEptFormat({.physical_bits = ept.maxphyaddr,
                             .execute_only = ept.execute_only,
                             .pages_2m = ept.pages_2m,
                             .pages_1g = ept.pages_1g,
                             .accessed_dirty = accessed_dirty});
}

testing::AssertionResult AgreesWithEpt(const oracle::Ept& ept, const PageFormat& format,
                                       Tables& tables, unsigned access) {
  using Kind = oracle::EptVerdict::Kind;
  const auto before = Entries(tables);
  const oracle::EptVerdict want = oracle::Translate(
      ept, tables.root(), tables.address(),
      {.write = IsWrite(access), .fetch = IsFetch(access), .user_address = IsUser(access)},
      [&](std::uint64_t at) { return tables.Read(at); });
  if (tables.TakeLeft()) return testing::AssertionSuccess();
  const WalkResult got = Walk(format, tables, access);
  const auto refuse = [&](const char* what) {
    return testing::AssertionFailure() << what << ": " << tables.Words(access);
  };
  const bool allowed = want.kind == Kind::kAllowed;
  if (static_cast<bool>(got) != allowed) return refuse(allowed ? "is refused" : "is allowed");
  const std::uint64_t dirty = IsWrite(access) ? Bit(9) : 0;
  if (!HasAccessedDirty(before, tables, allowed && format.accessed_dirty, want.level, Bit(8),
                        dirty)) {
    return refuse("A or D are wrong");
  }
  if (allowed) {
    const bool same = got->output.bits() == want.physical && Number(got->level) == want.level;
    return same ? testing::AssertionSuccess() : refuse("another page");
  }
  const WalkFault& fault = got.fault();
  if ((fault.kind == WalkFault::Kind::kMalformed) != (want.kind == Kind::kMisconfiguration)) {
    return refuse("violation and misconfiguration are mixed up");
  }
  if (Number(fault.level) != want.level) return refuse("another level");
  if (want.kind == Kind::kMisconfiguration) return testing::AssertionSuccess();
  const unsigned rights = (fault.rights.read() ? 1u : 0) | (fault.rights.write() ? 2u : 0) |
                          (fault.rights.exec_supervisor() ? 4u : 0) |
                          (fault.rights.exec_user() ? 8u : 0);
  return rights == want.qualification_rights ? testing::AssertionSuccess()
                                             : refuse("other rights are reported");
}

std::vector<oracle::Ept> EptVariants(unsigned maxphyaddr) {
  std::vector<oracle::Ept> variants;
  for (unsigned levels : {4u, 5u}) {
    for (unsigned bits = 0; bits < 8; ++bits) {
      variants.push_back({.levels = levels,
                          .maxphyaddr = maxphyaddr,
                          .execute_only = (bits & 1) != 0,
                          .pages_2m = (bits & 2) != 0,
                          .pages_1g = (bits & 4) != 0});
    }
    variants.push_back({.levels = levels, .maxphyaddr = maxphyaddr, .mode_based_execute = true});
  }
  return variants;
}

// A link, or a leaf of write-back memory.
std::uint64_t EptEntry(const Tables& tables, unsigned level, bool large, std::uint64_t rights) {
  if (large) return (std::uint64_t{1} << 35) | 6u << 3 | 0x80 | rights;
  return tables.Target(level) | (level == 1 ? 6u << 3 : 0) | rights;
}

// R, W, X and bit 10.
constexpr std::uint64_t EptRights(unsigned code) { return (code & 7) | (code >> 3 & 1) << 10; }

TEST(EptOracle, AgreesOnEveryRightAtEveryTwoLevelsAndEveryAccess) {
  for (const oracle::Ept& ept : EptVariants(46)) {
    const PageFormat format = FormatOf(ept, true);
    for (unsigned leaf = 1; leaf <= 3; ++leaf) {
      for (unsigned upper = leaf; upper <= ept.levels; ++upper) {
        for (unsigned code = 0; code < 256; ++code) {
          Tables tables(ept.levels);
          for (unsigned access = 0; access < kAccesses; ++access) {
            for (unsigned level = 1; level <= ept.levels; ++level) {
              tables.Set(level, EptEntry(tables, level, level == leaf && leaf != 1, EptRights(15)));
            }
            tables.Set(leaf, EptEntry(tables, leaf, leaf != 1, EptRights(code & 15)));
            if (upper != leaf) {
              tables.Set(upper, EptEntry(tables, upper, false, EptRights(code >> 4)));
            }
            ASSERT_TRUE(AgreesWithEpt(ept, format, tables, access))
                << ept.levels << " levels, X only " << ept.execute_only << " 2M " << ept.pages_2m
                << " 1G " << ept.pages_1g << " MBEC " << ept.mode_based_execute;
          }
        }
      }
    }
  }
}

TEST(EptOracle, AgreesOnEveryBitOfEveryEntry) {
  for (unsigned m = 36; m <= 52; ++m) {
    for (const oracle::Ept& ept : EptVariants(m)) {
      for (bool accessed_dirty : {false, true}) {
        if (ept.mode_based_execute && !accessed_dirty) continue;
        const PageFormat format = FormatOf(ept, accessed_dirty);
        for (unsigned level = 1; level <= ept.levels; ++level) {
          for (std::uint64_t low = 0; low < 16; ++low) {  // bits 7, and all kinds of R, W, X
            for (unsigned bit = 3; bit < 64; ++bit) {
              Tables tables(ept.levels);
              for (unsigned other = 1; other <= ept.levels; ++other) {
                tables.Set(other, EptEntry(tables, other, false, 7));
              }
              const bool large = (low & 8) != 0;
              const std::uint64_t base =
                  large ? (low & 7) | 0x80 : EptEntry(tables, level, false, low & 7);
              tables.Set(level, base ^ Bit(bit));
              ASSERT_TRUE(AgreesWithEpt(ept, format, tables, bit % kAccesses))
                  << "M " << m << ", " << ept.levels << " levels, X only " << ept.execute_only
                  << " 2M " << ept.pages_2m << " 1G " << ept.pages_1g << " MBEC "
                  << ept.mode_based_execute << ", bit " << bit << " of level " << level;
            }
          }
        }
      }
    }
  }
}

TEST(EptOracle, AgreesOnTheOrderInWhichFaultsAreFound) {
  for (const oracle::Ept& ept : EptVariants(46)) {
    const PageFormat format = FormatOf(ept, true);
    unsigned count = 1;
    for (unsigned level = 0; level < ept.levels; ++level) count *= 5;
    for (unsigned number = 0; number < count; ++number) {
      for (unsigned access = 0; access < kAccesses; ++access) {
        Tables tables(ept.levels);
        unsigned rest = number;
        for (unsigned level = 1; level <= ept.levels; ++level, rest /= 5) {
          const std::uint64_t rights[] = {EptRights(15), 0, 2, 1, EptRights(13)};
          tables.Set(level, EptEntry(tables, level, false, rights[rest % 5]));
        }
        ASSERT_TRUE(AgreesWithEpt(ept, format, tables, access));
      }
    }
  }
}

// -- NPT

testing::AssertionResult AgreesWithNpt(const oracle::NestedPaging& nested, const PageFormat& format,
                                       Tables& tables, unsigned access) {
  const auto before = Entries(tables);
  const oracle::Verdict want = oracle::Translate(
      nested, tables.root(), tables.address(),
      {.write = IsWrite(access), .fetch = IsFetch(access), .user = IsUser(access)},
      [&](std::uint64_t at, unsigned) { return tables.Read(at); });
  if (tables.TakeLeft()) return testing::AssertionSuccess();
  const WalkResult got = Walk(format, tables, access);
  const auto refuse = [&](const char* what) {
    return testing::AssertionFailure() << what << ": " << tables.Words(access);
  };
  if (static_cast<bool>(got) == want.fault) {
    return refuse(want.fault ? "is allowed" : "is refused");
  }
  if (!HasAccessedDirty(before, tables, !want.fault, want.level, Bit(5),
                        IsWrite(access) ? Bit(6) : 0)) {
    return refuse("A or D are wrong");
  }
  if (!want.fault) {
    const bool same = got->output.bits() == want.physical && Number(got->level) == want.level;
    return same ? testing::AssertionSuccess() : refuse("another page");
  }
  if (got.fault().code.bits() != want.code) return refuse("another error code");
  return Number(got.fault().level) == want.level ? testing::AssertionSuccess()
                                                 : refuse("another level");
}

PageFormat FormatOf(const oracle::NestedPaging& nested) {
  return nested.guest_mode_execute_trap ? mbec::MakeNptGmetFormat(nested.maxphyaddr)
                                        : svm::MakeNptFormat(nested.maxphyaddr);
}

// Calls `visit(nested, format, access)` for each kind of nested paging and each access that it can
// meet: without guest mode execute trap, only users'.
template <typename Visit>
void ForEachNested(unsigned maxphyaddr, Visit visit) {
  for (unsigned levels : {4u, 5u}) {
    for (bool trap : {false, true}) {
      const oracle::NestedPaging nested = {
          .levels = levels, .maxphyaddr = maxphyaddr, .guest_mode_execute_trap = trap};
      const PageFormat format = FormatOf(nested);
      for (unsigned access = trap ? 0 : 3; access < kAccesses; ++access) {
        visit(nested, format, access);
      }
    }
  }
}

TEST(NptOracle, AgreesOnTheOrderInWhichFaultsAreFoundAndOnEveryRight) {
  ForEachNested(46,
                [](const oracle::NestedPaging& nested, const PageFormat& format, unsigned access) {
                  unsigned count = 1;
                  for (unsigned level = 0; level < nested.levels; ++level) count *= 6;
                  for (unsigned number = 0; number < count; ++number) {
                    Tables tables(nested.levels);
                    unsigned rest = number;
                    for (unsigned level = 1; level <= nested.levels; ++level, rest /= 6) {
                      const std::uint64_t bits[] = {7, 6, 5, 3, 7 | kXd, 7 | Bit(50)};
                      tables.Set(level, tables.Target(level) | bits[rest % 6]);
                    }
                    ASSERT_TRUE(AgreesWithNpt(nested, format, tables, access));
                  }
                });
}

TEST(NptOracle, AgreesOnEveryBitOfEveryEntry) {
  for (unsigned m = 36; m <= 52; ++m) {
    ForEachNested(
        m, [m](const oracle::NestedPaging& nested, const PageFormat& format, unsigned access) {
          for (unsigned level = 1; level <= nested.levels; ++level) {
            for (std::uint64_t ps : {0u, 0x80u}) {
              for (unsigned bit = 0; bit < 64; ++bit) {
                Tables tables(nested.levels);
                for (unsigned other = 1; other <= nested.levels; ++other) {
                  tables.Set(other, tables.Target(other) | 7);
                }
                const std::uint64_t base = level > 1 && ps != 0 ? 7 : tables.Target(level) | 7;
                tables.Set(level, (base | ps) ^ Bit(bit));
                ASSERT_TRUE(AgreesWithNpt(nested, format, tables, access))
                    << "M " << m << ", bit " << bit << " of level " << level;
              }
            }
          }
        });
  }
}

}  // namespace
}  // namespace pagesaw
