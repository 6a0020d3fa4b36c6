#include <gtest/gtest.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <utility>

import pagesaw.core.access;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.plugins.vmx.capabilities;
import pagesaw.plugins.vmx.ept;
import pagesaw.plugins.vmx.ept_format;
import pagesaw.plugins.vmx.test_guest;

namespace pagesaw::vmx {
namespace {

constexpr unsigned kPhysicalBits = 36;
constexpr std::uint64_t kRoot = 0x4'0000;
constexpr std::uint64_t kPointer = kRoot | 3u << 3 | 6;  // 4 levels, write-back
constexpr std::uint64_t kAccessedDirty = 1u << 6;

// Asks for EPT.
void TurnOn(TestGuest& guest, std::uint32_t more = 0) {
  guest.SetControls(field::kPrimaryControls, primary::kSecondary);
  guest.Set(field::kSecondaryControls, secondary::kEpt | more);
  guest.Set(field::kEptPointer, kPointer);
}

TEST(EptPointer, FitsWithFourOrFiveLevelsOfWriteBackTables) {
  const FakeVirtHost host;
  const Capabilities capabilities(host, false);
  FakeVirtHost without_5;
  without_5.missing_features = {"la57"};
  for (unsigned type = 0; type < 8; ++type) {
    for (unsigned levels = 0; levels < 8; ++levels) {
      const std::uint64_t pointer = kRoot | levels << 3 | type;
      const bool good = type == 6 && (levels == 3 || levels == 4);
      EXPECT_EQ(IsEptPointer(pointer, capabilities, kPhysicalBits), good) << type << " " << levels;
      EXPECT_EQ(IsEptPointer(pointer, Capabilities(without_5, false), kPhysicalBits),
                good && levels == 3);
    }
  }
  for (unsigned bit = 6; bit < 64; ++bit) {
    const bool good = bit == 6 || (bit >= 12 && bit < kPhysicalBits);
    EXPECT_EQ(IsEptPointer(kPointer | 1ull << bit, capabilities, kPhysicalBits), good) << bit;
  }
}

TEST(EptPointer, NamesTheTables) {
  const NestedPaging plain = EptOf(kPointer, kPhysicalBits, nullptr);
  EXPECT_EQ(plain.root.bits(), kRoot);
  EXPECT_EQ(plain.level, Level::kPml4);
  EXPECT_FALSE(plain.format.accessed_dirty);
  EXPECT_FALSE(plain.tables_are_written);
  EXPECT_FALSE(plain.format.layout.splits_execute());
  const std::uint64_t five = (kPointer | kAccessedDirty) + 8;
  const NestedPaging dirty = EptOf(five, kPhysicalBits, nullptr);
  EXPECT_EQ(dirty.level, Level::kPml5);
  EXPECT_TRUE(dirty.format.accessed_dirty);
  EXPECT_TRUE(dirty.tables_are_written);
  EXPECT_EQ(dirty.root_register, five);
}

struct ControlCase {
  const char* name;
  std::uint32_t controls;
  std::uint64_t pointer;
  std::uint64_t log_address;
  bool enters;
};
void PrintTo(const ControlCase& row, std::ostream* out) { *out << row.name; }

PageFormat MakeSplit(unsigned) { return MakeEptFormat({}); }

class EptControls : public testing::TestWithParam<ControlCase> {};

TEST_P(EptControls, AreCheckedAtVmEntry) {
  TestGuest guest(MakeSplit);
  TurnOn(guest);
  guest.Set(field::kSecondaryControls, GetParam().controls);
  guest.Set(field::kEptPointer, GetParam().pointer);
  guest.Set(field::kLogAddress, GetParam().log_address);
  EXPECT_EQ(guest.Enter(), GetParam().enters);
  EXPECT_EQ(guest.zero() && guest.error() == 7, !GetParam().enters);
}

INSTANTIATE_TEST_SUITE_P(
    Controls, EptControls,
    testing::Values(
        ControlCase{"Ept", secondary::kEpt, kPointer, 0, true}, ControlCase{"Off", 0, 0, 0, true},
        ControlCase{"BadPointer", secondary::kEpt, kRoot | 3u << 3, 0, false},
        ControlCase{"UnrestrictedWithoutEpt", secondary::kUnrestrictedGuest, kPointer, 0, false},
        ControlCase{"LogWithoutEpt", secondary::kPageModificationLog, kPointer, 0, false},
        ControlCase{"SplitWithoutEpt", secondary::kModeBasedExecute, kPointer, 0, false},
        ControlCase{"Split", secondary::kEpt | secondary::kModeBasedExecute, kPointer, 0, true},
        ControlCase{"Log", secondary::kEpt | secondary::kPageModificationLog, kPointer, 0x3000,
                    true},
        ControlCase{"LogMisaligned", secondary::kEpt | secondary::kPageModificationLog, kPointer,
                    0x3008, false},
        ControlCase{"LogTooWide", secondary::kEpt | secondary::kPageModificationLog, kPointer,
                    1ull << kPhysicalBits, false}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(EptControls, SplitExecutionIsNotThereWithoutItsFormat) {
  TestGuest guest;
  TurnOn(guest, secondary::kModeBasedExecute);
  EXPECT_FALSE(guest.Enter());
  EXPECT_EQ(guest.error(), 7u);
}

TEST(Ept, TranslatesTheGuestAndNoLongerTheHypervisor) {
  TestGuest guest;
  TurnOn(guest);
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.host.entry->nested);
  EXPECT_EQ(guest.host.entry->nested->root.bits(), kRoot);
  EXPECT_FALSE(guest.host.entry->nested->logs_dirty);
  ASSERT_TRUE(guest.Meet({.what = Intercept::kCpuid}));
  EXPECT_FALSE(guest.host.guest_mode());
}

TEST(Ept, PdptesComeFromTheVmcsAndGoBackThere) {
  TestGuest guest;
  TurnOn(guest);
  guest.Set(field::kEntryControls, 0x11fb);
  guest.Set(kGuestSegments[kCs].access, 0xc09b);
  for (unsigned i = 0; i < 4; ++i) guest.Set(field::kGuestPdptes[i], 0x1001 + 0x1000 * i);
  guest.Set(field::kGuestPdptes[2], 0x3001 | 1u << 1);
  EXPECT_FALSE(guest.Enter()) << "a reserved bit";
  EXPECT_EQ(guest.Get(field::kQualification), 2u);
  guest.Set(field::kGuestPdptes[2], 1u << 1);
  ASSERT_TRUE(guest.Enter()) << "not present: nothing is reserved";
  EXPECT_EQ(guest.host.state.pdptes[1], 0x2001u);
  guest.host.state.pdptes[1] = 0x7001;
  ASSERT_TRUE(guest.Meet({.what = Intercept::kCpuid}));
  EXPECT_EQ(guest.Get(field::kGuestPdptes[1]), 0x7001u);
}

TEST(Ept, FaultsLeaveAsViolationMisconfigurationOrFullLog) {
  NestedFault fault = {.address = Gpa(0x1'2345),
                       .access = Access::Write(Privilege::kSupervisor),
                       .present = true,
                       .rights = Rights(Rights::kRead),
                       .linear = Gva(0x7777'8888),
                       .linear_valid = true};
  const auto meet = [&fault](std::uint64_t& qualification, TestGuest& guest) {
    TurnOn(guest);
    EXPECT_TRUE(guest.Enter());
    guest.unit.MeetNestedFault(guest.host, fault);
    EXPECT_FALSE(guest.host.guest_mode());
    qualification = guest.Get(field::kQualification);
    return guest.Get(field::kExitReason);
  };
  std::uint64_t qualification = 0;
  TestGuest violates, misconfigures, fills;
  EXPECT_EQ(meet(qualification, violates), 48u);
  EXPECT_EQ(qualification & 0x1ff, 0x18au);  // write, readable, linear, final
  EXPECT_EQ(violates.Get(field::kGuestPhysical), 0x1'2345u);
  EXPECT_EQ(violates.Get(field::kGuestLinear), 0x7777'8888u);
  EXPECT_NE(violates.Get(field::kGuestRflags) & kFlagRf, 0u);
  fault.malformed = true;
  EXPECT_EQ(meet(qualification, misconfigures), 49u);
  EXPECT_EQ(qualification, 0u);
  EXPECT_EQ(misconfigures.Get(field::kGuestPhysical), 0x1'2345u);
  fault.malformed = false;
  fault.log_full = true;
  EXPECT_EQ(meet(qualification, fills), 62u);
}

TEST(PageModificationLog, RunsDownToItsEnd) {
  TestGuest guest;
  TurnOn(guest, secondary::kPageModificationLog);
  guest.Set(field::kLogAddress, 0x3000);
  guest.Set(field::kLogIndex, 1);
  ASSERT_TRUE(guest.Enter());
  EXPECT_TRUE(guest.host.entry->nested->logs_dirty);
  EXPECT_TRUE(guest.unit.LogDirty(guest.host, Gpa(0x1'2345)));
  EXPECT_TRUE(guest.unit.LogDirty(guest.host, Gpa(0x2'2345)));
  EXPECT_FALSE(guest.unit.LogDirty(guest.host, Gpa(0x3'2345)));
  EXPECT_EQ(guest.Get(field::kLogIndex), 0xffffu);
  const auto* const log = reinterpret_cast<std::uint64_t*>(guest.host.Memory(Gpa(0x3000), 16));
  EXPECT_EQ(log[1], 0x1'2000u);
  EXPECT_EQ(log[0], 0x2'2000u);
}

TEST(Invept, ChecksItsOperand) {
  TestGuest guest;
  struct Row {
    std::uint64_t type, pointer;
    bool good;
  };
  for (const Row& row : {Row{0, kPointer, false}, Row{1, kPointer, true}, Row{1, 0, false},
                         Row{2, 0, true}, Row{3, kPointer, false}}) {
    guest.host.invalidated.clear();
    guest.host.state.gpr[kRcx] = row.type;
    guest.host.operand[0] = row.pointer;
    EXPECT_TRUE(guest.unit.Execute(guest.host, {.what = Intercept::kInstruction,
                                                .gpr = kRcx,
                                                .memory = true,
                                                .instruction = VirtInstruction::kInvept}));
    EXPECT_EQ(!guest.host.invalidated.empty(), row.good) << row.type;
    EXPECT_EQ(guest.zero(), !row.good);
    if (!row.good) EXPECT_EQ(guest.error(), 28u);
    if (row.good && row.type == 1) EXPECT_EQ(guest.host.invalidated.back().root.bits(), kRoot);
  }
}

TEST(Vmfunc, SwitchesToAnotherPointerOfTheList) {
  TestGuest guest;
  TurnOn(guest, secondary::kVmFunctions);
  guest.Set(field::kVmFunctionControls, kEptpSwitching);
  guest.Set(field::kEptPointerList, 0x3000);
  auto* const list = reinterpret_cast<std::uint64_t*>(guest.host.Memory(Gpa(0x3000), kPageBytes));
  list[5] = kPointer + 0x1000;
  list[6] = kPointer | 1u << 7;
  ASSERT_TRUE(guest.Enter());
  const auto call = [&guest](std::uint64_t function, std::uint64_t index) {
    guest.host.left_for.reset();
    guest.host.state.gpr[kRax] = function;
    guest.host.state.gpr[kRcx] = index;
    return guest.unit.Execute(guest.host, {.what = Intercept::kInstruction,
                                           .instruction_bytes = 3,
                                           .instruction = VirtInstruction::kVmfunc});
  };
  EXPECT_TRUE(call(0, 5));
  EXPECT_EQ(guest.Get(field::kEptPointer), kPointer + 0x1000);
  EXPECT_EQ(guest.host.entry->nested->root.bits(), kRoot + 0x1000);
  for (const auto [function, index] : {std::pair{0, 6}, {0, 512}, {1, 5}, {64, 5}}) {
    EXPECT_FALSE(call(static_cast<std::uint64_t>(function), static_cast<std::uint64_t>(index)));
    EXPECT_TRUE(guest.host.left_for) << function << " " << index;
  }
}

class ViolationException : public testing::Test {
 protected:
  static constexpr std::uint64_t kArea = 0x3000, kAddress = 0x20'1000;

  ViolationException() {
    TurnOn(guest_, secondary::kViolationException);
    guest_.Set(field::kViolationInformation, kArea);
    guest_.Set(field::kEptPointerIndex, 7);
    Entry(kRoot) = 0x4'1007;
    Entry(0x4'1000) = 0x4'2007;
    Entry(0x4'2000 + 8) = 0x4'3007;
    Entry(0x4'3000 + 8) = 0x1001;
  }
  std::uint64_t& Entry(std::uint64_t at) {
    return *reinterpret_cast<std::uint64_t*>(guest_.host.Memory(Gpa(at), 8));
  }
  // Meets a write that the leaf refuses. Whether the guest hears of it.
  bool Violate() {
    const NestedFault fault = {.address = Gpa(kAddress),
                               .access = Access::Write(Privilege::kSupervisor),
                               .present = true,
                               .rights = Rights(Rights::kRead),
                               .linear = Gva(0x7777),
                               .linear_valid = true};
    EXPECT_TRUE(guest_.Enter() || guest_.Execute(VirtInstruction::kVmresume));
    guest_.host.delivered.reset();
    guest_.unit.MeetNestedFault(guest_.host, fault);
    return guest_.host.guest_mode() && guest_.host.delivered && guest_.host.delivered->vector == 20;
  }

  TestGuest guest_;
};

TEST_F(ViolationException, TellsTheGuestInItsInformationArea) {
  EXPECT_TRUE(Violate());
  EXPECT_EQ(Entry(kArea), 0xffff'ffff'0000'0030u);
  EXPECT_EQ(Entry(kArea + 8) & 0x1ff, 0x18au);
  EXPECT_EQ(Entry(kArea + 16), 0x7777u);
  EXPECT_EQ(Entry(kArea + 24), kAddress);
  EXPECT_EQ(Entry(kArea + 32) & 0xffff, 7u);
}

TEST_F(ViolationException, IsAnExitWhileTheAreaIsInUse) {
  Entry(kArea) = 1ull << 32;
  EXPECT_FALSE(Violate());
  EXPECT_EQ(guest_.Get(field::kExitReason), 48u);
}

TEST_F(ViolationException, IsAnExitIfTheEntrySuppressesIt) {
  Entry(0x4'3000 + 8) |= 1ull << 63;
  EXPECT_FALSE(Violate());
  EXPECT_EQ(guest_.Get(field::kExitReason), 48u);
  Entry(0x4'2000 + 8) = 1ull << 63;  // not present, and it decides
  Entry(0x4'3000 + 8) = 0;
  EXPECT_FALSE(Violate());
}

TEST_F(ViolationException, IsAnExitOnTheWayOfAnEvent) {
  guest_.host.on_its_way = DeliveredEvent{.vector = 0x40};
  EXPECT_FALSE(Violate());
  EXPECT_EQ(guest_.Get(field::kExitReason), 48u);
  EXPECT_EQ(guest_.Get(field::kIdtVectoring), 0x8000'0040u);
}

TEST_F(ViolationException, CanBeIntercepted) {
  guest_.Set(field::kExceptionBitmap, 1u << 20);
  EXPECT_FALSE(Violate());
  EXPECT_EQ(guest_.Get(field::kExitReason), 0u);
  EXPECT_EQ(guest_.Get(field::kExitInterruption), 0x8000'0314u);
}

TEST(Vmfunc, IsUndefinedUnlessTheGuestHasIt) {
  TestGuest guest;
  TurnOn(guest);
  ASSERT_TRUE(guest.Enter());
  EXPECT_FALSE(guest.Execute(VirtInstruction::kVmfunc));
  EXPECT_TRUE(guest.host.undefined);
}

TEST(UnrestrictedGuest, MayBeInRealMode) {
  TestGuest guest;
  TurnOn(guest);
  guest.Set(field::kGuestCr0, 0x30);
  guest.Set(field::kEntryControls, 0x11fb);
  guest.Set(kGuestSegments[kCs].access, 0x93);
  guest.Set(kGuestSegments[kCs].limit, 0xffff);
  guest.Set(kGuestSegments[kSs].selector, 0x13);
  EXPECT_FALSE(guest.Enter());
  EXPECT_EQ(guest.Get(field::kExitReason), kEntryFailure | 33u);
  TurnOn(guest, secondary::kUnrestrictedGuest);
  ASSERT_TRUE(guest.Enter());
  EXPECT_EQ(guest.host.fixed_cr0, 0x20u) << "NE alone";
  guest.host.state.efer |= 1u << 10;
  ASSERT_TRUE(guest.Meet({.what = Intercept::kCpuid}));
  EXPECT_NE(guest.Get(field::kEntryControls) & entry::kGuest64, 0u) << "EFER.LMA is stored";
  EXPECT_EQ(guest.host.fixed_cr0, 0x8000'0021u);
}

}  // namespace
}  // namespace pagesaw::vmx
