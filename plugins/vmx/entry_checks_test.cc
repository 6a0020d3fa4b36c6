// What VM entries refuse: each rule by one change to a VMCS that is fine.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

import pagesaw.core.paging_state;
import pagesaw.plugins.vmx.test_guest;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t kTooWide = 1ull << 36, kNotCanonical = 1ull << 47;

enum class Want { kControls, kHost, kGuest, kLinkPointer, kPdptes, kEntry };

struct Change {
  Field field;
  std::uint64_t value;
  bool adds = false;  // bits to those that are set
};
constexpr Change Also(Field field, std::uint64_t bits) { return {field, bits, true}; }

struct Row {
  const char* rule;
  std::vector<Change> changes;
  Want want;
};
void PrintTo(const Row& row, std::ostream* out) { *out << row.rule; }

class EntryChecks : public testing::TestWithParam<Row> {};

TEST_P(EntryChecks, Rule) {
  TestGuest guest;
  for (const Change& change : GetParam().changes) {
    guest.Set(change.field, change.value | (change.adds ? guest.Get(change.field) : 0));
  }
  const bool entered = guest.Enter();
  EXPECT_EQ(entered, GetParam().want == Want::kEntry);
  const auto reason = static_cast<std::uint32_t>(guest.Get(field::kExitReason));
  switch (GetParam().want) {
    case Want::kControls:
    case Want::kHost:
      EXPECT_TRUE(guest.zero());
      EXPECT_EQ(guest.error(), GetParam().want == Want::kControls ? 7u : 8u);
      break;
    case Want::kGuest:
    case Want::kLinkPointer:
    case Want::kPdptes:
      EXPECT_FALSE(guest.zero());
      EXPECT_EQ(reason, kEntryFailure | 33u);
      EXPECT_EQ(guest.Get(field::kQualification), GetParam().want == Want::kGuest    ? 0u
                                                  : GetParam().want == Want::kPdptes ? 2u
                                                                                     : 4u);
      break;
    case Want::kEntry:
      break;
  }
}

constexpr auto kName = [](const auto& info) { return std::string(info.param.rule); };
constexpr std::uint32_t kEvent = kEventValid;
constexpr std::uint32_t kException = kEvent | 3u << 8, kSoftware = kEvent | 4u << 8;

INSTANTIATE_TEST_SUITE_P(
    Controls, EntryChecks,
    testing::Values(
        Row{"NothingWrong", {}, Want::kEntry},
        Row{"PinReserved", {Also(field::kPinControls, 1u << 1 | 1u << 31)}, Want::kControls},
        Row{"PinMissing", {{field::kPinControls, 0}}, Want::kControls},
        Row{"PrimaryReserved", {Also(field::kPrimaryControls, 1u << 0)}, Want::kControls},
        Row{"SecondaryReserved",
            {Also(field::kPrimaryControls, primary::kSecondary),
             {field::kSecondaryControls, 1u << 31}},
            Want::kControls},
        Row{"SecondaryReservedButOff", {{field::kSecondaryControls, 1u << 31}}, Want::kEntry},
        Row{"Cr3Targets", {{field::kCr3TargetCount, 5}}, Want::kControls},
        Row{"IoBitmapMisaligned",
            {Also(field::kPrimaryControls, primary::kIoBitmaps), {field::kIoBitmapA, 0x800}},
            Want::kControls},
        Row{"IoBitmapTooWide",
            {Also(field::kPrimaryControls, primary::kIoBitmaps), {field::kIoBitmapB, kTooWide}},
            Want::kControls},
        Row{"MsrBitmapMisaligned",
            {Also(field::kPrimaryControls, primary::kMsrBitmaps), {field::kMsrBitmap, 1}},
            Want::kControls},
        Row{"VirtualApicTooWide",
            {Also(field::kPrimaryControls, primary::kTprShadow), {field::kVirtualApic, kTooWide}},
            Want::kControls},
        Row{"TprThresholdReserved",
            {Also(field::kPrimaryControls, primary::kTprShadow), {field::kTprThreshold, 0x10}},
            Want::kControls},
        Row{"TprThresholdAboveTheTpr",
            {Also(field::kPrimaryControls, primary::kTprShadow), {field::kTprThreshold, 1}},
            Want::kControls},
        Row{"VirtualNmisWithoutExiting",
            {Also(field::kPinControls, pin::kVirtualNmis)},
            Want::kControls},
        Row{"NmiWindowWithoutVirtualNmis",
            {Also(field::kPinControls, pin::kNmiExiting),
             Also(field::kPrimaryControls, primary::kNmiWindow)},
            Want::kControls},
        Row{"VpidZero",
            {Also(field::kPrimaryControls, primary::kSecondary),
             {field::kSecondaryControls, secondary::kVpid}},
            Want::kControls},
        Row{"Vpid",
            {Also(field::kPrimaryControls, primary::kSecondary),
             {field::kSecondaryControls, secondary::kVpid},
             {field::kVpid, 1}},
            Want::kEntry},
        Row{"ExitReserved", {Also(field::kExitControls, 1u << 12)}, Want::kControls},
        Row{"TimerSavedButOff",
            {Also(field::kExitControls, exits::kSavePreemptionTimer)},
            Want::kControls},
        Row{"MsrListMisaligned",
            {{field::kExitMsrStoreCount, 1}, {field::kExitMsrStore, 8}},
            Want::kControls},
        Row{"MsrListEndTooWide",
            {{field::kExitMsrLoadCount, 2}, {field::kExitMsrLoad, kTooWide - 16}},
            Want::kControls},
        Row{"EntryReserved", {Also(field::kEntryControls, entry::kEnterSmm)}, Want::kControls},
        Row{"EntryMsrListTooWide",
            {{field::kEntryMsrLoadCount, 1}, {field::kEntryMsrLoad, kTooWide}},
            Want::kControls}),
    kName);

INSTANTIATE_TEST_SUITE_P(
    Injection, EntryChecks,
    testing::Values(
        Row{"ReservedType", {{field::kEntryInterruption, kEvent | 1u << 8}}, Want::kControls},
        Row{"ReservedBits", {{field::kEntryInterruption, kEvent | 1u << 12}}, Want::kControls},
        Row{"NotValid", {{field::kEntryInterruption, 1u << 8 | 1u << 12}}, Want::kEntry},
        Row{"NmiOfAnotherVector",
            {{field::kEntryInterruption, kEvent | 2u << 8 | 3}},
            Want::kControls},
        Row{"ExceptionVector", {{field::kEntryInterruption, kException | 32}}, Want::kControls},
        Row{"OtherVector", {{field::kEntryInterruption, kEvent | 7u << 8 | 1}}, Want::kControls},
        Row{"ExceptionWithoutItsErrorCode",
            {{field::kEntryInterruption, kException | 13}},
            Want::kEntry},
        Row{"ExceptionWithAnErrorCode",
            {{field::kEntryInterruption, kException | kEventHasError | 21}},
            Want::kEntry},
        Row{"ErrorCodeOfAnInterrupt",
            {{field::kEntryInterruption, kEvent | kEventHasError | 13},
             Also(field::kGuestRflags, 0x200)},
            Want::kControls},
        Row{"ErrorCodeReserved",
            {{field::kEntryInterruption, kException | kEventHasError | 13},
             {field::kEntryErrorCode, 0x1'0000}},
            Want::kControls},
        Row{"InstructionTooLong",
            {{field::kEntryInterruption, kSoftware | 0x80}, {field::kEntryInstructionLength, 16}},
            Want::kControls},
        Row{"InstructionOfLength0", {{field::kEntryInterruption, kSoftware | 0x80}}, Want::kEntry},
        Row{"InterruptWithoutIf", {{field::kEntryInterruption, kEvent | 0x40}}, Want::kGuest}),
    kName);

INSTANTIATE_TEST_SUITE_P(
    Host, EntryChecks,
    testing::Values(Row{"Cr0Fixed", {{field::kHostCr0, kCr0Pe | kCr0Pg}}, Want::kHost},
                    Row{"Cr0TooWide", {Also(field::kHostCr0, 1ull << 32)}, Want::kHost},
                    Row{"Cr0CacheBits", {Also(field::kHostCr0, 3u << 29)}, Want::kEntry},
                    Row{"Cr4Fixed", {{field::kHostCr4, kCr4Pae}}, Want::kHost},
                    Row{"Cr3TooWide", {{field::kHostCr3, kTooWide}}, Want::kHost},
                    Row{"SysenterEsp", {{field::kHostSysenterEsp, kNotCanonical}}, Want::kHost},
                    Row{"SysenterEip", {{field::kHostSysenterEip, kNotCanonical}}, Want::kHost},
                    Row{"Pat",
                        {Also(field::kExitControls, exits::kLoadPat), {field::kHostPat, 2}},
                        Want::kHost},
                    Row{"PatNotLoaded", {{field::kHostPat, 2}}, Want::kEntry},
                    Row{"EferReserved",
                        {Also(field::kExitControls, exits::kLoadEfer), {field::kHostEfer, 0x502}},
                        Want::kHost},
                    Row{"EferNotLong",
                        {Also(field::kExitControls, exits::kLoadEfer), {field::kHostEfer, 0}},
                        Want::kHost},
                    Row{"Efer",
                        {Also(field::kExitControls, exits::kLoadEfer), {field::kHostEfer, 0x500}},
                        Want::kEntry},
                    Row{"CsRpl", {{field::kHostCs, 9}}, Want::kHost},
                    Row{"FsInTheLdt", {{field::kHostFs, 0x14}}, Want::kHost},
                    Row{"CsNull", {{field::kHostCs, 0}}, Want::kHost},
                    Row{"TrNull", {{field::kHostTr, 0}}, Want::kHost},
                    Row{"GsBase", {{field::kHostGsBase, kNotCanonical}}, Want::kHost},
                    Row{"TrBase", {{field::kHostTrBase, kNotCanonical}}, Want::kHost},
                    Row{"IdtrBase", {{field::kHostIdtrBase, kNotCanonical}}, Want::kHost},
                    Row{"Rip", {{field::kHostRip, kNotCanonical}}, Want::kHost},
                    Row{"NotLong", {{field::kExitControls, 0x3'6dfb}}, Want::kHost},
                    Row{"ControlsComeFirst",
                        {{field::kHostCr0, 0}, {field::kPinControls, 0}},
                        Want::kControls}),
    kName);

constexpr Field Access(SegmentName name) { return kGuestSegments[name].access; }
constexpr Field Limit(SegmentName name) { return kGuestSegments[name].limit; }
constexpr Field Base(SegmentName name) { return kGuestSegments[name].base; }
constexpr Field Selector(SegmentName name) { return kGuestSegments[name].selector; }

INSTANTIATE_TEST_SUITE_P(
    GuestRegisters, EntryChecks,
    testing::Values(
        Row{"Cr0Fixed", {{field::kGuestCr0, kCr0Pe | kCr0Pg}}, Want::kGuest},
        Row{"Cr4Fixed", {{field::kGuestCr4, kCr4Pae}}, Want::kGuest},
        Row{"Cr4Reserved", {Also(field::kGuestCr4, 1ull << 40)}, Want::kGuest},
        Row{"LongWithoutPae", {{field::kGuestCr4, kCr4Vmxe}}, Want::kGuest},
        Row{"PcideOutsideLongMode",
            {{field::kEntryControls, 0x11fb}, Also(field::kGuestCr4, kCr4Pcide)},
            Want::kGuest},
        Row{"Cr3TooWide", {{field::kGuestCr3, kTooWide}}, Want::kGuest},
        Row{"Dr7",
            {Also(field::kEntryControls, entry::kLoadDebug), {field::kGuestDr7, 1ull << 32}},
            Want::kGuest},
        Row{"Dr7NotLoaded", {{field::kGuestDr7, 1ull << 32}}, Want::kEntry},
        Row{"Debugctl",
            {Also(field::kEntryControls, entry::kLoadDebug), {field::kGuestDebugctl, 1u << 3}},
            Want::kGuest},
        Row{"SysenterEsp", {{field::kGuestSysenterEsp, kNotCanonical}}, Want::kGuest},
        Row{"Pat",
            {Also(field::kEntryControls, entry::kLoadPat), {field::kGuestPat, 3}},
            Want::kGuest},
        Row{"EferNotLong",
            {Also(field::kEntryControls, entry::kLoadEfer), {field::kGuestEfer, 0}},
            Want::kGuest},
        Row{"EferActiveOnly",
            {Also(field::kEntryControls, entry::kLoadEfer), {field::kGuestEfer, kEferLma}},
            Want::kGuest},
        Row{"GdtrBase", {{field::kGuestGdtrBase, kNotCanonical}}, Want::kGuest},
        Row{"IdtrLimit", {{field::kGuestIdtrLimit, 0x1'0000}}, Want::kGuest},
        Row{"RipTooWide", {{field::kGuestRip, 1ull << 48}}, Want::kGuest},
        Row{"RipOutside64BitCode",
            {{Access(kCs), 0xc09b}, {field::kGuestRip, 1ull << 32}},
            Want::kGuest},
        Row{"RflagsFixed", {{field::kGuestRflags, 0}}, Want::kGuest},
        Row{"RflagsReserved", {{field::kGuestRflags, 2 | 1u << 15}}, Want::kGuest},
        Row{"Virtual8086InLongMode", {{field::kGuestRflags, 2 | kFlagVm}}, Want::kGuest}),
    kName);

INSTANTIATE_TEST_SUITE_P(
    GuestSegments, EntryChecks,
    testing::Values(
        Row{"TrInTheLdt", {{Selector(kTr), 0x1c}}, Want::kGuest},
        Row{"LdtrInTheLdt", {{Access(kLdtr), 0x82}, {Selector(kLdtr), 0x14}}, Want::kGuest},
        Row{"SsRpl", {{Selector(kSs), 0x13}}, Want::kGuest},
        Row{"FsBase", {{Base(kFs), kNotCanonical}}, Want::kGuest},
        Row{"CsBase", {{Base(kCs), 1ull << 32}}, Want::kGuest},
        Row{"DsBase", {{Base(kDs), 1ull << 32}}, Want::kGuest},
        Row{"DsBaseUnusable", {{Base(kDs), 1ull << 32}, Also(Access(kDs), 1u << 16)}, Want::kEntry},
        Row{"CsData", {{Access(kCs), 0xa093}}, Want::kGuest},
        Row{"CsSystem", {{Access(kCs), 0xa08b}}, Want::kGuest},
        Row{"CsNotPresent", {{Access(kCs), 0xa01b}}, Want::kGuest},
        Row{"CsDpl", {{Access(kCs), 0xa0fb}}, Want::kGuest},
        Row{"CsLongAndBig", {{Access(kCs), 0xe09b}}, Want::kGuest},
        Row{"CsReserved", {{Access(kCs), 0xa19b}}, Want::kGuest},
        Row{"CsGranularity", {{Access(kCs), 0x209b}}, Want::kGuest},
        Row{"SsReadOnly", {{Access(kSs), 0xc091}}, Want::kGuest},
        Row{"SsDpl", {{Access(kSs), 0xc0f3}}, Want::kGuest},
        Row{"DsNotAccessed", {{Access(kDs), 0xc092}}, Want::kGuest},
        Row{"EsExecuteOnly", {{Access(kEs), 0xc099}}, Want::kGuest},
        Row{"FsNotPresent", {{Access(kFs), 0xc013}}, Want::kGuest},
        Row{"GsDplBelowRpl", {{Selector(kGs), 0x13}}, Want::kGuest},
        Row{"GsLimit", {{Limit(kGs), 0x10'0000}}, Want::kGuest},
        Row{"TrAvailable", {{Access(kTr), 0x8089}}, Want::kGuest},
        Row{"Tr16BitInLongMode", {{Access(kTr), 0x8083}}, Want::kGuest},
        Row{"TrUnusable", {Also(Access(kTr), 1u << 16)}, Want::kGuest},
        Row{"TrLimit", {{Access(kTr), 0x8b}}, Want::kGuest},
        Row{"LdtrType", {{Access(kLdtr), 0x8083}}, Want::kGuest},
        Row{"Ldtr", {{Access(kLdtr), 0x8082}}, Want::kEntry}),
    kName);

constexpr std::uint64_t kHlt = 1, kShutdown = 2, kWaitForSipi = 3;

INSTANTIATE_TEST_SUITE_P(
    GuestNonRegisters, EntryChecks,
    testing::Values(
        Row{"ActivityUnknown", {{field::kActivity, 4}}, Want::kGuest},
        Row{"Halted", {{field::kActivity, kHlt}}, Want::kEntry},
        Row{"HaltedInAShadow",
            {{field::kActivity, kHlt}, {field::kInterruptibility, kBlockedByMovSs}},
            Want::kGuest},
        Row{"HaltedWithAnException",
            {{field::kActivity, kHlt}, {field::kEntryInterruption, kException | 6}},
            Want::kGuest},
        Row{"HaltedWithADebugException",
            {{field::kActivity, kHlt}, {field::kEntryInterruption, kException | 1}},
            Want::kEntry},
        Row{"ShutdownWithAnNmi",
            {{field::kActivity, kShutdown}, {field::kEntryInterruption, kEvent | 2u << 8 | 2}},
            Want::kEntry},
        Row{"ShutdownWithAnInterrupt",
            {{field::kActivity, kShutdown},
             {field::kEntryInterruption, kEvent | 0x40},
             Also(field::kGuestRflags, 0x200)},
            Want::kGuest},
        Row{"WaitingWithAnNmi",
            {{field::kActivity, kWaitForSipi}, {field::kEntryInterruption, kEvent | 2u << 8 | 2}},
            Want::kGuest},
        Row{"InterruptibilityReserved", {{field::kInterruptibility, 1u << 5}}, Want::kGuest},
        Row{"BlockedBySmi", {{field::kInterruptibility, kBlockedBySmi}}, Want::kGuest},
        Row{"BlockedByStiWithoutIf", {{field::kInterruptibility, kBlockedBySti}}, Want::kGuest},
        Row{"BlockedByBoth",
            {{field::kInterruptibility, kBlockedBySti | kBlockedByMovSs},
             Also(field::kGuestRflags, 0x200)},
            Want::kGuest},
        Row{"InterruptInAShadow",
            {{field::kInterruptibility, kBlockedBySti},
             {field::kEntryInterruption, kEvent | 0x40},
             Also(field::kGuestRflags, 0x200)},
            Want::kGuest},
        Row{"NmiBehindALoadOfSs",
            {{field::kInterruptibility, kBlockedByMovSs},
             {field::kEntryInterruption, kEvent | 2u << 8 | 2}},
            Want::kGuest},
        Row{"NmiWhileVirtualOnesAreBlocked",
            {Also(field::kPinControls, pin::kNmiExiting | pin::kVirtualNmis),
             {field::kInterruptibility, kBlockedByNmi},
             {field::kEntryInterruption, kEvent | 2u << 8 | 2}},
            Want::kGuest},
        Row{"NmiWhileBlocked",
            {{field::kInterruptibility, kBlockedByNmi},
             {field::kEntryInterruption, kEvent | 2u << 8 | 2}},
            Want::kEntry},
        Row{"PendingDebugReserved", {{field::kGuestPendingDebug, 1u << 4}}, Want::kGuest},
        Row{"StepLostInAShadow",
            {{field::kInterruptibility, kBlockedByMovSs}, Also(field::kGuestRflags, kFlagTf)},
            Want::kGuest},
        Row{"StepKeptInAShadow",
            {{field::kInterruptibility, kBlockedByMovSs},
             Also(field::kGuestRflags, kFlagTf),
             {field::kGuestPendingDebug, kPendingStep}},
            Want::kEntry},
        Row{"LinkPointerMisaligned", {{field::kLinkPointer, 0x10}}, Want::kLinkPointer},
        Row{"LinkPointerTooWide", {{field::kLinkPointer, kTooWide}}, Want::kLinkPointer},
        Row{"LinkPointerWithoutRevision", {{field::kLinkPointer, 0x4000}}, Want::kLinkPointer},
        Row{"PdptesWhereNothingIs",
            {{field::kEntryControls, 0x11fb},
             {Access(kCs), 0xc09b},
             {field::kGuestCr3, 0x8000'0000}},
            Want::kPdptes}),
    kName);

}  // namespace
}  // namespace pagesaw::vmx
