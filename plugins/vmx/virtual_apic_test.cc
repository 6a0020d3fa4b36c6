// The virtual APIC of a guest. [intel/vol3] "APIC Virtualization and Virtual Interrupts"
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

import pagesaw.plugins.vmx.test_guest;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t kPage = 0xb000, kAccessPage = 0xc000, kDescriptor = 0xd040;
constexpr std::uint32_t kTpr = 0x80, kPpr = 0xa0, kEoi = 0xb0, kIcr = 0x300;

// A guest with a virtual-APIC page and what `secondary` says.
class VirtualApicGuest : public TestGuest {
 public:
  explicit VirtualApicGuest(std::uint32_t secondary, std::uint32_t pin = 0) {
    SetControls(field::kPrimaryControls, primary::kSecondary | primary::kTprShadow);
    SetControls(field::kPinControls, pin::kInterruptExiting | pin);
    SetControls(field::kExitControls, exits::kAcknowledge);
    Set(field::kSecondaryControls, secondary);
    Set(field::kVirtualApic, kPage);
    Set(field::kApicAccess, kAccessPage);
    Set(field::kPostedDescriptor, kDescriptor);
    Set(field::kNotificationVector, 0xf2);
  }

  std::uint32_t& Register(std::uint32_t offset) { return Word(kPage + offset); }
  std::uint32_t& Word(std::uint64_t at) {
    return *reinterpret_cast<std::uint32_t*>(host.Memory(Gpa(at), 4));
  }
  void Request(std::uint8_t vector) { Register(0x200 + vector / 32 * 16) |= 1u << vector % 32; }
  bool IsRequested(std::uint8_t vector) {
    return (Register(0x200 + vector / 32 * 16) >> vector % 32 & 1) != 0;
  }
  bool IsInService(std::uint8_t vector) {
    return (Register(0x100 + vector / 32 * 16) >> vector % 32 & 1) != 0;
  }

  // Whether the access is made to the page at its offset.
  bool Reads(std::uint16_t offset, std::uint8_t bytes = 4) {
    return unit.AccessApicPage(
               host, {.kind = PageAccess::Kind::kRead, .offset = offset, .bytes = bytes}) ==
           host.Memory(Gpa(kPage + offset), 1);
  }
  bool Writes(std::uint16_t offset, std::uint32_t value) {
    std::byte* const at =
        unit.AccessApicPage(host, {.kind = PageAccess::Kind::kWrite, .offset = offset, .bytes = 4});
    if (at == nullptr) return false;
    std::memcpy(at, &value, sizeof(value));
    return true;
  }
  // What the processor does before the next instruction. Whether the guest has been left.
  bool Boundary() {
    EXPECT_TRUE(host.guest_interrupts.asks_at_boundary);
    host.guest_interrupts.asks_at_boundary = false;
    return Meet({.what = Intercept::kVirtualApic});
  }
  bool pending() const { return host.guest_interrupts.virtual_pending; }
};

constexpr std::uint32_t kDelivery = secondary::kVirtualInterrupts | secondary::kX2apicMode;

// -- the APIC-access page

struct AccessCase {
  const char* name;
  std::uint32_t secondary;
  std::vector<std::uint16_t> readable, writable;
};
void PrintTo(const AccessCase& row, std::ostream* out) { *out << row.name; }

class ApicAccess : public testing::TestWithParam<AccessCase> {};

