#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.attribute_limit;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.direct_mmu;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_formats;
import pagesaw.mmu.test_memory;

namespace pagesaw {
namespace {

constexpr std::uint64_t kMib = 1u << 20;
constexpr Rights kR(Rights::kRead), kW(Rights::kWrite), kXs(Rights::kExecSupervisor),
    kXu(Rights::kExecUser);
constexpr Access kRead = Access::Read(Privilege::kUser);
constexpr Access kWrite = Access::Write(Privilege::kUser);
constexpr Access kFetch = Access::Fetch(Privilege::kUser);

class CountingFlusher final : public TlbFlusher {
 public:
  void FlushAll() override { ++count; }
  unsigned count = 0;
};

struct FormatCase {
  const char* name;
  PageFormat (*make)();
};

// A direct MMU over 16 MiB under attributes.
class AttributeBinding : public testing::TestWithParam<FormatCase> {
 protected:
  void SetUp() override {
    memory_.AddSlot(Gpa(0), 16 * kMib);
    mmu_ = DirectMmu::Make(pages_, memory_, walker_, Level::kPml4);
    ASSERT_NE(mmu_, nullptr);
  }
  void Set(std::uint64_t gpa, std::uint64_t bytes, Rights rights,
           ViolationPolicy policy = ViolationPolicy::kStop) {
    const Gfn first = GfnOf(Gpa(gpa));
    const auto change =
        attributes_.Set(first, bytes / kPageBytes, {.rights = rights, .policy = policy});
    if (change == MemoryAttributes::Change::kRestricted) {
      pages_.AttributesChanged(first, bytes / kPageBytes);
    }
  }
  FaultResolution Fault(std::uint64_t address, Access access) {
    const FaultResolution resolution =
        mmu_->HandleFault({.address = InputAddress(address), .access = access});
    const ShadowPages::Lock lock = pages_.Acquire();
    EXPECT_EQ(pages_.Audit().value_or(""), "");
    return resolution;
  }
  bool Allows(std::uint64_t address, Access access) {
    return static_cast<bool>(mmu_->Inspect(InputAddress(address), access, nullptr));
  }

