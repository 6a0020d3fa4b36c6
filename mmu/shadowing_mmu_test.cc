#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_memory;

namespace pagesaw {
namespace {

constexpr Access kUserRead = Access::Read(Privilege::kUser);
constexpr Access kRead = Access::Read(Privilege::kSupervisor);
constexpr Access kWrite = Access::Write(Privilege::kSupervisor);
constexpr Access kFetch = Access::Fetch(Privilege::kSupervisor);

constexpr std::uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPs = 0x80;
constexpr std::uint64_t kAll = kP | kW | kU | kA | kD;

// Tables of a 4-level guest: PML4 at 0x1000, PDPT at 0x2000, PD at 0x3000, PT at 0x4000. Linear
// 0 to 2 MiB goes through the PT.
constexpr Gpa kPml4(0x1000), kPdpt(0x2000), kPd(0x3000), kPt(0x4000);

class CountingFlusher final : public TlbFlusher {
 public:
  void FlushAll() override { ++count; }
  unsigned count = 0;
};

class ShadowingMmuTest : public testing::Test {
 protected:
  ShadowingMmuTest() { Make(1000); }

  void Make(std::size_t limit) {
    mmu_.reset();
    pages_ = std::make_unique<ShadowPages>(SpteCodec(LinearSpteFormat()), flusher_, limit, &tables_,
                                           &attributes_);
    mmu_ = ShadowingMmu::Make(*pages_, memory_, tables_, walker_);
    SetEntry(kPml4, 0, kPdpt.bits() | kAll);
    SetEntry(kPdpt, 0, kPd.bits() | kAll);
    SetEntry(kPd, 0, kPt.bits() | kAll);
    state_ = {.cr0 = kCr0Pe | kCr0Pg | kCr0Wp,
              .cr3 = kPml4.bits(),
              .cr4 = kCr4Pae,
              .efer = kEferLme | kEferLma | kEferNxe};
    Load();
  }
  // Loads the registers of `state_`; `scope` is what that invalidates of the PCID.
  void Load(Invalidation::Scope scope = Invalidation::Scope::kAddressSpace) {
    walker_.Reset(state_);
    mmu_->PagingChanged(state_, {.scope = scope, .pcid = state_.pcid()});
    (void)mmu_->Root();
  }
  void LoadCr3(std::uint64_t cr3, Invalidation::Scope scope = Invalidation::Scope::kAddressSpace) {
    state_.cr3 = cr3;
    Load(scope);
  }
  void SetEntry(Gpa table, unsigned index, std::uint64_t entry) {
    memory_.Write<std::uint64_t>(Gpa(table.bits() + 8 * index), entry);
  }
  // As an emulated or a host's write.
  void SeenEntry(Gpa table, unsigned index, std::uint64_t entry) {
    SetEntry(table, index, entry);
    mmu_->GuestWrote(Gpa(table.bits() + 8 * index), 8);
  }
  FaultOutcome Fault(std::uint64_t linear, Access access) {
    const FaultOutcome outcome =
        mmu_->HandleFault({.address = InputAddress(linear), .access = access}).outcome;
    const ShadowPages::Lock lock = pages_->Acquire();
    EXPECT_EQ(pages_->Audit().value_or(""), "");
    return outcome;
  }
  bool Allows(std::uint64_t linear, Access access) {
    return static_cast<bool>(mmu_->Inspect(InputAddress(linear), access, nullptr));
  }
  const std::byte* Host(std::uint64_t linear) {
    const WalkResult result = mmu_->Inspect(InputAddress(linear), kRead, nullptr);
    return result ? reinterpret_cast<const std::byte*>(result->output.bits()) : nullptr;
  }
  bool IsUnsync(Gpa table) {
    for (const ShadowPageInfo& page : pages_->List(0, 1000)) {
      if (page.gfn == GfnOf(table) && page.unsync) return true;
    }
    return false;
  }
  const std::byte* HostOf(std::uint64_t gpa) {
    return memory_.Find(GfnOf(Gpa(gpa)))->HostOf(Gpa(gpa));
  }