TEST_P(ApicAccess, IsVirtualizedByOffset) {
  const auto has = [](const std::vector<std::uint16_t>& list, std::uint16_t offset) {
    for (const std::uint16_t one : list) {
      if (one == offset) return true;
    }
    return false;
  };
  VirtualApicGuest guest(secondary::kApicAccesses | GetParam().secondary);
  ASSERT_TRUE(guest.Enter());
  EXPECT_EQ(guest.host.entry->apic_page, Gpa(kAccessPage));
  for (std::uint16_t offset = 0; offset < 0x410; offset += 0x10) {
    EXPECT_EQ(guest.Reads(offset), has(GetParam().readable, offset)) << offset;
    EXPECT_EQ(guest.Writes(offset, 0), has(GetParam().writable, offset)) << offset;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Controls, ApicAccess,
    testing::Values(
        AccessCase{"TaskPriorityAlone", 0, {kTpr}, {kTpr}},
        AccessCase{"InterruptDelivery", secondary::kVirtualInterrupts, {kTpr}, {kTpr, kEoi, kIcr}},
        AccessCase{"Registers",
                   secondary::kApicRegisters,
                   {0x020, 0x030, 0x080, 0x0b0, 0x0d0, 0x0e0, 0x0f0, 0x100, 0x110, 0x120, 0x130,
                    0x140, 0x150, 0x160, 0x170, 0x180, 0x190, 0x1a0, 0x1b0, 0x1c0, 0x1d0, 0x1e0,
                    0x1f0, 0x200, 0x210, 0x220, 0x230, 0x240, 0x250, 0x260, 0x270, 0x280, 0x300,
                    0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x3e0},
                   {0x020, 0x080, 0x0b0, 0x0d0, 0x0e0, 0x0f0, 0x280, 0x300, 0x310, 0x320, 0x330,
                    0x340, 0x350, 0x360, 0x370, 0x380, 0x3e0}}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(ApicAccessPage, IsNotTheGuestsUnlessAControlSaysSo) {
  VirtualApicGuest guest(0);
  ASSERT_TRUE(guest.Enter());
  EXPECT_FALSE(guest.host.entry->apic_page);
}

TEST(ApicAccessPage, IsLeftForWhatIsWideOrBesideTheRegister) {
  VirtualApicGuest guest(secondary::kApicAccesses | secondary::kApicRegisters);
  ASSERT_TRUE(guest.Enter());
  EXPECT_TRUE(guest.Reads(kTpr + 1, 2));
  EXPECT_FALSE(guest.Reads(kTpr, 8));
  EXPECT_FALSE(guest.Reads(kTpr + 1, 4));
  EXPECT_FALSE(guest.Reads(kTpr + 4, 1));
}

TEST(ApicAccessPage, IsLeftWithOffsetAndKind) {
  struct Row {
    PageAccess access;
    std::uint64_t qualification;
  };
  using Kind = PageAccess::Kind;
  for (const Row& row :
       {Row{{.kind = Kind::kRead, .offset = 0x3a4, .bytes = 4}, 0x03a4},
        Row{{.kind = Kind::kWrite, .offset = 0x30, .bytes = 4}, 0x1030},
        Row{{.kind = Kind::kFetch, .offset = 0x80}, 0x2080},
        Row{{.kind = Kind::kRead, .offset = 0xfff, .in_delivery = true}, 0x3fff}}) {
    VirtualApicGuest guest(secondary::kApicAccesses);
    ASSERT_TRUE(guest.Enter());
    EXPECT_EQ(guest.unit.AccessApicPage(guest.host, row.access), nullptr);
    ASSERT_TRUE(guest.host.left_for);
    guest.unit.Leave(guest.host, *guest.host.left_for);
    EXPECT_EQ(guest.Get(field::kExitReason), 44u);
    EXPECT_EQ(guest.Get(field::kQualification), row.qualification);
  }
}

TEST(ApicWrite, OfARegisterWithoutMeaningLeavesBehindIt) {
  VirtualApicGuest guest(secondary::kApicAccesses | secondary::kApicRegisters);
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.Writes(0x3e0, 0xb));
  EXPECT_TRUE(guest.Boundary());
  EXPECT_EQ(guest.Register(0x3e0), 0xbu);
  EXPECT_EQ(guest.Get(field::kExitReason), 56u);
  EXPECT_EQ(guest.Get(field::kQualification), 0x3e0u);
}

TEST(ApicWrite, OfTheUpperIcrKeepsItsDestinationAlone) {
  VirtualApicGuest guest(secondary::kApicAccesses | secondary::kApicRegisters);
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.Writes(0x310, 0x1234'5678));
  EXPECT_FALSE(guest.Boundary());
  EXPECT_EQ(guest.Register(0x310), 0x1200'0000u);
}

// -- the task priority

TEST(TaskPriority, BelowTheThresholdLeaves) {
  VirtualApicGuest guest(secondary::kApicAccesses);
  guest.Set(field::kTprThreshold, 5);
  guest.Register(kTpr) = 0x70;
  ASSERT_TRUE(guest.Enter());
  EXPECT_FALSE(guest.host.guest_interrupts.asks_at_boundary);
  ASSERT_TRUE(guest.Writes(kTpr, 0xabcd'ef5f));
  EXPECT_FALSE(guest.Boundary());
  EXPECT_EQ(guest.Register(kTpr), 0x5fu);
  EXPECT_EQ(guest.host.guest_interrupts.virtual_tpr, 5);  // CR8
  ASSERT_TRUE(guest.Writes(kTpr, 0x4f));
  EXPECT_TRUE(guest.Boundary());
  EXPECT_EQ(guest.Get(field::kExitReason), 43u);
}

TEST(TaskPriority, BelowTheThresholdAtAVmEntryLeavesAtOnceWhereThePageIsMapped) {
  VirtualApicGuest guest(secondary::kApicAccesses);
  guest.Set(field::kTprThreshold, 5);
  guest.Register(kTpr) = 0x40;
  ASSERT_TRUE(guest.Enter());
  EXPECT_TRUE(guest.Boundary());
  EXPECT_EQ(guest.Get(field::kExitReason), 43u);
}

TEST(TaskPriority, OfCr8IsThePages) {
  VirtualApicGuest guest(kDelivery);
  guest.Register(kTpr) = 0xff;
  ASSERT_TRUE(guest.Enter());
  EXPECT_EQ(guest.host.guest_interrupts.virtual_tpr, 15);
  EXPECT_TRUE(guest.host.guest_interrupts.asks_about_tpr);
  guest.host.guest_interrupts.virtual_tpr = 3;  // MOV to CR8
  guest.host.guest_interrupts.asks_at_boundary = true;
  EXPECT_FALSE(guest.Boundary());
  EXPECT_EQ(guest.Register(kTpr), 0x30u);
  EXPECT_EQ(guest.Register(kPpr), 0x30u);
}

// -- interrupts

TEST(VirtualInterrupt, IsPendingAboveThePriority) {
  struct Row {
    std::uint8_t tpr, serviced, requested;
    bool pending;
    std::uint32_t ppr;
  };
  for (const Row& row : {Row{0x00, 0x00, 0x41, true, 0x00}, Row{0x3f, 0x00, 0x41, true, 0x3f},
                         Row{0x40, 0x00, 0x41, false, 0x40}, Row{0x00, 0x45, 0x41, false, 0x40},
                         Row{0x20, 0x35, 0x41, true, 0x30}, Row{0x35, 0x3f, 0x41, true, 0x35},
                         Row{0x00, 0x00, 0x0f, false, 0x00}}) {
    VirtualApicGuest guest(kDelivery);
    guest.Register(kTpr) = row.tpr;
    guest.Set(field::kInterruptStatus, row.serviced << 8 | row.requested);
    ASSERT_TRUE(guest.Enter());
    EXPECT_EQ(guest.pending(), row.pending) << int{row.tpr} << " " << int{row.serviced};
    EXPECT_EQ(guest.Register(kPpr), row.ppr) << int{row.tpr} << " " << int{row.serviced};
  }
}

TEST(VirtualInterrupt, WaitsWhileInterruptWindowsLeave) {
  VirtualApicGuest guest(kDelivery);
  guest.SetControls(field::kPrimaryControls, primary::kInterruptWindow);
  guest.Set(field::kInterruptStatus, 0x41);
  ASSERT_TRUE(guest.Enter());
  EXPECT_FALSE(guest.pending());
}

TEST(VirtualInterrupt, IsInServiceOnceTakenAndOverByEoi) {
  VirtualApicGuest guest(kDelivery);
  guest.Set(field::kInterruptStatus, 0x61);
  guest.Request(0x61);
  guest.Request(0x41);
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.pending());
  EXPECT_EQ(guest.unit.TakeVirtualInterrupt(guest.host), 0x61);
  EXPECT_FALSE(guest.pending());
  EXPECT_TRUE(guest.IsInService(0x61));
  EXPECT_FALSE(guest.IsRequested(0x61));
  EXPECT_EQ(guest.Register(kPpr), 0x60u);
  EXPECT_EQ(guest.unit.WriteMsr(guest.host, 0x80b, 0), VirtUnit::MsrAnswer::kDone);
  EXPECT_FALSE(guest.Boundary());
  EXPECT_FALSE(guest.IsInService(0x61));
  EXPECT_TRUE(guest.pending());
  EXPECT_EQ(guest.unit.TakeVirtualInterrupt(guest.host), 0x41);
  guest.unit.Leave(guest.host, {.what = Intercept::kCpuid});
  EXPECT_EQ(guest.Get(field::kInterruptStatus), 0x4100u);
}

TEST(VirtualInterrupt, WhoseEoiIsAskedForLeavesBehindIt) {
  VirtualApicGuest guest(kDelivery);
  guest.Set(field::kInterruptStatus, 0x8500);
  guest.Set(field::kEoiExits[2], 1u << 5);
  guest.Register(0x100 + 4 * 16) = 1u << 5;
  guest.Register(0x100 + 1 * 16) = 1u << 1;
  ASSERT_TRUE(guest.Enter());
  EXPECT_EQ(guest.unit.WriteMsr(guest.host, 0x80b, 0), VirtUnit::MsrAnswer::kDone);
  EXPECT_TRUE(guest.Boundary());
  EXPECT_EQ(guest.Get(field::kExitReason), 45u);
  EXPECT_EQ(guest.Get(field::kQualification), 0x85u);
  EXPECT_EQ(guest.Get(field::kInterruptStatus), 0x2100u);
}

struct IcrCase {
  const char* name;
  std::uint32_t value;
  bool to_itself;
};
void PrintTo(const IcrCase& row, std::ostream* out) { *out << row.name; }

class SelfIpi : public testing::TestWithParam<IcrCase> {};

TEST_P(SelfIpi, ByTheIcrIsVirtualOrLeaves) {
  VirtualApicGuest guest(secondary::kApicAccesses | secondary::kVirtualInterrupts);
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.Writes(kIcr, GetParam().value));
  EXPECT_EQ(guest.Boundary(), !GetParam().to_itself);
  if (GetParam().to_itself) {
    EXPECT_TRUE(guest.pending());
    EXPECT_TRUE(guest.IsRequested(0x41));
  } else {
    EXPECT_EQ(guest.Get(field::kExitReason), 56u);
    EXPECT_EQ(guest.Get(field::kQualification), kIcr);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Values, SelfIpi,
    testing::Values(IcrCase{"Self", 0x4'0041, true}, IcrCase{"SelfAndAssert", 0x4'4041, true},
                    IcrCase{"Logical", 0x4'0841, true}, IcrCase{"Level", 0x4'8041, false},
                    IcrCase{"Nmi", 0x4'0441, false}, IcrCase{"Busy", 0x4'1041, false},
                    IcrCase{"All", 0x8'0041, false}, IcrCase{"Reserved", 0x14'0041, false},
                    IcrCase{"LowVector", 0x4'000f, false}),
    [](const auto& info) { return std::string(info.param.name); });

// -- x2APIC mode

TEST(X2apicMode, ReadsThePriorityOrEveryRegister) {
  for (const bool registers : {false, true}) {
    VirtualApicGuest guest(secondary::kX2apicMode | (registers ? secondary::kApicRegisters : 0u));
    guest.Register(kTpr) = 0x55;
    guest.Register(0x390) = 0x66;
    guest.Register(0x394) = 0x77;
    std::uint64_t value = 0;
    EXPECT_EQ(guest.unit.ReadMsr(guest.host, 0x808, value), VirtUnit::MsrAnswer::kUnknown);
    ASSERT_TRUE(guest.Enter());
    EXPECT_EQ(guest.unit.ReadMsr(guest.host, 0x808, value), VirtUnit::MsrAnswer::kDone);
    EXPECT_EQ(value, 0x55u);
    EXPECT_EQ(guest.unit.ReadMsr(guest.host, 0x839, value),
              registers ? VirtUnit::MsrAnswer::kDone : VirtUnit::MsrAnswer::kUnknown);
    if (registers) EXPECT_EQ(value, 0x77'0000'0066u);
    EXPECT_EQ(guest.unit.ReadMsr(guest.host, 0x900, value), VirtUnit::MsrAnswer::kUnknown);
  }
}

TEST(X2apicMode, WritesWhatHasAMeaning) {
  using Answer = VirtUnit::MsrAnswer;
  struct Row {
    std::uint32_t index;
    std::uint64_t value;
    Answer without, with;  // interrupt delivery
  };
  for (const Row& row : {Row{0x808, 0xff, Answer::kDone, Answer::kDone},
                         Row{0x808, 0x100, Answer::kRefused, Answer::kRefused},
                         Row{0x80b, 0, Answer::kUnknown, Answer::kDone},
                         Row{0x80b, 1, Answer::kUnknown, Answer::kRefused},
                         Row{0x83f, 0x41, Answer::kUnknown, Answer::kDone},
                         Row{0x83f, 0x141, Answer::kUnknown, Answer::kRefused},
                         Row{0x830, 0x41, Answer::kUnknown, Answer::kUnknown}}) {
    VirtualApicGuest without(secondary::kX2apicMode), with(kDelivery);
    ASSERT_TRUE(without.Enter());
    ASSERT_TRUE(with.Enter());
    EXPECT_EQ(without.unit.WriteMsr(without.host, row.index, row.value), row.without) << row.index;
    EXPECT_EQ(with.unit.WriteMsr(with.host, row.index, row.value), row.with) << row.index;
  }
}

TEST(X2apicMode, ASelfIpiIsPendingAndALowVectorLeaves) {
  VirtualApicGuest guest(kDelivery);
  ASSERT_TRUE(guest.Enter());
  EXPECT_EQ(guest.unit.WriteMsr(guest.host, 0x83f, 0x41), VirtUnit::MsrAnswer::kDone);
  EXPECT_FALSE(guest.Boundary());
  EXPECT_TRUE(guest.pending());
  EXPECT_EQ(guest.unit.WriteMsr(guest.host, 0x83f, 0x0f), VirtUnit::MsrAnswer::kDone);
  EXPECT_TRUE(guest.Boundary());
  EXPECT_EQ(guest.Get(field::kExitReason), 56u);
  EXPECT_EQ(guest.Get(field::kQualification), 0x3f0u);
}

// -- posted interrupts

TEST(PostedInterrupts, AreRequestedByTheNotificationAlone) {
  VirtualApicGuest guest(kDelivery, pin::kPostedInterrupts);
  ASSERT_TRUE(guest.Enter());
  EXPECT_TRUE(guest.host.guest_interrupts.asks_about_interrupts);
  guest.Word(kDescriptor + 4) = 1u << 3 | 1u << 9;  // 23h and 29h
  guest.Word(kDescriptor + 28) = 1u << 31;          // FFh
  guest.Word(kDescriptor + 32) = 3;                 // ON, and a bit that software has
  EXPECT_FALSE(guest.Meet({.what = Intercept::kInterrupt, .number = 0xf2}));
  EXPECT_TRUE(guest.IsRequested(0x23));
  EXPECT_TRUE(guest.IsRequested(0x29));
  EXPECT_TRUE(guest.pending());
  EXPECT_EQ(guest.unit.TakeVirtualInterrupt(guest.host), 0xff);
  EXPECT_EQ(guest.Word(kDescriptor + 4), 0u);
  EXPECT_EQ(guest.Word(kDescriptor + 32), 2u);
  EXPECT_TRUE(guest.Meet({.what = Intercept::kInterrupt, .number = 0xf1}));
  EXPECT_EQ(guest.Get(field::kExitReason), 1u);
}

// -- what VM entries refuse

struct RefusedCase {
  const char* name;
  std::uint32_t secondary;
  std::uint32_t pin;
  Field field;
  std::uint64_t value;
};
void PrintTo(const RefusedCase& row, std::ostream* out) { *out << row.name; }

class ApicControls : public testing::TestWithParam<RefusedCase> {};

TEST_P(ApicControls, AreRefused) {
  VirtualApicGuest fits(GetParam().secondary, GetParam().pin);
  EXPECT_TRUE(fits.Enter());
  VirtualApicGuest guest(GetParam().secondary, GetParam().pin);
  guest.Set(GetParam().field, GetParam().value);
  EXPECT_FALSE(guest.Enter());
  EXPECT_EQ(guest.error(), 7u);
}

constexpr std::uint32_t kPrimary = 0x0400'6172 | primary::kSecondary;
constexpr std::uint32_t kPosted = pin::kPostedInterrupts;

INSTANTIATE_TEST_SUITE_P(
    Rules, ApicControls,
    testing::Values(
        RefusedCase{"X2apicWithoutPage", secondary::kX2apicMode, 0, field::kPrimaryControls,
                    kPrimary},
        RefusedCase{"RegistersWithoutPage", secondary::kApicRegisters, 0, field::kPrimaryControls,
                    kPrimary},
        RefusedCase{"DeliveryWithoutPage", secondary::kVirtualInterrupts, 0,
                    field::kPrimaryControls, kPrimary},
        RefusedCase{"BothKindsOfAccess", secondary::kX2apicMode, 0, field::kSecondaryControls,
                    secondary::kX2apicMode | secondary::kApicAccesses},
        RefusedCase{"AccessPageBesideAPage", secondary::kApicAccesses, 0, field::kApicAccess,
                    kAccessPage + 8},
        RefusedCase{"DeliveryWithoutInterruptExiting", kDelivery, 0, field::kPinControls, 0x16},
        RefusedCase{"PostedWithoutDelivery", kDelivery, kPosted, field::kSecondaryControls, 0},
        RefusedCase{"PostedWithoutAcknowledging", kDelivery, kPosted, field::kExitControls,
                    0x3'6dfb | exits::kHost64},
        RefusedCase{"WideNotificationVector", kDelivery, kPosted, field::kNotificationVector,
                    0x100},
        RefusedCase{"DescriptorBesideALine", kDelivery, kPosted, field::kPostedDescriptor,
                    kDescriptor + 32},
        RefusedCase{"ThresholdAbovePriority", 0, 0, field::kTprThreshold, 1}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw::vmx