  TestMemory memory_;
  CountingFlusher flusher_;
  MemoryAttributes attributes_;
  CpuWalker walker_{memory_};
  ShadowPages pages_{SpteCodec(GetParam().make()), flusher_, 1000, nullptr, &attributes_};
  std::unique_ptr<DirectMmu> mmu_;
};

INSTANTIATE_TEST_SUITE_P(
    Formats, AttributeBinding,
    testing::Values(FormatCase{"Legacy", [] { return LegacySecondStage(false); }},
                    FormatCase{"LegacySplit", [] { return LegacySecondStage(true); }},
                    FormatCase{"Explicit", [] { return ExplicitSecondStage(false); }},
                    FormatCase{"ExplicitSplit", [] { return ExplicitSecondStage(true); }}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(AttributeBinding, RefusedAccessIsDescribed) {
  Set(0x5000, 0x1000, kR);
  EXPECT_EQ(Fault(0x5123, kRead).outcome, FaultOutcome::kFixed);
  const FaultResolution refused = Fault(0x5123, kWrite);
  EXPECT_EQ(refused.outcome, FaultOutcome::kAttributeViolation);
  ASSERT_TRUE(refused.violation);
  EXPECT_EQ(refused.violation->gpa, Gpa(0x5123));
  EXPECT_EQ(refused.violation->access, kWrite);
  EXPECT_EQ(refused.violation->attribute.rights, kR);
  EXPECT_FALSE(Allows(0x5123, kWrite));
  EXPECT_TRUE(Allows(0x5123, kRead));
  EXPECT_EQ(Fault(0x6000, kWrite).outcome, FaultOutcome::kFixed);
}

TEST_P(AttributeBinding, MemoryWithoutAnyRightIsNoDevice) {
  Set(0x5000, 0x1000, Rights());
  for (Access access : {kRead, kWrite, kFetch}) {
    EXPECT_EQ(Fault(0x5000, access).outcome, FaultOutcome::kAttributeViolation);
    EXPECT_EQ(Fault(0x5000, access).outcome, FaultOutcome::kAttributeViolation);
  }
}

TEST_P(AttributeBinding, DevicesAreBoundToo) {
  constexpr std::uint64_t kDevice = 0xf000'0000;
  EXPECT_EQ(Fault(kDevice, kRead).outcome, FaultOutcome::kMmio);
  Set(kDevice, 0x1000, kR);
  EXPECT_EQ(Fault(kDevice, kRead).outcome, FaultOutcome::kMmio);
  EXPECT_EQ(Fault(kDevice, kWrite).outcome, FaultOutcome::kAttributeViolation);
  Set(kDevice, 0x1000, MemoryAttribute::kEverything);
  EXPECT_EQ(Fault(kDevice, kWrite).outcome, FaultOutcome::kMmio);
}

TEST_P(AttributeBinding, RestrictingTakesTranslationsAwayAndFlushesBeforeItReturns) {
  EXPECT_EQ(Fault(0x20'0000, kWrite).outcome, FaultOutcome::kFixed);
  EXPECT_EQ(pages_.Statistics().pages_2m, 1u);
  const unsigned flushes = flusher_.count;
  Set(0x20'3000, 0x1000, kR);
  EXPECT_GT(flusher_.count, flushes);
  EXPECT_EQ(pages_.Statistics().pages_2m, 0u) << "its frames are unequal now";
  EXPECT_FALSE(Allows(0x20'3000, kWrite));
  EXPECT_EQ(Fault(0x20'4000, kWrite).outcome, FaultOutcome::kFixed);
  EXPECT_EQ(pages_.Statistics().pages_2m, 0u);
}

TEST_P(AttributeBinding, EqualFramesGetLargePagesAgainAfterWidening) {
  Set(0x20'0000, 2 * kMib, kR);
  EXPECT_EQ(Fault(0x20'0000, kRead).outcome, FaultOutcome::kFixed);
  EXPECT_EQ(pages_.Statistics().pages_2m, 1u) << "all of it is read-only";
  Set(0x20'3000, 0x1000, Rights());
  EXPECT_EQ(Fault(0x20'0000, kRead).outcome, FaultOutcome::kFixed);
  EXPECT_EQ(pages_.Statistics().pages_2m, 0u);
  const unsigned flushes = flusher_.count;
  Set(0x20'0000, 2 * kMib, MemoryAttribute::kEverything);
  EXPECT_EQ(flusher_.count, flushes) << "nobody lost anything";
  EXPECT_EQ(Fault(0x20'3000, kWrite).outcome, FaultOutcome::kFixed);
  EXPECT_EQ(pages_.Statistics().pages_2m, 1u);
  EXPECT_TRUE(Allows(0x20'0000, kWrite));
}

TEST_P(AttributeBinding, NobodyMayMakeWritableWhatTheAttributeDenies) {
  Set(0x5000, 0x1000, kR);
  (void)Fault(0x5000, kRead);
  WalkTrace trace;
  (void)mmu_->Inspect(InputAddress(0x5000), kRead, &trace);
  ASSERT_FALSE(trace.steps().empty());
  EXPECT_EQ(trace.steps().back().entry & kSpteMmuWritable, 0u);
}

TEST_P(AttributeBinding, LogNotesEachKindOfAccessToAPageOnce) {
  Set(0x20'0000, 2 * kMib, Rights(), ViolationPolicy::kLog);
  for (std::uint64_t page : {0x20'0000u, 0x20'1000u}) {
    for (Access access : {kRead, kWrite, kFetch}) {
      const FaultResolution resolution = Fault(page, access);
      EXPECT_TRUE(resolution.outcome == FaultOutcome::kFixed ||
                  resolution.outcome == FaultOutcome::kSpurious);
      EXPECT_TRUE(Allows(page, access));
      EXPECT_FALSE(Fault(page, access).violation);
    }
  }
  // A read is granted alone where the format can.
  EXPECT_TRUE(Fault(0x20'2000, kRead).violation);
  EXPECT_TRUE(Fault(0x20'2000, kWrite).violation);
}

struct ExpressRow {
  const char* name;
  PageFormat (*make)();
  Rights rights;
  bool can;
};

class Expressibility : public testing::TestWithParam<ExpressRow> {};

TEST_P(Expressibility, IsAsTheFormatIs) {
  const std::optional<std::string> why =
      WhyInexpressible(SpteCodec(GetParam().make()), GetParam().rights);
  EXPECT_EQ(!why.has_value(), GetParam().can) << why.value_or("");
}

PageFormat Npt() { return LegacySecondStage(false); }
PageFormat Gmet() { return LegacySecondStage(true); }
PageFormat Ept() { return ExplicitSecondStage(false); }
PageFormat Mbec() { return ExplicitSecondStage(true); }
PageFormat OldEpt() { return ExplicitSecondStage(false, false); }

INSTANTIATE_TEST_SUITE_P(Rows, Expressibility,
                         testing::Values(ExpressRow{"NptBoth", Npt, kR | kXs | kXu, true},
                                         ExpressRow{"NptSupervisor", Npt, kR | kXs, false},
                                         ExpressRow{"NptUser", Npt, kR | kXu, false},
                                         ExpressRow{"NptExecuteOnly", Npt, kXs | kXu, false},
                                         ExpressRow{"NptNothing", Npt, Rights(), true},
                                         ExpressRow{"GmetSupervisor", Gmet, kR | kW | kXs, false},
                                         ExpressRow{"GmetUser", Gmet, kR | kXu, true},
                                         ExpressRow{"EptSupervisor", Ept, kR | kXs, false},
                                         ExpressRow{"EptExecuteOnly", Ept, kXs | kXu, true},
                                         ExpressRow{"OldEptExecuteOnly", OldEpt, kXs | kXu, false},
                                         ExpressRow{"EptWriteOnly", Ept, kW, false},
                                         ExpressRow{"MbecSupervisor", Mbec, kR | kW | kXs, true},
                                         ExpressRow{"MbecUserExecuteOnly", Mbec, kXu, true}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw
