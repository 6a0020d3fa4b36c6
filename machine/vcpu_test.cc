#include <absl/status/status.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.guest_memory;
import pagesaw.core.memory_attribute;
import pagesaw.core.nested_paging;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.processor;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virtual_time;
import pagesaw.machine.apic_bus;
import pagesaw.machine.bus;
import pagesaw.machine.clock;
import pagesaw.machine.coprocessor_error;
import pagesaw.machine.device;
import pagesaw.machine.fake_processor;
import pagesaw.machine.local_apic;
import pagesaw.machine.msr_file;
import pagesaw.machine.pic;
import pagesaw.machine.test_support;
import pagesaw.machine.vcpu;
import pagesaw.machine.vm_exit;
import pagesaw.machine.vm_parts;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.memory_attributes;

namespace pagesaw {
namespace {

class FakeWalker final : public PageWalker {
 public:
  std::string_view name() const override { return "cpu_walk"; }
  const PageFormat& format() const override { return format_; }
  unsigned root_level() const override { return 0; }
  std::uint64_t root_register() const override { return 0; }
  WalkResult Walk(InputAddress, Access) override { return WalkFault{}; }
  WalkResult Inspect(InputAddress, Access, WalkTrace*) const override { return WalkFault{}; }

 private:
  PageFormat format_;
};

class FakeMmu final : public ShadowMmu {
 public:
  std::string_view name() const override { return "root_mmu"; }
  const PageFormat& format() const override { return format_; }
  ShadowRole root_role() const override { return {}; }
  const PageWalker& walker() const override { return walker_; }
  ShadowRoot Root() override { return {.table = Hpa(0x1000)}; }
  bool roots_obsolete() const override { return std::exchange(obsolete, false); }
  FaultResolution HandleFault(const MmuFault& fault) override {
    faults.push_back(fault);
    FaultResolution resolution = answer;
    resolution.gpa = Gpa(fault.address.bits());
    return resolution;
  }
  WalkResult Inspect(InputAddress, Access, WalkTrace*) const override { return WalkFault{}; }
  std::vector<RootInfo> Roots() const override { return {}; }

  void NestedPagingChanged(const NestedPaging& nested) override { walked.push_back(nested.root); }
  void InvalidateNested(const NestedInvalidation& gone) override { invalidated.push_back(gone); }
  void GuestWrote(Gpa gpa, std::uint64_t bytes) override { written.emplace_back(gpa, bytes); }

  mutable bool obsolete = false;
  FaultResolution answer;
  std::vector<MmuFault> faults;
  std::vector<Gpa> walked;
  std::vector<NestedInvalidation> invalidated;
  std::vector<std::pair<Gpa, std::uint64_t>> written;

 private:
  PageFormat format_;
  FakeWalker walker_;
};

class FakeVmMmu final : public VmMmu {
 public:
  std::unique_ptr<ShadowMmu> MakeRootMmu(unsigned) override { return nullptr; }
  void SetPagingState(unsigned, const PagingState&) override {}
  void MemoryWritten(Gpa, std::uint64_t) override {}
  void ZapFrames(Gfn, std::uint64_t) override {}
  bool KeepsDirtyBits() const override { return false; }
  bool StartDirtyLog(const MemorySlot&, DirtyLogMethod) override { return false; }
  void StopDirtyLog(std::uint32_t) override {}
  std::optional<std::vector<std::uint64_t>> TakeDirtyLog(std::uint32_t) override { return {}; }
  std::uint64_t TestAndClearYoung(Gfn, std::uint64_t) override { return 0; }
  std::vector<ShadowPageInfo> ShadowPages(std::uint64_t, unsigned) const override { return {}; }
  MmuStatistics Statistics() const override { return {}; }
  const MemoryAttributes& attributes() const override { return attributes_; }
  absl::Status SetAttribute(Gfn, std::uint64_t, const MemoryAttribute&) override { return {}; }

 private:
  MemoryAttributes attributes_;
};

class VcpuTest : public testing::Test {
 protected:
  VcpuTest() {
    auto processor = std::make_unique<FakeProcessor>(
        [this](FakeProcessor& p, std::uint64_t budget) { return program_(p, budget); });
    auto mmu = std::make_unique<FakeMmu>();
    processor_ = processor.get();
    mmu_ = mmu.get();
    auto guest_mmu = std::make_unique<FakeMmu>();
    guest_mmu_ = guest_mmu.get();
    vcpu_ = std::make_unique<Vcpu>(VcpuEnvironment{.clock = &clock_,
                                                   .bus = &bus_,
                                                   .pic = &pic_,
                                                   .apic_bus = &apic_bus_,
                                                   .mmu = &vm_mmu_,
                                                   .coprocessor_error = &coprocessor_error_},
                                   std::move(processor), std::move(mmu), std::move(guest_mmu),
                                   apic_, msrs_);
    apic_bus_.Attach(apic_);
    apic_.WriteMmio(0xf0, 0x1ff);
    processor_->state.rflags |= kFlagIf;
  }
  void Exits(Exit exit) {
    program_ = [exit](FakeProcessor&, std::uint64_t) { return exit; };
  }
  static Exit Fault(std::uint64_t gpa, Access access, BusAccess bus = {}) {
    Exit exit{.reason = ExitReason::kTableFault};
    exit.fault.address = InputAddress(gpa);
    exit.fault.access = access;
    exit.fault.bus = bus;
    return exit;
  }