  TestMemory memory_{16u << 20};
  CountingFlusher flusher_;
  MemoryAttributes attributes_;
  GuestTables tables_{memory_, PagingFeatures(), &attributes_};
  CpuWalker walker_{memory_, nullptr, &attributes_};
  PagingState state_;
  std::unique_ptr<ShadowPages> pages_;
  std::unique_ptr<ShadowingMmu> mmu_;
};

TEST_F(ShadowingMmuTest, MapsWhatTheGuestMaps) {
  SetEntry(kPt, 5, 0x8000 | kAll);
  EXPECT_EQ(Fault(0x5123, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(Host(0x5123), HostOf(0x8123));
  EXPECT_EQ(Fault(0x5123, kRead), FaultOutcome::kSpurious);
  EXPECT_EQ(Fault(0x6000, kRead), FaultOutcome::kGuestFault);
}

TEST_F(ShadowingMmuTest, ShadowStackAdmitsItsOwnAccessesAndNoOrdinaryWrite) {
  constexpr Access kPush = Access::ShadowStackWrite(Privilege::kSupervisor);
  state_.cr4 |= kCr4Cet;
  Load();
  SetEntry(kPt, 5, 0x8000 | kP | kA | kD);
  EXPECT_EQ(Fault(0x5000, kPush), FaultOutcome::kFixed);
  EXPECT_TRUE(Allows(0x5000, kPush));
  EXPECT_TRUE(Allows(0x5000, Access::ShadowStackRead(Privilege::kSupervisor)));
  EXPECT_TRUE(Allows(0x5000, kRead));
  EXPECT_FALSE(Allows(0x5000, kWrite));
  EXPECT_FALSE(Allows(0x5000, Access::ShadowStackWrite(Privilege::kUser)));
  EXPECT_EQ(Fault(0x5000, kWrite), FaultOutcome::kGuestFault);
  // The page becomes an ordinary one.
  SeenEntry(kPt, 5, 0x8000 | kP | kW | kA | kD);
  EXPECT_EQ(Fault(0x5000, kPush), FaultOutcome::kGuestFault);
  EXPECT_EQ(Fault(0x5000, kWrite), FaultOutcome::kFixed);
  EXPECT_FALSE(Allows(0x5000, kPush));
}

TEST_F(ShadowingMmuTest, OrdinaryReadOnlyPagesAreNoShadowStacks) {
  state_.cr4 |= kCr4Cet;
  Load();
  SetEntry(kPt, 5, 0x8000 | kP | kA);
  SetEntry(kPt, 6, 0x9000 | kP | kW | kA | kD);
  EXPECT_EQ(Fault(0x5000, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(Fault(0x6000, kRead), FaultOutcome::kFixed);
  for (std::uint64_t linear : {0x5000, 0x6000}) {
    EXPECT_FALSE(Allows(linear, Access::ShadowStackRead(Privilege::kSupervisor))) << linear;
  }
}

// A shadow stack that lies in a table of the guest's: the table is watched, so every access is made
// for the guest.
TEST_F(ShadowingMmuTest, ShadowStackInATableIsLent) {
  state_.cr4 |= kCr4Cet;
  Load();
  SetEntry(kPt, 5, kPd.bits() | kP | kA | kD);
  for (Access access : {Access::ShadowStackRead(Privilege::kSupervisor),
                        Access::ShadowStackWrite(Privilege::kSupervisor)}) {
    EXPECT_EQ(Fault(0x5000, access), FaultOutcome::kWriteProtected);
    EXPECT_FALSE(Allows(0x5000, access));
  }
  EXPECT_TRUE(Allows(0x5000, kRead));
}

// The SPTE of a shadow stack whose frame becomes a table loses the right to write it.
TEST_F(ShadowingMmuTest, ShadowStackThatBecomesATableIsWatched) {
  constexpr Access kPush = Access::ShadowStackWrite(Privilege::kSupervisor);
  state_.cr4 |= kCr4Cet;
  Load();
  SetEntry(kPt, 5, 0x8000 | kP | kA | kD);
  EXPECT_EQ(Fault(0x5000, kPush), FaultOutcome::kFixed);
  SeenEntry(kPd, 1, 0x8000 | kAll);
  SetEntry(Gpa(0x8000), 3, 0x9000 | kAll);
  Fault(0x20'3000, kRead);
  EXPECT_TRUE(Allows(0x20'3000, kRead));
  EXPECT_FALSE(Allows(0x5000, kPush));
}

TEST_F(ShadowingMmuTest, FirstWriteToACleanPageSetsDirty) {
  SetEntry(kPt, 5, 0x8000 | kP | kW);
  EXPECT_EQ(Fault(0x5000, kRead), FaultOutcome::kFixed);
  EXPECT_FALSE(Allows(0x5000, kWrite));
  EXPECT_EQ(memory_.Read<std::uint64_t>(Gpa(kPt.bits() + 40)), 0x8000 | kP | kW | kA);
  EXPECT_EQ(Fault(0x5000, kWrite), FaultOutcome::kFixed);
  EXPECT_TRUE(Allows(0x5000, kWrite));
  EXPECT_EQ(memory_.Read<std::uint64_t>(Gpa(kPt.bits() + 40)), 0x8000 | kP | kW | kA | kD);
}

TEST_F(ShadowingMmuTest, SupervisorWriteWithoutWpTakesThePageFromUsers) {
  state_.cr0 &= ~kCr0Wp;
  state_.cr4 |= kCr4Smep;
  Load();
  SetEntry(kPt, 5, 0x8000 | kP | kU);
  EXPECT_EQ(Fault(0x5000, kUserRead), FaultOutcome::kFixed);
  EXPECT_TRUE(Allows(0x5000, kUserRead));
  EXPECT_EQ(Fault(0x5000, kWrite), FaultOutcome::kFixed);
  EXPECT_TRUE(Allows(0x5000, kWrite));
  EXPECT_FALSE(Allows(0x5000, kUserRead));
  EXPECT_FALSE(Allows(0x5000, kFetch)) << "SMEP refuses it";
  EXPECT_EQ(Fault(0x5000, kFetch), FaultOutcome::kGuestFault);
  const unsigned flushes = flusher_.count;
  EXPECT_EQ(Fault(0x5000, kUserRead), FaultOutcome::kFixed);
  EXPECT_FALSE(Allows(0x5000, kWrite));
  EXPECT_GT(flusher_.count, flushes);
}

TEST_F(ShadowingMmuTest, SupervisorWriteWithoutWpUnderSmapIsMadeForTheGuest) {
  state_.cr0 &= ~kCr0Wp;
  state_.cr4 |= kCr4Smap;
  Load();
  SetEntry(kPt, 5, 0x8000 | kP | kU);
  EXPECT_EQ(Fault(0x5000, kWrite.WithSmapWaived()), FaultOutcome::kWriteProtected);
  EXPECT_FALSE(Allows(0x5000, kRead)) << "SMAP refuses it";
}

TEST_F(ShadowingMmuTest, TablesAboveTheLowestLevelStayProtected) {
  SetEntry(kPt, 3, kPd.bits() | kAll);
  EXPECT_EQ(Fault(0x3000, kWrite), FaultOutcome::kWriteProtected);
  EXPECT_TRUE(Allows(0x3000, kRead));
  EXPECT_FALSE(Allows(0x3000, kWrite));
}

TEST_F(ShadowingMmuTest, SeenWritesTakeEffectAtOnce) {
  SetEntry(kPt, 5, 0x8000 | kAll);
  EXPECT_EQ(Fault(0x5000, kRead), FaultOutcome::kFixed);
  SeenEntry(kPt, 6, 0x9000 | kAll);
  EXPECT_NE(Host(0x5000), nullptr) << "another entry";
  const unsigned flushes = flusher_.count;
  SeenEntry(kPt, 5, 0x9000 | kAll);
  EXPECT_EQ(Host(0x5000), nullptr);
  EXPECT_GT(flusher_.count, flushes);
}

TEST_F(ShadowingMmuTest, WritesThatClearAccessedTakeTheSpteAway) {
  SetEntry(kPt, 5, 0x8000 | kAll);
  EXPECT_EQ(Fault(0x5000, kRead), FaultOutcome::kFixed);
  SeenEntry(kPt, 5, 0x8000 | (kAll & ~kA));
  EXPECT_EQ(Host(0x5000), nullptr);
}

// The lowest tables may be written unseen, until the architecture drops translations.
class ShadowingMmuUnsync : public ShadowingMmuTest {
 protected:
  ShadowingMmuUnsync() {
    SetEntry(kPt, 4, kPt.bits() | kAll);
    SetEntry(kPt, 5, 0x8000 | kAll);
    SetEntry(kPt, 6, 0x9000 | kAll);
    EXPECT_EQ(Fault(0x5000, kRead), FaultOutcome::kFixed);
    EXPECT_EQ(Fault(0x6000, kRead), FaultOutcome::kFixed);
    EXPECT_EQ(Fault(0x4000, kRead), FaultOutcome::kFixed);
    EXPECT_FALSE(Allows(0x4000, kWrite));
    EXPECT_EQ(Fault(0x4000, kWrite), FaultOutcome::kFixed);
    EXPECT_TRUE(Allows(0x4000, kWrite));
    SetEntry(kPt, 5, 0xa000 | kAll);
    SetEntry(kPt, 6, 0xb000 | kAll);
  }
};

TEST_F(ShadowingMmuUnsync, InvalidatingOneAddressDropsItsSpteAlone) {
  mmu_->Invalidate({.scope = Invalidation::Scope::kAddress, .linear = Gva(0x5000)});
  EXPECT_EQ(Host(0x5000), nullptr);
  EXPECT_EQ(Host(0x6000), HostOf(0x9000));
  EXPECT_EQ(Fault(0x5000, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(Host(0x5000), HostOf(0xa000));
}

TEST_F(ShadowingMmuUnsync, LoadingCr3BringsAllUpToDateAndWatchesAgain) {
  Load();
  EXPECT_EQ(Host(0x5000), nullptr);
  EXPECT_EQ(Host(0x6000), nullptr);
  EXPECT_FALSE(Allows(0x4000, kWrite));
}

TEST_F(ShadowingMmuUnsync, TablesThatTheNewRootDoesNotLeadToStayAsTheyAre) {
  LoadCr3(0x7000);
  EXPECT_TRUE(IsUnsync(kPt));
  LoadCr3(kPml4.bits());
  EXPECT_FALSE(IsUnsync(kPt));
  EXPECT_EQ(Host(0x5000), nullptr);
}

TEST_F(ShadowingMmuUnsync, ALoadThatKeepsTranslationsKeepsSptes) {
  state_.cr4 |= kCr4Pcide;
  Load(Invalidation::Scope::kNothing);
  LoadCr3(0x7001, Invalidation::Scope::kNothing);
  LoadCr3(kPml4.bits(), Invalidation::Scope::kNothing);
  EXPECT_EQ(Host(0x5000), HostOf(0x8000));
  EXPECT_EQ(Host(0x6000), HostOf(0x9000));
  LoadCr3(0x7001, Invalidation::Scope::kNothing);
  LoadCr3(kPml4.bits());
  EXPECT_EQ(Host(0x5000), nullptr);
}

// The same table under another PCID is another address space, which has cached nothing.
TEST_F(ShadowingMmuUnsync, APcidThatIsNewToARootFindsNothingStale) {
  state_.cr4 |= kCr4Pcide;
  LoadCr3(kPml4.bits() | 5, Invalidation::Scope::kNothing);
  EXPECT_EQ(Host(0x5000), nullptr);
}

struct InvpcidCase {
  const char* name;
  Invalidation invalidation;
  bool keeps_5000;
  bool keeps_6000;
};

class ShadowingMmuInvpcid : public ShadowingMmuUnsync,
                            public testing::WithParamInterface<InvpcidCase> {};

// Of PCID 0, whose root is current or kept for later.
TEST_P(ShadowingMmuInvpcid, ActsOnTheCurrentRoot) {
  mmu_->Invalidate(GetParam().invalidation);
  if (mmu_->roots_obsolete()) (void)mmu_->Root();
  EXPECT_EQ(Host(0x5000), GetParam().keeps_5000 ? HostOf(0x8000) : nullptr);
  EXPECT_EQ(Host(0x6000), GetParam().keeps_6000 ? HostOf(0x9000) : nullptr);
}

TEST_P(ShadowingMmuInvpcid, ActsOnARootThatIsKept) {
  state_.cr4 |= kCr4Pcide;
  LoadCr3(0x7001, Invalidation::Scope::kNothing);
  mmu_->Invalidate(GetParam().invalidation);
  LoadCr3(kPml4.bits(), Invalidation::Scope::kNothing);
  EXPECT_EQ(Host(0x5000), GetParam().keeps_5000 ? HostOf(0x8000) : nullptr);
  EXPECT_EQ(Host(0x6000), GetParam().keeps_6000 ? HostOf(0x9000) : nullptr);
}

using Scope = Invalidation::Scope;
INSTANTIATE_TEST_SUITE_P(
    Types, ShadowingMmuInvpcid,
    testing::Values(
        InvpcidCase{"Address", {Scope::kAddress, 0, Gva(0x5fff)}, false, true},
        InvpcidCase{"AddressSpace", {Scope::kAddressSpace, 0, Gva(0x5000)}, false, false},
        InvpcidCase{"AnotherAddressSpace", {Scope::kAddressSpace, 7, Gva(0x5000)}, true, true},
        InvpcidCase{"Everything", {Scope::kEverything, 7, Gva(0x5000)}, false, false}),
    [](const auto& info) { return std::string(info.param.name); });

// A second vCPU with the same registers.
class ShadowingMmuTwoVcpus : public ShadowingMmuUnsync {
 protected:
  ShadowingMmuTwoVcpus() {
    other_walker_.Reset(state_);
    other_->PagingChanged(state_, {.scope = Scope::kAddressSpace});
  }
  FaultOutcome OtherFault(std::uint64_t linear, Access access) {
    return other_->HandleFault({.address = InputAddress(linear), .access = access}).outcome;
  }

  CpuWalker other_walker_{memory_};
  std::unique_ptr<ShadowingMmu> other_ =
      ShadowingMmu::Make(*pages_, memory_, tables_, other_walker_);
};

// It has cached nothing of what another has made to be cached meanwhile.
TEST_F(ShadowingMmuTwoVcpus, WhatTheOtherMadeMeanwhileIsNotTrusted) {
  (void)other_->Root();  // in step again: 0x5000 and 0x6000 are not mapped
  state_.cr4 |= kCr4Pcide;
  LoadCr3(0x7001, Scope::kNothing);
  EXPECT_EQ(OtherFault(0x4000, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(OtherFault(0x5000, kRead), FaultOutcome::kFixed);
  SetEntry(kPt, 5, 0xc000 | kAll);
  LoadCr3(kPml4.bits(), Scope::kNothing);
  EXPECT_EQ(Host(0x5000), nullptr);
}

TEST_F(ShadowingMmuTwoVcpus, ALoadOfCr3OnTheOtherSeesTheWrite) {
  (void)other_->Root();
  EXPECT_FALSE(other_->Inspect(InputAddress(0x5000), kRead, nullptr));
  EXPECT_EQ(OtherFault(0x5000, kRead), FaultOutcome::kFixed);
  EXPECT_EQ(Host(0x5000), HostOf(0xa000));
}

TEST_F(ShadowingMmuUnsync, ANewWayAboveFindsNothingStaleBelow) {
  SeenEntry(kPml4, 1, kPdpt.bits() | kAll);
  constexpr std::uint64_t kSecond = std::uint64_t{1} << 39;
  (void)Fault(kSecond + 0x4000, kRead);
  EXPECT_NE(Host(kSecond + 0x4000), nullptr);
  EXPECT_EQ(Host(kSecond + 0x5000), nullptr);
}

TEST_F(ShadowingMmuUnsync, ANewWayToTheTableFindsNothingStale) {
  SeenEntry(kPd, 1, kPt.bits() | kAll);
  (void)Fault(0x20'4000, kRead);
  EXPECT_NE(Host(0x20'4000), nullptr);
  EXPECT_EQ(Host(0x20'5000), nullptr);
}

TEST_F(ShadowingMmuTest, AFrameThatBecomesATableIsFlushedFromTlbs) {
  SetEntry(kPt, 5, 0x8000 | kAll);
  EXPECT_EQ(Fault(0x5000, kWrite), FaultOutcome::kFixed);
  const unsigned flushes = flusher_.count;
  SetEntry(Gpa(0x8000), 0, 0x9000 | kAll);
  SetEntry(kPd, 1, 0x8000 | kAll);
  EXPECT_EQ(Fault(0x20'0000, kRead), FaultOutcome::kFixed);
  EXPECT_FALSE(Allows(0x5000, kWrite));
  EXPECT_GT(flusher_.count, flushes);
}

TEST_F(ShadowingMmuTest, QuadrantsOfA32BitGuest) {
  state_ = {.cr0 = kCr0Pe | kCr0Pg | kCr0Wp, .cr3 = 0x5000, .cr4 = kCr4Pse};
  Load();
  // The last page of the directory's entry 700 through a table's entry 900.
  memory_.Write<std::uint32_t>(Gpa(0x5000 + 4 * 700), 0x6000 | kAll);
  memory_.Write<std::uint32_t>(Gpa(0x6000 + 4 * 900), 0x9000 | kAll);
  memory_.Write<std::uint32_t>(Gpa(0x5000 + 4 * 701), 0x40'0000 | kAll | kPs);
  const std::uint64_t linear = std::uint64_t{700} << 22 | 900u << 12;
  EXPECT_EQ(Fault(linear, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(Host(linear), HostOf(0x9000));
  const std::uint64_t large = (std::uint64_t{701} << 22) + 0x20'1000;
  EXPECT_EQ(Fault(large, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(Host(large), HostOf(0x60'1000)) << "the upper half of a 4 MiB page";
}

TEST_F(ShadowingMmuTest, ReturnsToAPreviousRoot) {
  SetEntry(kPt, 5, 0x8000 | kAll);
  EXPECT_EQ(Fault(0x5000, kRead), FaultOutcome::kFixed);
  const Hpa first = mmu_->Root().table;
  state_.cr3 = 0x7000;
  Load();
  EXPECT_NE(mmu_->Root().table, first);
  state_.cr3 = kPml4.bits();
  Load();
  EXPECT_EQ(mmu_->Root().table, first);
  EXPECT_EQ(Host(0x5000), HostOf(0x8000));
  EXPECT_EQ(mmu_->Roots().size(), 2u);
}

TEST_F(ShadowingMmuTest, ManyAddressesOfOneFrame) {
  constexpr unsigned kTables = 8;
  for (unsigned t = 0; t < kTables; ++t) {
    SetEntry(kPd, t, (0x10'0000 + 0x1000 * t) | kAll);
    for (unsigned i = 0; i < 512; ++i) SetEntry(Gpa(0x10'0000 + 0x1000 * t), i, 0x8000 | kAll);
  }
  for (std::uint64_t page = 0; page < kTables * 512; ++page) {
    const FaultResolution result =
        mmu_->HandleFault({.address = InputAddress(page << 12), .access = kWrite});
    ASSERT_EQ(result.outcome, FaultOutcome::kFixed) << page;
  }
  const ShadowPages::Lock lock = pages_->Acquire();
  EXPECT_EQ(pages_->Audit().value_or(""), "");
}

TEST_F(ShadowingMmuTest, StaysWithinItsLimit) {
  Make(20);
  for (unsigned i = 0; i < 400; ++i) {
    const std::uint64_t table = 0x10'0000 + 0x1000 * i;
    SeenEntry(kPd, i, table | kAll);
    SetEntry(Gpa(table), 0, 0x8000 | kAll);
    ASSERT_EQ(Fault(std::uint64_t{i} << 21, kRead), FaultOutcome::kFixed) << i;
    ASSERT_LE(pages_->Statistics().shadow_pages, 20u);
  }
}

TEST_F(ShadowingMmuTest, AddressesWithoutMemoryAreDevices) {
  SetEntry(kPt, 5, 0xfee0'0000 | kAll);
  const FaultResolution result =
      mmu_->HandleFault({.address = InputAddress(0x5020), .access = kRead});
  EXPECT_EQ(result.outcome, FaultOutcome::kMmio);
  EXPECT_EQ(result.gpa, Gpa(0xfee0'0020));
  EXPECT_EQ(mmu_->Inspect(InputAddress(0x5020), kRead, nullptr).fault().kind,
            WalkFault::Kind::kMalformed);
}

TEST_F(ShadowingMmuTest, LargePagesStopAtShadowedTables) {
  SetEntry(kPd, 1, 0 | kAll | kPs);          // holds the tables
  SetEntry(kPd, 2, 0x20'0000 | kAll | kPs);  // does not
  EXPECT_EQ(Fault(0x20'0000 + 0x8000, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(Fault(0x20'0000 + kPd.bits(), kWrite), FaultOutcome::kWriteProtected);
  EXPECT_EQ(Fault(0x40'0000, kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(pages_->Statistics().pages_2m, 1u);
  EXPECT_EQ(Host(0x20'8000), HostOf(0x8000));
}

// -- attributes

class ShadowingAttributes : public ShadowingMmuTest {
 protected:
  static constexpr std::uint64_t kPage = 0x8000;
  void Set(std::uint64_t gpa, unsigned rights) {
    const Gfn gfn = GfnOf(Gpa(gpa));
    if (attributes_.Set(gfn, 1, {.rights = Rights(rights)}) ==
        MemoryAttributes::Change::kRestricted) {
      pages_->AttributesChanged(gfn, 1);
    }
  }
};

TEST_F(ShadowingAttributes, WhosePageItIsChoosesTheExecuteRight) {
  constexpr Access kUserFetch = Access::Fetch(Privilege::kUser);
  SetEntry(kPt, 5, kPage | kP | kW | kA | kD);  // the same page for the supervisor
  SetEntry(kPt, 6, kPage | kAll);               // and for users
  for (unsigned execute : {0u, unsigned{Rights::kExecSupervisor}, unsigned{Rights::kExecUser}}) {
    Set(kPage, Rights::kRead | Rights::kWrite | execute);
    const bool supervisor = execute == Rights::kExecSupervisor;
    const bool user = execute == Rights::kExecUser;
    EXPECT_EQ(Fault(0x5000, kFetch),
              supervisor ? FaultOutcome::kFixed : FaultOutcome::kAttributeViolation);
    EXPECT_EQ(Fault(0x6000, kUserFetch),
              user ? FaultOutcome::kFixed : FaultOutcome::kAttributeViolation);
    EXPECT_EQ(Fault(0x6000, kFetch),
              user ? FaultOutcome::kSpurious : FaultOutcome::kAttributeViolation)
        << "a user's page, whoever fetches";
    (void)Fault(0x5000, kWrite);
    (void)Fault(0x6000, kWrite);
    EXPECT_EQ(Allows(0x5000, kFetch), supervisor);
    EXPECT_EQ(Allows(0x6000, kFetch), user);
    EXPECT_TRUE(Allows(0x6000, kUserRead));
  }
}

TEST_F(ShadowingAttributes, TakingAUsersPageForAWriteGainsNoFetch) {
  state_.cr0 &= ~kCr0Wp;
  Load();
  SetEntry(kPt, 5, kPage | kP | kU);
  Set(kPage, Rights::kRead | Rights::kWrite | Rights::kExecSupervisor);
  EXPECT_EQ(Fault(0x5000, kFetch), FaultOutcome::kAttributeViolation);
  EXPECT_EQ(Fault(0x5000, kWrite), FaultOutcome::kFixed);
  EXPECT_FALSE(Allows(0x5000, kFetch)) << "it is still a page of users";
  Set(kPage, Rights::kRead | Rights::kWrite | Rights::kExecUser);
  EXPECT_EQ(Fault(0x5000, kWrite), FaultOutcome::kFixed);
  EXPECT_TRUE(Allows(0x5000, kFetch));
}

// A large page of users, taken for a write, and the same frames as the supervisor's own.
TEST_F(ShadowingAttributes, PagesTakenForAWriteAreNotSharedWithTheSupervisorsOwn) {
  state_.cr0 &= ~kCr0Wp;
  Load();
  SetEntry(kPd, 1, 0x20'0000 | kP | kU | kA | kD | kPs);
  SetEntry(kPd, 2, 0x20'0000 | kP | kW | kA | kD | kPs);
  Set(0x20'3000, Rights::kRead | Rights::kWrite | Rights::kExecUser);
  EXPECT_EQ(Fault(0x20'3000, kWrite), FaultOutcome::kFixed);
  EXPECT_TRUE(Allows(0x20'3000, kFetch)) << "XU judges a user's page";
  (void)Fault(0x40'3000, kRead);
  EXPECT_FALSE(Allows(0x40'3000, kFetch)) << "XS judges a supervisor's page";
  EXPECT_EQ(Fault(0x40'3000, kFetch), FaultOutcome::kAttributeViolation);
}

TEST_F(ShadowingAttributes, RestrictingATableTakesWhatWasMadeFromIt) {
  SetEntry(kPt, 5, kPage | kAll);
  EXPECT_EQ(Fault(0x5000, kRead), FaultOutcome::kFixed);
  const unsigned flushes = flusher_.count;
  Set(kPt.bits(), 0);
  EXPECT_GT(flusher_.count, flushes);
  EXPECT_FALSE(Allows(0x5000, kRead));
  const FaultResolution refused =
      mmu_->HandleFault({.address = InputAddress(0x5000), .access = kRead});
  EXPECT_EQ(refused.outcome, FaultOutcome::kAttributeViolation);
  ASSERT_TRUE(refused.violation);
  EXPECT_EQ(refused.violation->stage, Stage::kTable);
  EXPECT_EQ(refused.violation->gpa, Gpa(kPt.bits() + 40));
  EXPECT_TRUE(refused.violation->access.is_read());
}

}  // namespace
}  // namespace pagesaw
