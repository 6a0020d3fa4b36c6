#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>

import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.cpu.core;
import pagesaw.cpu.memory;
import pagesaw.cpu.page_directory_pointers;
import pagesaw.cpu.tlb;
import pagesaw.cpu.test_core;
import pagesaw.mmu.legacy_format;

namespace pagesaw::cpu {
namespace {

constexpr std::uint64_t kP = 1, kW = 2, kU = 4, kA = 0x20, kD = 0x40, kPs = 0x80;
constexpr std::uint64_t kAll = kP | kW | kU | kA | kD;
constexpr std::uint64_t Key(unsigned key) { return std::uint64_t{key} << 59; }

// A core that walks 4-level tables of the guest's, which start at kRoot and map kLinear to kPage,
// through a second stage that refuses nothing.
class TwoStages : public testing::Test {
 protected:
  static constexpr std::uint64_t kRoot = 0x80000;
  static constexpr std::uint64_t kPage = 0x90000;
  static constexpr std::uint64_t kLinear = 0x4000'0000;

  TwoStages() {
    format_ = MakeLegacyFormat(
        {.features = {.physical_bits = 47}, .permissions = {.second_stage = true}});
    Core& core = test_.core();
    core.tables.format = &format_;
    core.tables.second_stage = true;
    core.cr3 = kRoot;
    test_.Write(kRoot, 0x81000 | kAll);
    test_.Write(0x81008, 0x82000 | kAll);  // PDPTE 1
    test_.Write(0x82000, 0x83000 | kAll);
    SetLeaf(kPage | kAll);
    core.UpdatePaging();
  }

  void SetLeaf(std::uint64_t entry) { test_.Write(0x83000, entry); }
  bool Read(std::uint64_t linear = kLinear) {
    test_.core().stop = Stop::kNone;
    std::uint64_t value = 0;
    return Load(test_.core(), linear, value);
  }
  bool Write(std::uint64_t linear = kLinear) {
    test_.core().stop = Stop::kNone;
    return Store(test_.core(), linear, std::uint64_t{1});
  }
  void Enable(std::uint64_t cr4) {
    test_.core().cr4 |= cr4;
    test_.core().UpdatePaging();
    test_.core().UpdateMode();
  }
  std::uint32_t ErrorCode() const {
    return const_cast<TwoStages*>(this)->test_.core().exception.error_code;
  }

