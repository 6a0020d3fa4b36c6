#include <gtest/gtest.h>

#include <cstdint>
#include <ostream>
#include <string>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.test_memory;

namespace pagesaw {
namespace {

constexpr std::uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPs = 0x80;
constexpr std::uint64_t kNx = std::uint64_t{1} << 63;
constexpr std::uint64_t kTable = kP | kW | kU;

constexpr Access kRead = Access::Read(Privilege::kSupervisor);
constexpr Access kWrite = Access::Write(Privilege::kSupervisor);
constexpr Access kUserRead = Access::Read(Privilege::kUser);
constexpr Access kUserWrite = Access::Write(Privilege::kUser);
constexpr Access kFetch = Access::Fetch(Privilege::kSupervisor);

PagingState LongMode() {
  PagingState state;
  state.cr0 = kCr0Pe | kCr0Pg | kCr0Wp;
  state.cr3 = 0x1000;
  state.cr4 = kCr4Pae;
  state.efer = kEferLma | kEferLme | kEferNxe;
  return state;
}

// Tables at 0x1000 (PML4), 0x2000 (PDPT), 0x3000 (PD), 0x4000 (PT); 0x12345 -> 0x9345.
class FourLevelWalk : public testing::Test {
 protected:
  FourLevelWalk() {
    memory_.Write<std::uint64_t>(Gpa(0x1000), 0x2000 | kTable);
    memory_.Write<std::uint64_t>(Gpa(0x2000), 0x3000 | kTable);
    memory_.Write<std::uint64_t>(Gpa(0x3000), 0x4000 | kTable);
    SetPte(0x9000 | kTable);
  }
  void SetPte(std::uint64_t pte) { memory_.Write<std::uint64_t>(kPte, pte); }
  std::uint64_t Entry(Gpa at) const { return memory_.Read<std::uint64_t>(at); }

  static constexpr InputAddress kAddress{0x12345};
  static constexpr Gpa kPte{0x4000 + 0x12 * 8};
  TestMemory memory_{0x20000};
  CpuWalker walker_{memory_, LongMode()};
};

TEST_F(FourLevelWalk, FindsTheByteAndSetsAccessedEverywhere) {
  const WalkResult result = walker_.Walk(kAddress, kUserRead);
  ASSERT_TRUE(result);
  EXPECT_EQ(GpaOf(result->output), Gpa(0x9345));
  EXPECT_EQ(result->level, Level::kPt);
  EXPECT_EQ(result->rights, Rights::All());
  EXPECT_EQ(result->leaf, 0x9000 | kTable | kA);
  for (std::uint64_t table : {0x1000, 0x2000, 0x3000}) EXPECT_TRUE(Entry(Gpa(table)) & kA);
  EXPECT_EQ(Entry(kPte), 0x9000 | kTable | kA);
}

TEST_F(FourLevelWalk, WriteSetsDirtyInTheLeafOnly) {
  ASSERT_TRUE(walker_.Walk(kAddress, kUserWrite));
  EXPECT_EQ(Entry(kPte) & (kA | kD), kA | kD);
  for (std::uint64_t table : {0x1000, 0x2000, 0x3000}) EXPECT_FALSE(Entry(Gpa(table)) & kD);
}

TEST_F(FourLevelWalk, InspectionChangesNothing) {
  WalkTrace trace;
  ASSERT_TRUE(walker_.Inspect(kAddress, kUserWrite, &trace));
  EXPECT_EQ(Entry(Gpa(0x1000)), 0x2000 | kTable);
  EXPECT_EQ(Entry(kPte), 0x9000 | kTable);
  ASSERT_EQ(trace.steps().size(), 4u);
  EXPECT_EQ(trace.steps()[0].level, Level::kPml4);
  EXPECT_EQ(trace.steps()[3].entry_address.bits(), kPte.bits());
  EXPECT_TRUE(trace.steps()[3].leaf);
}

TEST_F(FourLevelWalk, RefusedAccessSetsNeitherAccessedNorDirty) {
  SetPte(0x9000 | kP | kU);
  const WalkResult result = walker_.Walk(kAddress, kUserWrite);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.fault().kind, WalkFault::Kind::kRights);
  EXPECT_EQ(result.fault().code.bits(), 7u);
  EXPECT_EQ(Entry(kPte), 0x9000 | kP | kU);
}

TEST_F(FourLevelWalk, ReadOnlyMemoryKeepsItsEntriesAndIsWalked) {
  TestMemory rom;
  rom.AddSlotOver(Gpa(0), 0x20000, memory_.Find(Gfn{0})->host, true);
  CpuWalker walker(rom, LongMode());
  ASSERT_TRUE(walker.Walk(kAddress, kUserWrite));
  EXPECT_EQ(Entry(kPte), 0x9000 | kTable);
}

TEST_F(FourLevelWalk, TableOutsideMemoryIsNoMemory) {
  memory_.Write<std::uint64_t>(Gpa(0x3000), 0x4000'0000 | kTable);
  const WalkResult result = walker_.Walk(kAddress, kRead);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.fault().kind, WalkFault::Kind::kNoMemory);
  EXPECT_EQ(result.fault().level, Level::kPt);
  EXPECT_EQ(result.fault().stage, Stage::kTable);
  EXPECT_EQ(result.fault().stage_address.bits(), 0x4000'0090u);
}

TEST_F(FourLevelWalk, NonCanonicalAddressIsNoPageFault) {
  const WalkResult result = walker_.Walk(InputAddress(0x8000'0000'0000), kRead);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.fault().kind, WalkFault::Kind::kNonCanonical);
}

// What the entries say, what is asked, and which fault comes of it.
struct FaultCase {
  const char* name;
  std::uint64_t pde, pte;
  Access access;
  WalkFault::Kind kind;
  unsigned level;
  std::uint32_t code;
};

class FourLevelFault : public FourLevelWalk, public testing::WithParamInterface<FaultCase> {};

TEST_P(FourLevelFault, HasKindLevelAndCode) {
  const FaultCase& c = GetParam();
  memory_.Write<std::uint64_t>(Gpa(0x3000), c.pde);
  SetPte(c.pte);
  const WalkResult result = walker_.Walk(kAddress, c.access);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.fault().kind, c.kind);
  EXPECT_EQ(Number(result.fault().level), c.level);
  EXPECT_EQ(result.fault().code.bits(), c.code);
  EXPECT_EQ(result.fault().address, kAddress);
}

