#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.direct_mmu;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.legacy_format;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.tdp_walker;
import pagesaw.mmu.test_formats;
import pagesaw.mmu.test_memory;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

constexpr Access kRead = Access::Read(Privilege::kUser);
constexpr Access kWrite = Access::Write(Privilege::kUser);
constexpr Access kFetch = Access::Fetch(Privilege::kUser);
constexpr Access kKernelFetch = Access::Fetch(Privilege::kSupervisor);

// Nested tables: root at 0x1000 (PML4), 0x2000, 0x3000, and a PT at 0x4000 for the first 2 MiB.
constexpr Gpa kRoot(0x1000), kPdpt(0x2000), kPd(0x3000), kPt(0x4000);
constexpr std::uint64_t kR = 1, kW = 2, kX = 4, kXu = 0x400, kEptPs = 0x80, kWb = 6u << 3;
constexpr std::uint64_t kEptAll = kR | kW | kX | kXu;
constexpr std::uint64_t kEptA = 0x100, kEptD = 0x200;
constexpr std::uint64_t kP = 1, kU = 4, kA = 0x20, kD = 0x40, kNx = std::uint64_t{1} << 63;
constexpr std::uint64_t kNptAll = kP | kW | kU;

class Flusher final : public TlbFlusher {
 public:
  void FlushAll() override {}
};

// A hypervisor's vCPU with its own memory mapped one to one, and nested tables that look as
// `nested` says. SPTEs of the guest's guest look as `sptes` says.
class GuestMmuTest : public testing::Test {
 protected:
  explicit GuestMmuTest(const PageFormat& nested = ExplicitSecondStage(true), bool tdp = true,
                        const PageFormat& sptes = ExplicitSecondStage(true))
      : nested_codec_(sptes),
        pages_(SpteCodec(tdp ? LegacySecondStage(false) : LinearSpteFormat()), flusher_, 500,
               &tables_, &attributes_, &nested_codec_) {
    nested_ = {.format = nested, .root = kRoot, .root_register = kRoot.bits()};
    Describe();
    root_mmu_ = DirectMmu::Make(pages_, memory_, walker_, Level::kPml4);
    guest_mmu_ = ShadowingMmu::MakeNested(pages_, memory_, tables_, tdp_walker_);
    Enter();
  }

  // One page: 0x5000 of the guest's guest is 0x9000.
  void Describe() {
    const bool ept = nested_.format.layout.read != 0;
    const std::uint64_t link = ept ? kEptAll : kNptAll;
    SetEntry(kRoot, 0, kPdpt.bits() | link);
    SetEntry(kPdpt, 0, kPd.bits() | link);
    SetEntry(kPd, 0, kPt.bits() | link);
    SetEntry(kPt, 5, 0x9000 | link | (ept ? kWb : 0));
  }
  void Enter() {
    tdp_walker_.Reset(nested_);
    guest_mmu_->NestedPagingChanged(nested_);
    (void)guest_mmu_->Root();
  }
  void SetEntry(Gpa table, unsigned index, std::uint64_t entry) {
    memory_.Write<std::uint64_t>(Gpa(table.bits() + 8 * index), entry);
  }
  std::uint64_t Entry(Gpa table, unsigned index) const {
    return memory_.Read<std::uint64_t>(Gpa(table.bits() + 8 * index));
  }
  FaultResolution Meet(ShadowMmu& mmu, std::uint64_t address, Access access) {
    constexpr unsigned kTries = 1000;
    FaultResolution resolution;
    for (unsigned tries = 0; tries < kTries && resolution.outcome == FaultOutcome::kRetry;
         ++tries) {
      if (mmu.roots_obsolete()) (void)mmu.Root();
      resolution = mmu.HandleFault({.address = InputAddress(address), .access = access});
    }
    EXPECT_NE(resolution.outcome, FaultOutcome::kRetry) << "without end";
    const ShadowPages::Lock lock = pages_.Acquire();
    EXPECT_EQ(pages_.Audit().value_or(""), "");
    return resolution;
  }
  FaultOutcome Guest(std::uint64_t address, Access access) {
    return Meet(*guest_mmu_, address, access).outcome;
  }
  FaultOutcome Hypervisor(std::uint64_t address, Access access) {
    return Meet(*root_mmu_, address, access).outcome;
  }
  // What the SPTEs say without asking.
  bool GuestMay(std::uint64_t address, Access access) {
    return static_cast<bool>(guest_mmu_->Inspect(InputAddress(address), access, nullptr));
  }
  bool HypervisorMay(std::uint64_t address, Access access) {
    return static_cast<bool>(root_mmu_->Inspect(InputAddress(address), access, nullptr));
  }
  std::optional<Gpa> Target(std::uint64_t address) {
    const WalkResult result = guest_mmu_->Inspect(InputAddress(address), kRead, nullptr);
    if (!result) return std::nullopt;
    const auto* host = reinterpret_cast<const std::byte*>(result->output.bits());
    return Gpa(static_cast<std::uint64_t>(host - memory_.Find(Gfn{0})->host));
  }