  TestCore test_;
  PageFormat format_;
};

// Where table accesses count as writes, the page of a table that may only be read is refused.
TEST_F(TwoStages, TablesThatCountAsWrittenMustBeWritable) {
  test_.core().tables.tables_are_written = true;
  EXPECT_TRUE(Read());
  test_.Spte(0x82000) &= ~kW;
  test_.core().second_stage_tlb.Flush();
  test_.core().FlushTranslations();
  EXPECT_FALSE(Read());
  const TableFault& fault = test_.core().exit.fault;
  EXPECT_EQ(test_.core().exit.reason, ExitReason::kTableFault);
  EXPECT_EQ(fault.stage, Stage::kTable);
  EXPECT_TRUE(fault.access.is_write());
  EXPECT_EQ(fault.address.bits(), 0x82000u);
  // The outside may say that the entry is to be read all the same.
  test_.core().replay.Add(fault.bus);
  test_.core().replay.Rewind();
  EXPECT_TRUE(Read());
}

TEST_F(TwoStages, WriteDisableRefusesWritesBehindACachedRead) {
  SetLeaf(kPage | kAll | Key(2));
  Enable(kCr4Pke);
  test_.core().SetProtectionKeys(test_.core().pkru, 2u << 4);
  test_.SetCpl(3);
  EXPECT_TRUE(Read());
  EXPECT_FALSE(Write());
  EXPECT_EQ(ErrorCode(), 0x27u);
}

TEST_F(TwoStages, DevicePagesGetAccessedAndDirtyLikeOthers) {
  test_.Spte(kPage) |= std::uint64_t{1} << 51;  // malformed: a device
  SetLeaf(kPage | kP | kW | kU);
  EXPECT_FALSE(Read());
  EXPECT_TRUE(test_.core().exit.fault.malformed);
  EXPECT_EQ(test_.core().exit.fault.address, InputAddress(kPage));
  EXPECT_EQ(test_.Read<std::uint64_t>(0x83000), kPage | kP | kW | kU | kA);
  EXPECT_FALSE(Write());
  EXPECT_EQ(test_.core().exit.fault.bus.kind, BusAccess::Kind::kMmioWrite);
  EXPECT_EQ(test_.Read<std::uint64_t>(0x83000), kPage | kAll);
}

TEST_F(TwoStages, WriteDisableBindsSupervisorsUnderWriteProtectOnly) {
  SetLeaf(kPage | kAll | Key(2));
  Enable(kCr4Pke);
  test_.core().SetProtectionKeys(test_.core().pkru, 2u << 4);
  EXPECT_FALSE(Write());
  EXPECT_EQ(ErrorCode(), 0x23u);
  test_.core().cr0 &= ~kCr0Wp;
  test_.core().UpdatePaging();
  EXPECT_TRUE(Write());
}

TEST_F(TwoStages, KeysThatChangeTakeCachedRightsAway) {
  SetLeaf(kPage | kAll | Key(2));
  Enable(kCr4Pke);
  EXPECT_TRUE(Write());
  test_.core().SetProtectionKeys(test_.core().pkru, 1u << 4);
  EXPECT_FALSE(Read());
  EXPECT_EQ(ErrorCode(), 0x21u);
  test_.core().SetProtectionKeys(test_.core().pkru, 1u << 6);
  EXPECT_TRUE(Write());
}

TEST_F(TwoStages, SupervisorKeysBindSupervisorPagesOnly) {
  SetLeaf((kPage | kAll | Key(3)) & ~kU);
  Enable(kCr4Pke | kCr4Pks);
  test_.core().SetProtectionKeys(test_.core().pkru, ~0u);
  EXPECT_TRUE(Write());
  test_.core().SetProtectionKeys(test_.core().pkrs, 1u << 6);
  EXPECT_FALSE(Read());
  EXPECT_EQ(ErrorCode(), 0x21u);
}

TEST_F(TwoStages, InvalidatingAnAddressOfALargePageForgetsAllOfIt) {
  test_.Write(0x82000, kAll | kPs);  // linear 40000000h: the first 2 MiB
  EXPECT_TRUE(Read(kLinear + kPage));
  test_.Write<std::uint64_t>(0x82000, 0);
  EXPECT_TRUE(Read(kLinear + kPage));
  test_.core().FlushPage(kLinear + 0x1000);
  EXPECT_FALSE(Read(kLinear + kPage));
}

TEST_F(TwoStages, InvalidatingAnAddressOfA4MibPageForgetsAllOfIt) {
  Core& core = test_.core();
  core.efer = 0;
  core.cr4 = kCr4Pse;
  core.segments[kCs].attributes = 0xc09b;
  core.UpdateMode();
  core.UpdatePaging();
  test_.Write<std::uint32_t>(kRoot, kP | kW | kU | kA | kD | kPs);
  const std::uint64_t upper = 0x20'0000;  // memory of this core ends at 1 MiB: cached by hand
  EXPECT_TRUE(Read(kPage));
  TlbBank& bank = core.tlb.bank(BankName::kSupervisor);
  core.tlb.NoteFill(bank, upper, Level::kPdpt);
  TlbEntry& entry = bank.At(upper);
  entry.read_tag = upper;
  EXPECT_FALSE(core.tlb.FlushPage(kPage));
  EXPECT_EQ(entry.read_tag, kNoTag);
}

// What the table at 83000h maps besides kLinear: pages that the TLB does not know yet.
TEST_F(TwoStages, TablesBelowTheRootAreRememberedUntilSomethingIsInvalidated) {
  test_.Write(0x83008, kPage | kAll);
  test_.Write(0x83010, kPage | kAll);
  EXPECT_TRUE(Read());
  test_.Write<std::uint64_t>(0x82000, 0);
  EXPECT_TRUE(Read(kLinear + 0x1000));
  test_.core().FlushPage(0xdead'0000);  // any page at all
  EXPECT_FALSE(Read(kLinear + 0x2000));
  EXPECT_EQ(ErrorCode(), 0u);
}

TEST_F(TwoStages, UpperEntriesOfARememberedTableStillBind) {
  test_.Write(0x82000, 0x83000 | (kAll & ~kW));
  test_.Write(0x83008, kPage | kAll);
  EXPECT_TRUE(Read());
  EXPECT_TRUE(Read(kLinear + 0x1000));
  test_.core().cr0 |= kCr0Wp;
  test_.core().UpdatePaging();
  EXPECT_TRUE(Read());
  EXPECT_FALSE(Write(kLinear + 0x1000));
  EXPECT_EQ(ErrorCode(), 3u);
}

TEST_F(TwoStages, WhatARememberedTableRefusesIsReadAgainFromTheRoot) {
  test_.core().cr0 |= kCr0Wp;
  test_.core().UpdatePaging();
  test_.Write(0x82000, 0x83000 | (kAll & ~kW));
  EXPECT_TRUE(Read());
  EXPECT_FALSE(Write());
  test_.Write(0x82000, 0x83000 | kAll);  // more rights: nobody needs to invalidate
  EXPECT_TRUE(Write());
}

TEST_F(TwoStages, TablesBehindAnEntryWithoutAccessedAreNotRemembered) {
  test_.Write(0x83008, kPage | kAll);
  test_.Write(0x83010, kPage | kAll);
  test_.Write(0x82000, 0x83000 | (kAll & ~kA));
  EXPECT_TRUE(Read());
  test_.Write(0x82000, 0x83000 | (kAll & ~kA));
  EXPECT_TRUE(Read(kLinear + 0x1000));
  EXPECT_EQ(test_.Read<std::uint64_t>(0x82000), 0x83000 | kAll);
}

TEST_F(TwoStages, TableOfARememberedTableIsStillTranslated) {
  test_.Write(0x83008, kPage | kAll);
  EXPECT_TRUE(Read());
  test_.core().second_stage_tlb.Flush();
  test_.Spte(0x83000) = 0;
  EXPECT_FALSE(Read(kLinear + 0x1000));
  EXPECT_EQ(test_.core().exit.reason, ExitReason::kTableFault);
  EXPECT_EQ(test_.core().exit.fault.address.bits(), 0x83008u);
}

TEST_F(TwoStages, PdptesAreReadByPhysicalAddressWhateverPagingSays) {
  Core& core = test_.core();
  core.efer = 0;
  core.pdptes = {};  // linear address 0 is nowhere
  core.UpdatePaging();
  test_.Write<std::uint64_t>(0x84008, 0x85001);
  std::array<std::uint64_t, 4> pdptes = {};
  EXPECT_TRUE(LoadPdptes(core, 0x84000, core.cr0, core.cr4, pdptes));
  EXPECT_EQ(pdptes[1], 0x85001u);
  EXPECT_EQ(core.paging.mode(), PagingMode::kPae);
}

// What a pointer means under linear-address masking.
struct PointerCase {
  const char* name;
  std::uint64_t cr3;
  std::uint64_t cr4;
  std::uint64_t pointer;
  bool legal;
  std::uint64_t linear;
};
class Masking : public testing::TestWithParam<PointerCase> {};
TEST_P(Masking, FindsTheAddressOrRefuses) {
  TestCore test;
  Core& core = test.core();
  core.cr3 |= GetParam().cr3;
  core.cr4 |= GetParam().cr4;
  core.UpdatePaging();
  std::uint64_t linear = 0;
  EXPECT_EQ(Linear(core, kDs, GetParam().pointer, 8, false, linear), GetParam().legal);
  EXPECT_EQ(core.stop == Stop::kException, !GetParam().legal);
  if (GetParam().legal) {
    EXPECT_EQ(linear, GetParam().linear);
  }
}
constexpr std::uint64_t kUser = 0x7fff'1234'5000;
constexpr std::uint64_t kKernel = 0xffff'8000'1234'5000;
INSTANTIATE_TEST_SUITE_P(
    Pointers, Masking,
    testing::Values(
        PointerCase{"Off", 0, 0, kUser | 0x7eull << 56, false, 0},
        PointerCase{"U57", kCr3LamU57, 0, kUser | 0x7eull << 56, true, kUser},
        PointerCase{"U57LowTag", kCr3LamU57, 0, kUser | 1ull << 50, false, 0},
        PointerCase{"U57Bit56", kCr3LamU57, 0, kUser | 1ull << 56, false, 0},
        PointerCase{"U48", kCr3LamU48, 0, kUser | 0x7fffull << 48, true, kUser},
        PointerCase{"U48WinsOverU57", kCr3LamU48 | kCr3LamU57, 0, kUser | 1ull << 50, true, kUser},
        PointerCase{"U48Bit47", kCr3LamU48, 0, 1ull << 47, false, 0},
        PointerCase{"U48In57", kCr3LamU48, kCr4La57, kUser | 1ull << 50, true, kUser},
        PointerCase{"U48In57Bit47", kCr3LamU48, kCr4La57, 1ull << 47, false, 0},
        PointerCase{"U57In57", kCr3LamU57, kCr4La57, 1ull << 55 | 1ull << 60, true, 1ull << 55},
        PointerCase{"UserMaskLeavesKernel", kCr3LamU48, 0, kKernel ^ 1ull << 60, false, 0},
        PointerCase{"Sup", 0, kCr4LamSup, kKernel ^ 0x7fffull << 48, true, kKernel},
        PointerCase{"SupBit47", 0, kCr4LamSup, 0xffff'7fff'0000'0000, false, 0},
        PointerCase{"SupIn57", 0, kCr4LamSup | kCr4La57, kKernel ^ 0x7eull << 56, true, kKernel},
        PointerCase{"SupIn57LowTag", 0, kCr4LamSup | kCr4La57, kKernel ^ 1ull << 56, false, 0},
        PointerCase{"SupLeavesUser", 0, kCr4LamSup, kUser | 1ull << 60, false, 0}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(MaskedPointers, ReachMemoryButDoNotInvalidate) {
  TestCore test;
  test.core().cr3 |= kCr3LamU57;
  test.core().UpdatePaging();
  test.Write<std::uint64_t>(0x5000, 42);
  std::uint64_t value = 0;
  ASSERT_TRUE(LoadOperand(
      test.core(),
      [&] {
        Op op = test.MemoryOp(0x5000);
        op.base = kRax * 8;
        test.core().gpr[kRax] = 0x7eull << 56;
        return op;
      }(),
      value));
  EXPECT_EQ(value, 42u);
}

// SPTEs for linear addresses: TestCore's, judged by control registers.
struct OneStageCase {
  const char* name;
  std::uint64_t cr4;
  std::uint64_t flags;
  unsigned cpl;
  std::uint64_t spte_bits;  // besides P, A, D
  std::uint32_t pkru;
  std::uint32_t pkrs;
  bool reads;
  bool writes;
};
class OneStage : public testing::TestWithParam<OneStageCase> {};
TEST_P(OneStage, IsJudgedByTheProcessorsOwnRegisters) {
  TestCore test;
  Core& core = test.core();
  core.cr4 |= GetParam().cr4;
  core.cr0 &= ~kCr0Wp;
  core.pkru = GetParam().pkru;
  core.pkrs = GetParam().pkrs;
  test.Spte(0x5000) = (test.Spte(0x5000) & ~(kW | kU)) | GetParam().spte_bits;
  test.SetCpl(GetParam().cpl);
  core.SetRflags(core.Rflags() | GetParam().flags);
  core.UpdatePaging();
  core.UpdateMode();
  std::uint64_t value = 0;
  EXPECT_EQ(Load(core, 0x5000, value), GetParam().reads);
  EXPECT_EQ(Store(core, 0x5000, value), GetParam().writes);
  if (!GetParam().writes) {
    EXPECT_EQ(core.exit.reason, ExitReason::kTableFault);
    EXPECT_EQ(core.exit.fault.linear, Gva(0x5000));
  }
}
INSTANTIATE_TEST_SUITE_P(
    Sptes, OneStage,
    testing::Values(
        OneStageCase{"Plain", 0, 0, 0, kW | kU, 0, 0, true, true},
        OneStageCase{"ReadOnlyThoughWpIsOff", 0, 0, 0, kU, 0, 0, true, false},
        OneStageCase{"Smap", kCr4Smap, 0, 0, kW | kU, 0, 0, false, false},
        OneStageCase{"SmapWithAc", kCr4Smap, kFlagAc, 0, kW | kU, 0, 0, true, true},
        OneStageCase{"SmapOfUser", kCr4Smap, 0, 3, kW | kU, 0, 0, true, true},
        OneStageCase{"UserOfSupervisorPage", 0, 0, 3, kW, 0, 0, false, false},
        OneStageCase{"KeysOff", 0, 0, 3, kW | kU | Key(1), ~0u, ~0u, true, true},
        OneStageCase{"UserKeyWrite", kCr4Pke, 0, 3, kW | kU | Key(1), 8, 0, true, false},
        OneStageCase{"UserKeyAccess", kCr4Pke, 0, 3, kW | kU | Key(1), 4, 0, false, false},
        OneStageCase{"UserKeyWriteWithWpOff", kCr4Pke, 0, 0, kW | kU | Key(1), 8, 0, true, true},
        OneStageCase{"SupervisorKey", kCr4Pks, 0, 0, kW | Key(1), ~0u, 4, false, false},
        OneStageCase{"SupervisorKeyOfOthers", kCr4Pks, 0, 0, kW | Key(1), 0, 1, true, true}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw::cpu