constexpr std::uint64_t kBit51 = std::uint64_t{1} << 51;
using Kind = WalkFault::Kind;

INSTANTIATE_TEST_SUITE_P(
    Priority, FourLevelFault,
    testing::Values(FaultCase{"NotPresentHidesUserBitAbove", 0x4000 | kP | kW, 0, kUserRead,
                              Kind::kNotPresent, 1, 4},
                    FaultCase{"NotPresentIgnoresReservedInTheSameEntry", 0x4000 | kTable, kBit51,
                              kRead, Kind::kNotPresent, 1, 0},
                    FaultCase{"ReservedAboveHidesNotPresentBelow", 0x4000 | kTable | kBit51, 0,
                              kWrite, Kind::kMalformed, 2, 0xb},
                    FaultCase{"ReservedBeatsRights", 0x4000 | kTable, 0x9000 | kP | kBit51,
                              kUserWrite, Kind::kMalformed, 1, 0xf},
                    FaultCase{"UserBitAboveRefusesUser", 0x4000 | kP | kW, 0x9000 | kTable,
                              kUserRead, Kind::kRights, 1, 5},
                    FaultCase{"NoExecuteAboveRefusesFetch", 0x4000 | kTable | kNx, 0x9000 | kTable,
                              kFetch, Kind::kRights, 1, 0x11},
                    FaultCase{"WriteProtectRefusesSupervisor", 0x4000 | kTable, 0x9000 | kP, kWrite,
                              Kind::kRights, 1, 3},
                    FaultCase{"LargePageWithLowAddressBits", 0x4000 | kTable | kPs, 0, kRead,
                              Kind::kMalformed, 2, 9}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(FourLevelWalk, LargePagesEndTheWalk) {
  memory_.Write<std::uint64_t>(Gpa(0x3000), 0x20'0000 | kTable | kPs | 1u << 12);
  const WalkResult two_mib = walker_.Walk(InputAddress(0x12345), kWrite);
  ASSERT_TRUE(two_mib);
  EXPECT_EQ(GpaOf(two_mib->output), Gpa(0x21'2345));
  EXPECT_EQ(two_mib->level, Level::kPd);

  memory_.Write<std::uint64_t>(Gpa(0x2000), 0x4000'0000 | kTable | kPs);
  const WalkResult gib = walker_.Walk(InputAddress(0x1234'5678), kWrite);
  ASSERT_TRUE(gib);
  EXPECT_EQ(GpaOf(gib->output), Gpa(0x5234'5678));
  EXPECT_EQ(gib->level, Level::kPdpt);
}

TEST_F(FourLevelWalk, ProtectionKeyRefusesDataAndNotFetches) {
  PagingState state = LongMode();
  state.cr4 |= kCr4Pke;
  state.pkru = 1u << 6;  // key 3: AD
  walker_.Reset(state);
  SetPte(0x9000 | kTable | std::uint64_t{3} << 59);
  const WalkResult data = walker_.Walk(kAddress, kRead);
  ASSERT_FALSE(data);
  EXPECT_EQ(data.fault().kind, Kind::kProtectionKey);
  EXPECT_EQ(data.fault().code.bits(), 0x21u);
  EXPECT_TRUE(walker_.Walk(kAddress, kFetch));
}

TEST_F(FourLevelWalk, SupervisorKeysJudgeSupervisorPages) {
  PagingState state = LongMode();
  state.cr4 |= kCr4Pks;
  state.pkrs = 2u << 6;  // key 3: WD
  walker_.Reset(state);
  SetPte(0x9000 | kP | kW | std::uint64_t{3} << 59);
  EXPECT_TRUE(walker_.Walk(kAddress, kRead));
  const WalkResult write = walker_.Walk(kAddress, kWrite);
  ASSERT_FALSE(write);
  EXPECT_EQ(write.fault().code.bits(), 0x23u);
  state.cr0 &= ~kCr0Wp;
  walker_.Reset(state);
  EXPECT_TRUE(walker_.Walk(kAddress, kWrite));
}

TEST(CpuWalker, WithoutPagingOutputIsInput) {
  TestMemory memory(0x1000);
  CpuWalker walker(memory);
  EXPECT_EQ(walker.root_level(), 0u);
  const WalkResult result = walker.Walk(InputAddress(0xfee0'0300), kUserWrite);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output.bits(), 0xfee0'0300u);
  EXPECT_EQ(result->rights, Rights::All());
  EXPECT_FALSE(walker.Walk(InputAddress(0x1'0000'0000), kRead));
}

TEST(CpuWalker, WalksFourByteEntries) {
  TestMemory memory(0x10000);
  PagingState state;
  state.cr0 = kCr0Pe | kCr0Pg | kCr0Wp;
  state.cr3 = 0x1fff;  // the low bits are no part of the address
  state.cr4 = kCr4Pse;
  memory.Write<std::uint32_t>(Gpa(0x1000 + 0x3ff * 4), 0x2000 | kTable);
  memory.Write<std::uint32_t>(Gpa(0x2000 + 0x123 * 4), 0x5000 | kTable);
  memory.Write<std::uint32_t>(Gpa(0x2000 + 0x124 * 4), 0xffff'ffff);  // must stay as it is
  CpuWalker walker(memory, state);
  EXPECT_EQ(walker.root_level(), 2u);
  const WalkResult result = walker.Walk(InputAddress(0xffd2'3456), kUserWrite);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output.bits(), 0x5456u);
  EXPECT_EQ(memory.Read<std::uint32_t>(Gpa(0x2000 + 0x123 * 4)), 0x5000 | kTable | kA | kD);
  EXPECT_EQ(memory.Read<std::uint32_t>(Gpa(0x2000 + 0x124 * 4)), 0xffff'ffffu);
}

TEST(CpuWalker, FourMebibytePagesReachAboveFourGibibytes) {
  TestMemory memory(0x10000);
  PagingState state;
  state.cr0 = kCr0Pe | kCr0Pg;
  state.cr3 = 0x1000;
  state.cr4 = kCr4Pse;
  memory.Write<std::uint32_t>(Gpa(0x1000), 0x40'0000 | 0xa5u << 13 | kTable | kPs);
  CpuWalker walker(memory, state);
  const WalkResult result = walker.Walk(InputAddress(0x12'3456), kRead);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output.bits(), 0xa5'0052'3456u);
  EXPECT_EQ(result->level, Level::kPd);
}

TEST(CpuWalker, PaeStartsAtTheRegisters) {
  TestMemory memory(0x10000);
  PagingState state;
  state.cr0 = kCr0Pe | kCr0Pg | kCr0Wp;
  state.cr3 = 0x1000;
  state.cr4 = kCr4Pae;
  state.pdptes = {0, 0, 0x2000 | kP, 0};  // memory at CR3 has nothing
  memory.Write<std::uint64_t>(Gpa(0x2000 + 8), 0x3000 | kTable);
  memory.Write<std::uint64_t>(Gpa(0x3000), 0x7000 | kTable);
  CpuWalker walker(memory, state);
  WalkTrace trace;
  ASSERT_TRUE(walker.Inspect(InputAddress(0x8020'0123), kUserRead, &trace));
  EXPECT_EQ(trace.steps().size(), 3u);
  EXPECT_EQ(trace.steps()[0].entry, 0x2000 | kP);
  const WalkResult result = walker.Walk(InputAddress(0x8020'0123), kUserWrite);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output.bits(), 0x7123u);
  const WalkResult absent = walker.Walk(InputAddress(0x123), kRead);
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.fault().kind, Kind::kNotPresent);
  EXPECT_EQ(absent.fault().level, Level::kPdpt);
}

TEST(CpuWalker, FiveLevels) {
  TestMemory memory(0x10000);
  PagingState state = LongMode();
  state.cr4 |= kCr4La57;
  memory.Write<std::uint64_t>(Gpa(0x1000 + 0x180 * 8), 0x2000 | kTable);
  memory.Write<std::uint64_t>(Gpa(0x2000), 0x3000 | kTable);
  memory.Write<std::uint64_t>(Gpa(0x3000), 0x8000'0000 | kTable | kPs);
  CpuWalker walker(memory, state);
  EXPECT_EQ(walker.root_level(), 5u);
  const WalkResult result = walker.Walk(InputAddress(0xff80'0000'0000'0123), kRead);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->output.bits(), 0x8000'0123u);
}

}  // namespace
}  // namespace pagesaw