  FakeClock clock_;
  FakeVmMmu vm_mmu_;
  Bus bus_;
  ApicBus apic_bus_;
  Pic pic_{[](bool) {}};
  CoprocessorError coprocessor_error_{pic_};
  LocalApic apic_{{}, clock_, apic_bus_, [this] {
                    if (vcpu_) vcpu_->Kick();
                  }};
  MsrFile msrs_{apic_, {}};
  std::function<Exit(FakeProcessor&, std::uint64_t)> program_ = [](FakeProcessor&, std::uint64_t) {
    return Exit{};
  };
  FakeProcessor* processor_ = nullptr;
  FakeMmu* guest_mmu_ = nullptr;
  FakeMmu* mmu_ = nullptr;
  std::unique_ptr<Vcpu> vcpu_;
};

constexpr Access kRead = Access::Read(Privilege::kSupervisor);

TEST_F(VcpuTest, GivesTheProcessorItsTablesOnce) {
  EXPECT_FALSE(vcpu_->Step().has_value());
  EXPECT_FALSE(vcpu_->Step().has_value());
  EXPECT_EQ(processor_->tables_set, 1u);
  EXPECT_EQ(processor_->tables.root, Hpa(0x1000));
  EXPECT_TRUE(processor_->tables.second_stage);
}

TEST_F(VcpuTest, DeliversTwoNmisThatCameTogether) {
  for (int i = 0; i < 3; ++i) apic_.Accept({.mode = DeliveryMode::kNmi});
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(vcpu_->Step().has_value());
  ASSERT_EQ(processor_->events.size(), 2u);
  EXPECT_EQ(processor_->events[0].kind, Event::Kind::kNmi);
}

TEST_F(VcpuTest, KeepsTwoNmisWhileTheProcessorIsBusyOtherwise) {
  processor_->Inject({.kind = Event::Kind::kExternalInterrupt, .vector = 0x40});
  for (int i = 0; i < 3; ++i) apic_.Accept({.mode = DeliveryMode::kNmi});
  for (int i = 0; i < 6; ++i) EXPECT_FALSE(vcpu_->Step().has_value());
  EXPECT_EQ(processor_->events.size(), 3u);
}

TEST_F(VcpuTest, KeepsOneNmiBehindTheOneBeingHandled) {
  processor_->state.nmi_blocked = true;
  for (int i = 0; i < 3; ++i) {
    apic_.Accept({.mode = DeliveryMode::kNmi});
    EXPECT_FALSE(vcpu_->Step().has_value());
  }
  EXPECT_EQ(processor_->events.size(), 0u);
  processor_->state.nmi_blocked = false;
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(vcpu_->Step().has_value());
  EXPECT_EQ(processor_->events.size(), 1u);
}

TEST_F(VcpuTest, AnswersHypercalls) {
  processor_->state.gpr[kRax] = 10;
  processor_->state.gpr[kRbx] = 1;
  processor_->state.gpr[kRdx] = 0;
  processor_->state.gpr[kRsi] = 0x41;
  Exits({.reason = ExitReason::kBus,
         .bus = {.kind = BusAccess::Kind::kHypercall, .bytes = 8, .address = 10}});
  EXPECT_FALSE(vcpu_->Step().has_value());
  ASSERT_EQ(processor_->answers.size(), 1u);
  EXPECT_EQ(processor_->answers[0].value, 1u);
  EXPECT_TRUE(apic_.HasInterrupt());
}

TEST_F(VcpuTest, LetsTheShadowMmuFixFaultsAndRunsOn) {
  mmu_->answer.outcome = FaultOutcome::kFixed;
  std::vector<std::uint64_t> budgets;
  program_ = [&budgets](FakeProcessor&, std::uint64_t budget) {
    budgets.push_back(budget);
    return budgets.size() == 1 ? Fault(0x5123, Access::Write(Privilege::kUser)) : Exit{};
  };
  EXPECT_FALSE(vcpu_->Step().has_value());
  ASSERT_EQ(mmu_->faults.size(), 1u);
  EXPECT_EQ(mmu_->faults[0].address.bits(), 0x5123u);
  EXPECT_TRUE(mmu_->faults[0].access.is_write());
  ASSERT_EQ(budgets.size(), 2u);
  EXPECT_LT(budgets[1], budgets[0]);
}

TEST_F(VcpuTest, LooksUpBetweenFaultsIfItIsKicked) {
  mmu_->answer.outcome = FaultOutcome::kFixed;
  program_ = [this](FakeProcessor&, std::uint64_t) {
    vcpu_->Kick();
    return Fault(0x5123, Access::Write(Privilege::kUser));
  };
  EXPECT_FALSE(vcpu_->Step().has_value());
  EXPECT_EQ(mmu_->faults.size(), 1u);
}

TEST_F(VcpuTest, TakesAFaultWithoutMemoryToTheDevices) {
  mmu_->answer.outcome = FaultOutcome::kMmio;
  Exits(Fault(0xfee0'0030, kRead, {.kind = BusAccess::Kind::kMmioRead, .bytes = 4}));
  EXPECT_FALSE(vcpu_->Step().has_value());
  ASSERT_EQ(processor_->answers.size(), 1u);
  EXPECT_EQ(processor_->answers[0].value, 0x0105'0014u);
  Exits(Fault(0xd000'0000, kRead, {.kind = BusAccess::Kind::kMmioRead, .bytes = 2}));
  EXPECT_FALSE(vcpu_->Step().has_value());
  EXPECT_EQ(processor_->answers[1].value, 0xffffu);
}

TEST_F(VcpuTest, StopsAGuestThatJumpsToADevice) {
  mmu_->answer.outcome = FaultOutcome::kMmio;
  processor_->state.rip = 0xabc;
  Exits(Fault(0xd000'0000, Access::Fetch(Privilege::kSupervisor)));
  const std::optional<VmExit> ending = vcpu_->Step();
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->reason, StopReason::kError);
  EXPECT_NE(ending->message.find("0xd0000000 (rip 0xabc)"), std::string::npos) << ending->message;
}

TEST_F(VcpuTest, StopsOnAFaultThatComesBackForEver) {
  mmu_->answer.outcome = FaultOutcome::kSpurious;
  Exits(Fault(0x5000, kRead));
  std::optional<VmExit> ending;
  unsigned steps = 0;
  for (; steps < 10 * Vcpu::kMaxFruitlessFaults && !ending.has_value(); ++steps) {
    ending = vcpu_->Step();
  }
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->reason, StopReason::kError);
  EXPECT_LE(steps, Vcpu::kMaxFruitlessFaults + 1);
}

TEST_F(VcpuTest, ProgressMakesRepeatedFaultsFine) {
  mmu_->answer.outcome = FaultOutcome::kFixed;
  program_ = [](FakeProcessor& p, std::uint64_t) {
    ++p.retired;
    return Fault(0x5000, kRead);
  };
  for (unsigned i = 0; i < 3 * Vcpu::kMaxFruitlessFaults; ++i) {
    ASSERT_FALSE(vcpu_->Step().has_value());
  }
}

TEST_F(VcpuTest, HandsGuestFaultsToTheGuest) {
  mmu_->answer.outcome = FaultOutcome::kGuestFault;
  mmu_->answer.guest_fault.code = PageFaultCode(PageFaultCode::kWrite);
  Exit exit = Fault(0x5000, kRead);
  exit.fault.linear = Gva(0x7777);
  Exits(exit);
  EXPECT_FALSE(vcpu_->Step().has_value());
  EXPECT_EQ(processor_->event.vector, 14);
  EXPECT_EQ(processor_->event.error_code, PageFaultCode::kWrite);
  EXPECT_EQ(processor_->event.cr2, 0x7777u);
}

TEST_F(VcpuTest, AnswersPortsMsrsAndTheTaskPriority) {
  Exits({.reason = ExitReason::kBus,
         .bus = {.kind = BusAccess::Kind::kPortIn, .bytes = 1, .address = 0x1234}});
  EXPECT_FALSE(vcpu_->Step().has_value());
  Exits({.reason = ExitReason::kBus, .bus = {.kind = BusAccess::Kind::kMsrRead, .address = 0x1b}});
  EXPECT_FALSE(vcpu_->Step().has_value());
  Exits(
      {.reason = ExitReason::kBus, .bus = {.kind = BusAccess::Kind::kMsrWrite, .address = 0xdead}});
  EXPECT_FALSE(vcpu_->Step().has_value());
  Exits({.reason = ExitReason::kBus, .bus = {.kind = BusAccess::Kind::kTprWrite, .value = 9}});
  EXPECT_FALSE(vcpu_->Step().has_value());
  ASSERT_EQ(processor_->answers.size(), 4u);
  EXPECT_EQ(processor_->answers[0].value, 0xffu);
  EXPECT_EQ(processor_->answers[1].value, 0xfee0'0900u);
  EXPECT_TRUE(processor_->answers[2].refused);
  EXPECT_EQ(apic_.cr8(), 9);
}

TEST_F(VcpuTest, DeliversInterruptsAsSoonAsTheGuestTakesThem) {
  processor_->state.rflags &= ~kFlagIf;
  apic_.Accept({.vector = 0x44});
  vcpu_->Step();
  EXPECT_TRUE(processor_->window_wanted);
  EXPECT_TRUE(processor_->events.empty());
  processor_->state.rflags |= kFlagIf;
  vcpu_->Step();
  ASSERT_EQ(processor_->events.size(), 1u);
  EXPECT_EQ(processor_->events[0].vector, 0x44);
  EXPECT_FALSE(processor_->window_wanted);
}

TEST_F(VcpuTest, DeliversPicInterruptsThroughLint0) {
  apic_.WriteMmio(0x350, 0x700);
  for (const auto& [port, value] :
       {std::pair<std::uint64_t, std::uint64_t>{0x20, 0x11}, {0x21, 0x30}, {0x21, 4}, {0x21, 1}}) {
    pic_.Write({}, port, 1, value);
  }
  pic_.SetIrq(4, true);
  vcpu_->Step();
  ASSERT_EQ(processor_->events.size(), 1u);
  EXPECT_EQ(processor_->events[0].vector, 0x34);
}

TEST_F(VcpuTest, HaltedItDoesNotRunUntilAnInterrupt) {
  Exits({.reason = ExitReason::kHalt});
  vcpu_->Step();
  EXPECT_EQ(vcpu_->GetState().activity, Activity::kHalted);
  for (int i = 0; i < 3; ++i) vcpu_->Step(clock_.NowNs());
  EXPECT_EQ(processor_->runs, 1u);
  apic_.Accept({.vector = 0x55});
  vcpu_->Step();
  EXPECT_EQ(processor_->runs, 2u);
  ASSERT_EQ(processor_->events.size(), 1u);
  EXPECT_EQ(processor_->events[0].vector, 0x55);
}

// Whether the sender comes before the wait or into it, the wait ends.
TEST_F(VcpuTest, AnInterruptOfAnotherThreadEndsTheWait) {
  Exits({.reason = ExitReason::kHalt});
  vcpu_->Step();
  std::thread sender([&] { apic_.Accept({.vector = 0x55}); });
  while (processor_->events.empty()) vcpu_->Step();
  sender.join();
  EXPECT_EQ(processor_->events[0].vector, 0x55);
}

TEST_F(VcpuTest, AnX87ErrorRaisesIrq13AndPortF0LetsTheUnitGoOn) {
  Exits({.reason = ExitReason::kBus,
         .bus = {.kind = BusAccess::Kind::kX87Error, .bytes = 1, .address = 1}});
  EXPECT_FALSE(vcpu_->Step().has_value());
  EXPECT_TRUE(pic_.HasInterrupt());
  coprocessor_error_.Write(BusSpace::kPort, 0xf0, 1, 0);
  Exits({.reason = ExitReason::kBus, .bus = {.kind = BusAccess::Kind::kX87Error, .bytes = 1}});
  EXPECT_FALSE(vcpu_->Step().has_value());
  ASSERT_EQ(processor_->answers.size(), 2u);
  EXPECT_EQ(processor_->answers[0].value, 0u);
  EXPECT_EQ(processor_->answers[1].value, 1u);
}

TEST_F(VcpuTest, HaltWaitsForTheTimer) {
  Exits({.reason = ExitReason::kHalt});
  apic_.WriteMmio(0x3e0, 0xb);
  apic_.WriteMmio(0x320, 0x66);
  apic_.WriteMmio(0x380, 1000);
  vcpu_->Step();
  clock_.Advance(500);
  vcpu_->Step();
  EXPECT_TRUE(processor_->events.empty());
  clock_.Advance(500);
  vcpu_->Step();
  ASSERT_EQ(processor_->events.size(), 1u);
  EXPECT_EQ(processor_->events[0].vector, 0x66);
}

TEST_F(VcpuTest, KickEndsAWait) {
  processor_->state.rflags &= ~kFlagIf;
  Exits({.reason = ExitReason::kHalt});
  vcpu_->Step();
  std::thread kicker([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    vcpu_->Kick();
  });
  vcpu_->Step();
  kicker.join();
}

TEST_F(VcpuTest, RunsShortSlicesTowardsADeadline) {
  std::uint64_t seen = 0;
  program_ = [&seen](FakeProcessor&, std::uint64_t budget) {
    seen = budget;
    return Exit{};
  };
  vcpu_->Step();
  EXPECT_EQ(seen, Vcpu::kSliceInstructions);
  apic_.WriteMmio(0x3e0, 0xb);
  apic_.WriteMmio(0x320, 0x66);
  apic_.WriteMmio(0x380, 100'000);
  vcpu_->Step();
  EXPECT_EQ(seen, 10'000u);
}

TEST_F(VcpuTest, ReportsShutdownAndReset) {
  Exits({.reason = ExitReason::kShutdown});
  EXPECT_EQ(vcpu_->Step()->reason, StopReason::kShutdown);
  apic_.Accept({.mode = DeliveryMode::kInit});
  EXPECT_EQ(vcpu_->Step()->reason, StopReason::kReset);
}

TEST_F(VcpuTest, FlushesBeforeTheGuestRunsOn) {
  vcpu_->RequestFlush();
  vcpu_->WaitOutOfGuest();  // it is not in the guest
  EXPECT_EQ(processor_->flushes, 0u);
  vcpu_->Step();
  EXPECT_EQ(processor_->flushes, 1u);
}

TEST_F(VcpuTest, FlushWaitsUntilTheGuestIsLeft) {
  std::atomic<bool> inside{false}, done{false};
  program_ = [&](FakeProcessor& p, std::uint64_t) {
    inside = true;
    while (!p.exit_requested) std::this_thread::yield();
    done = true;
    return Exit{.reason = ExitReason::kRequested};
  };
  std::thread runner([&] { vcpu_->Step(); });
  while (!inside) std::this_thread::yield();
  vcpu_->RequestFlush();
  vcpu_->WaitOutOfGuest();
  EXPECT_TRUE(done);
  runner.join();
}

TEST_F(VcpuTest, NestedPagingRunsOnTheGuestMmu) {
  NestedPaging nested = {.root = Gpa(0x5000), .tables_are_written = true};
  unsigned step = 0;
  program_ = [&](FakeProcessor& p, std::uint64_t) -> Exit {
    switch (step++) {
      case 0:
        EXPECT_FALSE(p.tables.tables_are_written);
        p.nested = nested;
        p.nested_invalidation = NestedInvalidation{.root = Gpa(0x6000)};
        return {.reason = ExitReason::kNestedPaging};
      case 1:
        EXPECT_TRUE(p.tables.second_stage);
        EXPECT_TRUE(p.tables.tables_are_written);
        EXPECT_EQ(p.tables.format, &guest_mmu_->format());
        return Fault(0x1000, Access::Write(Privilege::kUser));
      case 2:
        EXPECT_EQ(p.nested_faults.size(), 1u);
        p.nested.reset();
        return {.reason = ExitReason::kNestedPaging};
      default:
        EXPECT_EQ(p.tables.format, &mmu_->format());
        return {.reason = ExitReason::kRequested};
    }
  };
  guest_mmu_->answer = {
      .outcome = FaultOutcome::kGuestFault,
      .guest_fault = {.kind = WalkFault::Kind::kRights, .rights = Rights(Rights::kRead)}};
  EXPECT_FALSE(vcpu_->Step(0).has_value());
  EXPECT_EQ(guest_mmu_->walked, std::vector{Gpa(0x5000)});
  EXPECT_EQ(guest_mmu_->invalidated, std::vector{NestedInvalidation{.root = Gpa(0x6000)}});
  EXPECT_TRUE(mmu_->faults.empty());
  ASSERT_EQ(processor_->nested_faults.size(), 1u);
  const NestedFault& told = processor_->nested_faults[0];
  EXPECT_EQ(told.address, Gpa(0x1000));
  EXPECT_TRUE(told.access.is_write());
  EXPECT_TRUE(told.present);
  EXPECT_FALSE(told.malformed);
  EXPECT_EQ(told.rights, Rights(Rights::kRead));
}

// It leaves nested paging for an event, and tells with the next exit: until then roots may be asked
// for.
TEST_F(VcpuTest, NestedPagingIsLeftBeforeItIsTold) {
  unsigned step = 0;
  program_ = [&](FakeProcessor& p, std::uint64_t) -> Exit {
    switch (step++) {
      case 0:
        p.nested = NestedPaging{};
        return {.reason = ExitReason::kNestedPaging};
      case 1:
        p.nested.reset();
        guest_mmu_->obsolete = true;
        return Fault(0x1000, Access::Write(Privilege::kUser));
      case 2:
        return {.reason = ExitReason::kNestedPaging};
      default:
        EXPECT_EQ(p.tables.format, &mmu_->format());
        return {.reason = ExitReason::kRequested};
    }
  };
  EXPECT_FALSE(vcpu_->Step(0).has_value());
  EXPECT_GE(step, 4u);
}

// A and D of a guest's own tables: there is no linear address to lend a page for. The MMU hears of
// words that have changed, once, and of what has changed in them.
TEST_F(VcpuTest, ATableThatIsWatchedMayBeWrittenByItsWalk) {
  std::uint64_t words[2] = {0x2007, 0x3007};
  Exit exit = Fault(0x1008, Access::Write(Privilege::kUser),
                    {.kind = BusAccess::Kind::kMmioWrite, .address = 0x1008});
  exit.fault.stage = Stage::kTable;
  mmu_->answer.outcome = FaultOutcome::kWriteProtected;
  mmu_->answer.host = Hpa(reinterpret_cast<std::uintptr_t>(&words[1]));
  unsigned runs = 0;
  program_ = [&](FakeProcessor& processor, std::uint64_t) {
    if (++runs == 2) words[1] |= 0x20;
    if (runs == 4) words[1] |= std::uint64_t{0x20} << 32;
    if (runs > 4) processor.retired = 1;
    return runs > 5 ? Exit{.reason = ExitReason::kRequested} : exit;
  };
  while (runs < 6) ASSERT_FALSE(vcpu_->Step(0).has_value());
  EXPECT_TRUE(processor_->lent.empty());
  ASSERT_FALSE(processor_->answers.empty());
  EXPECT_EQ(processor_->answers[0].value, 1u);
  using Written = std::vector<std::pair<Gpa, std::uint64_t>>;
  EXPECT_EQ(mmu_->written, (Written{{Gpa(0x1008), 4}, {Gpa(0x100c), 4}}));
}

// Out of guest mode as well, wherever the guest was when it asked.
TEST_F(VcpuTest, ToSleepIsToBeReset) {
  processor_->state.rip = 0x1234;
  vcpu_->Suspend();
  EXPECT_FALSE(vcpu_->Step(0).has_value());
  EXPECT_EQ(processor_->resets, 1u);
  EXPECT_EQ(vcpu_->GetState().activity, Activity::kHalted);
}

// A vCPU whose time is that of its instructions: a run executes as many as it may.
class VcpuVirtualTime : public testing::Test {
 protected:
  VcpuVirtualTime() {
    auto made = std::make_unique<FakeProcessor>([this](FakeProcessor&, std::uint64_t budget) {
      budgets_.push_back(budget);
      executed_ += halts_ ? 0 : budget;
      time_->SetInstructions(executed_);
      return Exit{.reason = halts_ ? ExitReason::kHalt : ExitReason::kBudget};
    });
    processor_ = made.get();
    vcpu_ = std::make_unique<Vcpu>(
        VcpuEnvironment{.clock = &clock_, .virtual_time = time_.get(), .bus = &bus_, .pic = &pic_},
        std::move(made), std::make_unique<FakeMmu>(), nullptr, apic_, msrs_);
    apic_.WriteMmio(0xf0, 0x1ff);
    processor_->state.rflags |= kFlagIf;
  }
  void StartTimer(std::uint32_t ns) {
    apic_.WriteMmio(0x3e0, 0xb);
    apic_.WriteMmio(0x320, 0x66);
    apic_.WriteMmio(0x380, ns);
  }

  const std::shared_ptr<VirtualTime> time_ = std::make_shared<VirtualTime>();
  const VirtualClock clock_{time_};
  Bus bus_;
  ApicBus apic_bus_;
  Pic pic_{[](bool) {}};
  LocalApic apic_{{}, clock_, apic_bus_, [] {}};
  MsrFile msrs_{apic_, {.tsc_deadline = true}};
  std::vector<std::uint64_t> budgets_;
  std::uint64_t executed_ = 0;
  bool halts_ = false;
  FakeProcessor* processor_ = nullptr;
  std::unique_ptr<Vcpu> vcpu_;
};

TEST_F(VcpuVirtualTime, RunsExactlyToTheDeadline) {
  StartTimer(4000);
  vcpu_->Step();
  EXPECT_EQ(budgets_, std::vector<std::uint64_t>{1000});
  EXPECT_TRUE(processor_->events.empty());
  vcpu_->Step();
  ASSERT_EQ(processor_->events.size(), 1u);
  EXPECT_EQ(processor_->events[0].vector, 0x66);
}

TEST_F(VcpuVirtualTime, SkipsToTheDeadlineWhileHalted) {
  halts_ = true;
  StartTimer(4'000'000'000);
  vcpu_->Step();  // halts
  vcpu_->Step();  // sleeps
  EXPECT_EQ(time_->NowNs(), 4'000'000'000u);
  vcpu_->Step();
  EXPECT_EQ(processor_->events.size(), 1u);
}

TEST_F(VcpuVirtualTime, StandsStillWhileHaltedForGood) {
  halts_ = true;
  for (int i = 0; i < 3; ++i) vcpu_->Step();
  EXPECT_EQ(time_->NowNs(), 0u);
}

TEST_F(VcpuVirtualTime, IsNotSkippedToWhereItWouldWrap) {
  halts_ = true;
  apic_.WriteMmio(0x320, 2u << 17 | 0x66);  // TSC deadline
  apic_.WriteTscDeadline(~std::uint64_t{0} - 1);
  for (int i = 0; i < 3; ++i) vcpu_->Step();
  EXPECT_EQ(time_->NowNs(), 0u);
}

TEST(VcpuStartUp, ASecondProcessorWaitsForItsVector) {
  FakeClock clock;
  Bus bus;
  ApicBus apic_bus;
  Pic pic([](bool) {});
  LocalApic apic({.id = 1, .bootstrap = false}, clock, apic_bus, [] {});
  MsrFile msrs(apic, {});
  auto made = std::make_unique<FakeProcessor>([](FakeProcessor&, std::uint64_t) { return Exit{}; });
  FakeProcessor& processor = *made;
  Vcpu vcpu({.clock = &clock, .bus = &bus, .pic = &pic}, std::move(made),
            std::make_unique<FakeMmu>(), nullptr, apic, msrs);
  vcpu.Step(0);
  EXPECT_EQ(processor.runs, 0u);
  EXPECT_EQ(vcpu.GetState().activity, Activity::kWaitForSipi);
  apic.Accept({.mode = DeliveryMode::kInit});
  apic.Accept({.mode = DeliveryMode::kStartUp, .vector = 0x12});
  vcpu.Step(0);
  EXPECT_EQ(processor.runs, 1u);
  EXPECT_EQ(processor.state.rip, 0u);
  EXPECT_EQ(processor.state.segments[kCs].base, 0x12000u);
  apic.Accept({.mode = DeliveryMode::kStartUp, .vector = 0x13});  // ignored: it runs
  vcpu.Step(0);
  EXPECT_EQ(processor.state.segments[kCs].base, 0x12000u);
}

}  // namespace
}  // namespace pagesaw