  TestMemory memory_{16u << 20};
  Flusher flusher_;
  MemoryAttributes attributes_;
  GuestTables tables_{memory_, PagingFeatures(), &attributes_};
  CpuWalker walker_{memory_, nullptr, &attributes_};
  std::vector<Gpa> logged_;
  bool log_full_ = false;
  TdpWalker tdp_walker_{memory_, nullptr, &attributes_, [this](Gpa gpa) {
                          logged_.push_back(gpa);
                          return !log_full_;
                        }};
  SpteCodec nested_codec_;
  ShadowPages pages_;
  NestedPaging nested_;
  std::unique_ptr<ShadowMmu> root_mmu_;
  std::unique_ptr<ShadowMmu> guest_mmu_;
};

TEST_F(GuestMmuTest, MapsWhatNestedTablesSay) {
  const FaultResolution read = Meet(*guest_mmu_, 0x5123, kRead);
  EXPECT_EQ(read.outcome, FaultOutcome::kFixed);
  EXPECT_EQ(read.gpa, Gpa(0x9123));
  EXPECT_EQ(Target(0x5123), Gpa(0x9123));
  EXPECT_FALSE(GuestMay(0x6000, kRead));
}

TEST_F(GuestMmuTest, AccessedAndDirtyAreTheHypervisorsToo) {
  Guest(0x5000, kRead);
  for (const Gpa table : {kRoot, kPdpt, kPd}) EXPECT_EQ(Entry(table, 0) & kEptA, kEptA);
  EXPECT_EQ(Entry(kPt, 5) & (kEptA | kEptD), kEptA);
  EXPECT_FALSE(GuestMay(0x5000, kWrite)) << "the first write has to be seen";
  EXPECT_EQ(Guest(0x5000, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(Entry(kPt, 5) & (kEptA | kEptD), kEptA | kEptD);
  EXPECT_TRUE(GuestMay(0x5000, kWrite));
}

TEST_F(GuestMmuTest, WithoutAccessedAndDirtyTheirBitsAreIgnored) {
  nested_.format.accessed_dirty = false;
  Enter();
  EXPECT_EQ(Guest(0x5000, kWrite), FaultOutcome::kFixed);
  EXPECT_TRUE(GuestMay(0x5000, kWrite));
  EXPECT_EQ(Entry(kPt, 5) & (kEptA | kEptD), 0u);
}

// Rights of one entry, at each level: what is refused, and that it is the hypervisor's.
TEST_F(GuestMmuTest, EntriesOfExplicitRightsGrantWhatTheySay) {
  for (unsigned level = 0; level < 4; ++level) {
    const Gpa table = std::vector{kRoot, kPdpt, kPd, kPt}[level];
    const unsigned index = level == 3 ? 5 : 0;
    const std::uint64_t full = Entry(table, index);
    for (std::uint64_t bits :
         {0u, 1u, 3u, 4u, 5u, 7u, 0x400u, 0x401u, 0x403u, 0x404u, 0x405u, 0x407u}) {
      SetEntry(table, index, (full & ~kEptAll) | bits);
      pages_.GuestWrote(Gpa(table.bits() + 8 * index), 8);
      const auto expect = [&](Access access, bool allowed) {
        const FaultOutcome outcome = Guest(0x5000, access);
        const std::string what = "level " + std::to_string(4 - level) + ", bits " +
                                 std::to_string(bits) + ", access " +
                                 std::to_string(access.code_bits());
        EXPECT_EQ(outcome == FaultOutcome::kGuestFault, !allowed) << what;
        EXPECT_EQ(GuestMay(0x5000, access), allowed) << what;
      };
      expect(kRead, (bits & kR) != 0);
      expect(kWrite, (bits & kW) != 0);
      expect(kFetch, (bits & kXu) != 0);
      expect(kKernelFetch, (bits & kX) != 0);
    }
    SetEntry(table, index, full);
    pages_.GuestWrote(Gpa(table.bits() + 8 * index), 8);
  }
}

TEST_F(GuestMmuTest, AMalformedEntryIsTold) {
  SetEntry(kPd, 0, kPt.bits() | kW);
  const FaultResolution fault = Meet(*guest_mmu_, 0x5000, kRead);
  EXPECT_EQ(fault.outcome, FaultOutcome::kGuestFault);
  EXPECT_EQ(fault.guest_fault.kind, WalkFault::Kind::kMalformed);
}

TEST_F(GuestMmuTest, LargePagesStayLarge) {
  SetEntry(kPd, 1, (2u << 20) | kEptAll | kWb | kEptPs);
  EXPECT_EQ(Guest(0x20'0000, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(Target(0x3f'f123), Gpa(0x3f'f123));
  EXPECT_EQ(guest_mmu_->Inspect(InputAddress(0x20'0000), kRead, nullptr)->level, Level::kPd);
}

TEST_F(GuestMmuTest, MemoryThatIsNoneIsADevices) {
  SetEntry(kPt, 6, 0x4000'0000 | kEptAll | kWb);
  const FaultResolution resolution = Meet(*guest_mmu_, 0x6010, kWrite);
  EXPECT_EQ(resolution.outcome, FaultOutcome::kMmio);
  EXPECT_EQ(resolution.gpa, Gpa(0x4000'0010));
}

// The hypervisor's writes to upper tables are seen at once; those to the lowest may wait until it
// says what is to be invalidated.
TEST_F(GuestMmuTest, TheHypervisorsTablesAreWatched) {
  ASSERT_EQ(Hypervisor(kPd.bits(), kWrite), FaultOutcome::kFixed);
  ASSERT_EQ(Hypervisor(kPt.bits(), kWrite), FaultOutcome::kFixed);
  Guest(0x5000, kRead);
  EXPECT_FALSE(HypervisorMay(kPd.bits(), kWrite));
  EXPECT_FALSE(HypervisorMay(kPt.bits(), kWrite));
  EXPECT_TRUE(HypervisorMay(kPd.bits(), kRead));

  const FaultResolution upper = Meet(*root_mmu_, kPd.bits() + 8, kWrite);
  EXPECT_EQ(upper.outcome, FaultOutcome::kWriteProtected);
  EXPECT_EQ(upper.host.bits(), reinterpret_cast<std::uintptr_t>(
                                   memory_.Find(GfnOf(kPd))->HostOf(Gpa(kPd.bits() + 8))));
  EXPECT_FALSE(HypervisorMay(kPd.bits(), kWrite));
  SetEntry(kPd, 0, 0);
  root_mmu_->GuestWrote(kPd, 8);
  EXPECT_FALSE(GuestMay(0x5000, kRead));
  SetEntry(kPd, 0, kPt.bits() | kEptAll);
  Guest(0x5000, kRead);

  EXPECT_EQ(Hypervisor(kPt.bits(), kWrite), FaultOutcome::kFixed);
  EXPECT_TRUE(HypervisorMay(kPt.bits(), kWrite));
  SetEntry(kPt, 5, 0xa000 | kEptAll | kWb);
  EXPECT_EQ(Target(0x5000), Gpa(0x9000));
  guest_mmu_->InvalidateNested({.scope = NestedInvalidation::Scope::kRoot, .root = kRoot});
  Enter();
  EXPECT_FALSE(GuestMay(0x5000, kRead));
  EXPECT_FALSE(HypervisorMay(kPt.bits(), kWrite));
  Guest(0x5000, kRead);
  EXPECT_EQ(Target(0x5000), Gpa(0xa000));
}

TEST_F(GuestMmuTest, ALargePageIsBrokenOverATable) {
  const Gpa table(0x40'1000);
  SetEntry(kPd, 2, table.bits() | kEptAll);
  SetEntry(table, 0, 0x9000 | kEptAll | kWb);
  EXPECT_EQ(Hypervisor(0x50'0000, kWrite), FaultOutcome::kFixed);
  EXPECT_TRUE(HypervisorMay(table.bits(), kWrite)) << "by a page of 2 MiB";
  EXPECT_EQ(Guest(0x40'0000, kRead), FaultOutcome::kFixed);
  EXPECT_FALSE(HypervisorMay(table.bits(), kWrite));
}

TEST_F(GuestMmuTest, EachInvalidationReachesItsOwnRoots) {
  using Scope = NestedInvalidation::Scope;
  struct Row {
    NestedInvalidation gone;
    bool reaches;
  };
  nested_.tag = 7;
  for (const Row& row : {Row{{.scope = Scope::kRoot, .root = Gpa(0x7000)}, false},
                         Row{{.scope = Scope::kRoot, .root = kRoot}, true},
                         Row{{.scope = Scope::kTag, .tag = 6}, false},
                         Row{{.scope = Scope::kTag, .tag = 7}, true}, Row{{}, true}}) {
    SetEntry(kPt, 5, 0x9000 | kEptAll | kWb);
    guest_mmu_->InvalidateNested({});
    Enter();
    Guest(0x5000, kRead);
    Hypervisor(kPt.bits(), kWrite);
    SetEntry(kPt, 5, 0xa000 | kEptAll | kWb);
    guest_mmu_->InvalidateNested(row.gone);
    Enter();
    EXPECT_EQ(GuestMay(0x5000, kRead), !row.reaches);
  }
}

// A tag that has not used a root has cached nothing of it.
TEST_F(GuestMmuTest, AnotherTagFindsNothingStale) {
  Guest(0x5000, kRead);
  Hypervisor(kPt.bits(), kWrite);
  SetEntry(kPt, 5, 0xa000 | kEptAll | kWb);
  Enter();
  EXPECT_TRUE(GuestMay(0x5000, kRead));
  nested_.tag = 1;
  Enter();
  EXPECT_FALSE(GuestMay(0x5000, kRead));
}

// What another vCPU made while this one ran no guest, this one cannot have cached.
TEST_F(GuestMmuTest, WhatOthersMadeMeanwhileIsBroughtUpToDate) {
  Guest(0x5000, kRead);
  TdpWalker other_walker(memory_);
  other_walker.Reset(nested_);
  const auto other = ShadowingMmu::MakeNested(pages_, memory_, tables_, other_walker);
  other->NestedPagingChanged(nested_);
  (void)other->Root();
  SetEntry(kPt, 6, 0xa000 | kEptAll | kWb);
  Meet(*other, 0x6000, kRead);
  Hypervisor(kPt.bits(), kWrite);
  SetEntry(kPt, 6, 0);
  Enter();
  EXPECT_FALSE(GuestMay(0x6000, kRead));
}

TEST_F(GuestMmuTest, RootsAreKept) {
  Guest(0x5000, kRead);
  const Gpa other(0x6000);
  SetEntry(other, 0, kPdpt.bits() | kEptAll);
  nested_.root = other;
  Enter();
  EXPECT_FALSE(GuestMay(0x5000, kRead));
  Guest(0x5000, kRead);
  nested_.root = kRoot;
  Enter();
  EXPECT_TRUE(GuestMay(0x5000, kRead));
  const std::vector<RootInfo> roots = guest_mmu_->Roots();
  ASSERT_EQ(roots.size(), 2u);
  EXPECT_EQ(roots[0].root_register, kRoot.bits());
  EXPECT_TRUE(roots[0].role.guest_mode);
}

TEST_F(GuestMmuTest, ARootInNoMemoryIsAFault) {
  nested_.root = Gpa(0x4000'0000);
  Enter();
  EXPECT_EQ(Guest(0x5000, kRead), FaultOutcome::kGuestFault);
}

TEST_F(GuestMmuTest, AttributesAreThoseOfTheHypervisorsMemory) {
  attributes_.Set(
      Gfn{9}, 1,
      {.rights = Rights(Rights::kRead | Rights::kExecUser), .policy = ViolationPolicy::kStop});
  const FaultResolution refused = Meet(*guest_mmu_, 0x5000, kWrite);
  EXPECT_EQ(refused.outcome, FaultOutcome::kAttributeViolation);
  ASSERT_TRUE(refused.violation);
  EXPECT_EQ(refused.violation->gpa, Gpa(0x9000));
  EXPECT_EQ(Guest(0x5000, kFetch), FaultOutcome::kFixed);
  EXPECT_FALSE(GuestMay(0x5000, kKernelFetch));
  EXPECT_EQ(Guest(0x5000, kKernelFetch), FaultOutcome::kAttributeViolation);
}

// Attributes are checked against the VM's own SPTEs, which may be able to say more.
class SptesThatSayLess : public GuestMmuTest {
 protected:
  SptesThatSayLess() : GuestMmuTest(ExplicitSecondStage(true), true, LegacySecondStage(true)) {}
};

TEST_F(SptesThatSayLess, WhatTheyCannotSayIsRefused) {
  attributes_.Set(Gfn{9}, 1, {.rights = Rights(Rights::kRead | Rights::kExecSupervisor)});
  EXPECT_EQ(Guest(0x5000, kRead), FaultOutcome::kFixed);
  const FaultResolution refused = Meet(*guest_mmu_, 0x5000, kKernelFetch);
  EXPECT_EQ(refused.outcome, FaultOutcome::kAttributeViolation);
  ASSERT_TRUE(refused.violation);
  EXPECT_EQ(refused.violation->gpa, Gpa(0x9000));
}

TEST_F(GuestMmuTest, WhoLogsIsAskedBeforeDirtyIsSet) {
  nested_.logs_dirty = true;
  Enter();
  Guest(0x5000, kRead);
  EXPECT_TRUE(logged_.empty());
  log_full_ = true;
  const FaultResolution full = Meet(*guest_mmu_, 0x5000, kWrite);
  EXPECT_EQ(full.outcome, FaultOutcome::kGuestFault);
  EXPECT_TRUE(full.log_full);
  EXPECT_EQ(Entry(kPt, 5) & kEptD, 0u);
  log_full_ = false;
  EXPECT_EQ(Guest(0x5000, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(logged_, (std::vector{Gpa(0x5000), Gpa(0x5000)}));
  Guest(0x5000, kWrite);
  EXPECT_EQ(logged_.size(), 2u) << "once for each time that D is set";
}

TEST_F(GuestMmuTest, ADirtyLogHearsOfTheGuestsGuest) {
  Guest(0x5000, kWrite);
  ASSERT_TRUE(pages_.StartDirtyLog(*memory_.Find(Gfn{0}), DirtyLogMethod::kWriteProtect));
  EXPECT_FALSE(GuestMay(0x5000, kWrite));
  EXPECT_EQ(Guest(0x5000, kWrite), FaultOutcome::kFixed);
  const auto words = pages_.TakeDirtyLog(memory_.Find(Gfn{0})->id);
  ASSERT_TRUE(words);
  EXPECT_NE((*words)[0] & 1u << 9, 0u);
}

// What D in an SPTE of a tree that is not shared said is not lost when a table appears below it.
TEST_F(GuestMmuTest, ADirtyLogHearsOfWritesToAPageThatThenBecomesATable) {
  ASSERT_TRUE(pages_.StartDirtyLog(*memory_.Find(Gfn{0}), DirtyLogMethod::kDirtyBits));
  Hypervisor(kPt.bits(), kRead);
  HostTableSpace<true> space;
  const ShadowRoot root = root_mmu_->Root();
  ASSERT_TRUE(WalkTables<AnyLayout>(root_mmu_->format(),
                                    {.table = OutputAddress(root.table.bits()),
                                     .level = root.level,
                                     .address = InputAddress(kPt.bits()),
                                     .access = kWrite},
                                    space));
  Guest(0x5000, kRead);
  EXPECT_FALSE(HypervisorMay(kPt.bits(), kWrite));
  const auto words = pages_.TakeDirtyLog(memory_.Find(Gfn{0})->id);
  ASSERT_TRUE(words);
  EXPECT_NE((*words)[0] >> GfnOf(kPt).number & 1, 0u);
}

// -- tables in the legacy layout

PageFormat Npt(PagingMode mode, bool split = false) {
  return MakeLegacyFormat({.mode = mode,
                           .permissions = {.second_stage = true,
                                           .split_execute = split,
                                           .no_execute = mode != PagingMode::k32Bit}});
}

class LegacyTables : public GuestMmuTest {
 protected:
  LegacyTables() : GuestMmuTest(Npt(PagingMode::k4Level)) {}
};

// A nested access is a user's whoever makes it.
TEST_F(LegacyTables, EveryAccessIsAUsers) {
  EXPECT_EQ(Guest(0x5000, kKernelFetch), FaultOutcome::kFixed);
  SetEntry(kPt, 5, 0x9000 | kP | kW);
  pages_.GuestWrote(kPt, 4096);
  EXPECT_EQ(Guest(0x5000, Access::Read(Privilege::kSupervisor)), FaultOutcome::kGuestFault);
}

struct TrapRow {
  std::uint64_t entry;
  bool read, write, kernel_fetch, user_fetch;
};

TEST_F(LegacyTables, UserPagesTrapSupervisorFetches) {
  nested_.format = Npt(PagingMode::k4Level, true);
  Enter();
  for (const TrapRow& row :
       {TrapRow{kP | kW, true, true, true, true}, TrapRow{kP | kW | kU, true, true, false, true},
        TrapRow{kP | kU, true, false, false, true},
        TrapRow{kP | kW | kU | kNx, true, true, false, false},
        TrapRow{kP | kW | kNx, true, true, false, false}}) {
    SetEntry(kPt, 5, 0x9000 | row.entry);
    pages_.GuestWrote(kPt, 4096);
    const auto allowed = [&](Access access) {
      return Guest(0x5000, access) != FaultOutcome::kGuestFault && GuestMay(0x5000, access);
    };
    EXPECT_EQ(allowed(kRead), row.read) << row.entry;
    EXPECT_EQ(allowed(kWrite), row.write) << row.entry;
    EXPECT_EQ(allowed(kKernelFetch), row.kernel_fetch) << row.entry;
    EXPECT_EQ(allowed(kFetch), row.user_fetch) << row.entry;
  }
}

TEST_F(LegacyTables, FiveLevels) {
  const Gpa top(0x6000);
  SetEntry(top, 1, kRoot.bits() | kNptAll);
  nested_.format = Npt(PagingMode::k5Level);
  nested_.level = Level::kPml5;
  nested_.root = top;
  Enter();
  const std::uint64_t at = (std::uint64_t{1} << 48) + 0x5000;
  EXPECT_EQ(Guest(at, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(Target(at), Gpa(0x9000));
  EXPECT_EQ(Guest(0x5000, kRead), FaultOutcome::kGuestFault);
}

TEST_F(LegacyTables, PdptesAreReadByEveryWalk) {
  const Gpa pdptes(0x6020);
  SetEntry(pdptes, 1, kPd.bits() | kP);
  nested_.format = Npt(PagingMode::kPae);
  nested_.level = Level::kPdpt;
  nested_.root = pdptes;
  nested_.root_has_pdptes = true;
  Enter();
  EXPECT_EQ(Guest(0x4000'5000, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(Target(0x4000'5000), Gpa(0x9000));
  EXPECT_EQ(Guest(0x5000, kRead), FaultOutcome::kGuestFault);
  EXPECT_EQ(Guest(0x1'4000'5000, kRead), FaultOutcome::kGuestFault) << "beyond 4 GiB";
  SetEntry(pdptes, 0, kPd.bits() | kP);
  EXPECT_NE(Guest(0x5000, kRead), FaultOutcome::kGuestFault);
  EXPECT_EQ(Target(0x5000), Gpa(0x9000));
  SetEntry(pdptes, 2, kPd.bits() | kP | kW);
  const FaultResolution reserved = Meet(*guest_mmu_, 0x8000'5000, kRead);
  EXPECT_EQ(reserved.guest_fault.kind, WalkFault::Kind::kMalformed);
  EXPECT_EQ(reserved.guest_fault.address, InputAddress(0x8000'5000));
}

TEST_F(LegacyTables, FourByteEntries) {
  const Gpa directory(0x6000), table(0x7000);
  memory_.Write<std::uint32_t>(Gpa(directory.bits() + 4 * 513), table.bits() | kNptAll);
  memory_.Write<std::uint32_t>(Gpa(table.bits() + 4 * 700), 0xb000 | kNptAll);
  memory_.Write<std::uint32_t>(Gpa(directory.bits() + 4), kNptAll | 0x80);
  nested_.format = Npt(PagingMode::k32Bit);
  nested_.level = Level::kPd;
  nested_.root = directory;
  Enter();
  const std::uint64_t at = 513ull << 22 | 700ull << 12;
  EXPECT_EQ(Guest(at, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(Target(at), Gpa(0xb000));
  EXPECT_EQ(memory_.Read<std::uint32_t>(Gpa(table.bits() + 4 * 700)) & (kA | kD), kA | kD);
  EXPECT_EQ(Guest(0x40'0000 + 0x21'0000, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(Target(0x40'0000 + 0x21'0000), Gpa(0x21'0000));
  EXPECT_EQ(Guest(0x1'0000'0000, kRead), FaultOutcome::kGuestFault);
}

// -- a hypervisor that runs on shadow paging itself

class OverShadowPaging : public GuestMmuTest {
 protected:
  OverShadowPaging() : GuestMmuTest(ExplicitSecondStage(true), false) {
    // The hypervisor's own tables: linear 0 to 2 MiB is physical, by a PT at 0x2'3000.
    constexpr std::uint64_t kAll = kNptAll | kA | kD;
    for (std::uint64_t i = 0; i < 3; ++i) {
      SetEntry(Gpa(0x2'0000 + 0x1000 * i), 0, 0x2'1000 + 0x1000 * i | kAll);
    }
    for (unsigned i = 0; i < 512; ++i) SetEntry(Gpa(0x2'3000), i, 0x1000u * i | kAll);
    const PagingState state = {.cr0 = kCr0Pe | kCr0Pg | kCr0Wp,
                               .cr3 = 0x2'0000,
                               .cr4 = kCr4Pae,
                               .efer = kEferLme | kEferLma | kEferNxe};
    walker_.Reset(state);
    root_mmu_ = ShadowingMmu::Make(pages_, memory_, tables_, walker_);
    root_mmu_->PagingChanged(state, {});
    (void)root_mmu_->Root();
  }
};

TEST_F(OverShadowPaging, NestedTablesAreWatchedInItsLinearSpace) {
  ASSERT_EQ(Hypervisor(kPd.bits(), kWrite), FaultOutcome::kFixed);
  Guest(0x5000, kRead);
  EXPECT_EQ(Target(0x5000), Gpa(0x9000));
  EXPECT_FALSE(HypervisorMay(kPd.bits(), kWrite));
  EXPECT_EQ(Hypervisor(kPd.bits(), kWrite), FaultOutcome::kWriteProtected);
}

TEST_F(OverShadowPaging, ItsOwnTablesAreWatchedInItsGuest) {
  SetEntry(kPt, 6, 0x2'2000 | kEptAll | kWb);
  ASSERT_EQ(Guest(0x6000, kWrite), FaultOutcome::kFixed);
  Hypervisor(0x1000, kRead);  // makes shadow pages of its tables
  EXPECT_FALSE(GuestMay(0x6000, kWrite));
  EXPECT_EQ(Guest(0x6000, kWrite), FaultOutcome::kWriteProtected);
}

// The same frame as a table of both kinds, whose A and D are not the same bits.
TEST_F(OverShadowPaging, AFrameIsATableOfOneKindAtATime) {
  const auto is_of_guest_mode = [this] {
    std::set<bool> kinds;
    for (const ShadowPageInfo& page : pages_.List(0, 1000)) {
      if (page.gfn == Gfn{0x23} && !page.role.direct) kinds.insert(page.role.guest_mode);
    }
    return kinds;
  };
  Hypervisor(0x1000, kRead);
  EXPECT_EQ(is_of_guest_mode(), std::set{false});
  nested_.root = Gpa(0x2'0000);
  Enter();
  Guest(0x1000, kRead);
  EXPECT_EQ(is_of_guest_mode(), std::set{true});
  Hypervisor(0x1000, kRead);
  EXPECT_EQ(is_of_guest_mode(), std::set{false});
}

}  // namespace
}  // namespace pagesaw
