#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.cpu_state;
import pagesaw.core.page_format;
import pagesaw.core.paging_state;
import pagesaw.core.page_walker;
import pagesaw.core.plugin;
import pagesaw.core.processor;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virt_extension;
import pagesaw.machine.fake_processor;
import pagesaw.machine.vm_manager;
import pagesaw.machine.vm_mmu;
import pagesaw.mmu.test_formats;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;

class FakeExtension final : public VirtExtension {
 public:
  std::string_view name() const override { return "fake"; }
  std::string_view vendor() const override { return "acme"; }
  std::string_view cpuid_vendor() const override { return "AcmeAcmeAcme"; }
  ExitDescription Describe(const TableFault&, const PageFormat&) const override { return {}; }
  void AdjustCpuid(std::uint32_t, std::uint32_t, CpuidResult&) const override {}
  void AdjustPagingFeatures(bool&, std::uint8_t&, unsigned) const override {}
};

// The whole machine with a processor that plays a program.
class VmTest : public testing::Test {
 protected:
  VmTest() {
    EXPECT_FALSE(registry_.AddExtension(std::make_unique<FakeExtension>()).has_value());
    EXPECT_FALSE(
        registry_
            .AddTdpFormat({.name = "acme-tdp",
                           .vendor = "acme",
                           .make = [](unsigned bits) { return LegacySecondStage(false, bits); }})
            .has_value());
    VmParts parts;
    parts.make_mmu = MakeVmMmu;
    parts.make_processor =
        [this](const ProcessorRequest& request) -> absl::StatusOr<std::unique_ptr<Processor>> {
      if (!request.cpu_features.empty()) return absl::InvalidArgumentError("no such feature");
      // While the VM is being made.
      loading_.push_back(manager_->Loading("vm").ok());
      auto processor = std::make_unique<FakeProcessor>(
          [this](FakeProcessor& p, std::uint64_t b) { return program_(p, b); });
      processors_.push_back(processor.get());
      return processor;
    };
    manager_ = std::make_unique<VmManager>(registry_, parts, std::uint64_t{1} << 30);
  }
  VmConfig Config(const std::string& name = "vm") {
    VmConfig config;
    config.name = name;
    config.vendor = "acme";
    config.memory_bytes = 16u << 20;
    return config;
  }
  std::shared_ptr<Vm> Make(const VmConfig& config) {
    auto vm = manager_->Create(config);
    EXPECT_TRUE(vm.ok()) << vm.status();
    return vm.ok() ? *vm : nullptr;
  }

  PluginRegistry registry_;
  FakeProcessor::Program program_ = [](FakeProcessor&, std::uint64_t) { return Exit{}; };
  std::vector<FakeProcessor*> processors_;  // of all VMs
  std::vector<bool> loading_;               // whether a VM "vm" was being made when they were
  std::unique_ptr<VmManager> manager_;
};

Exit PortWrite(std::uint64_t port, std::uint64_t value) {
  return {.reason = ExitReason::kBus,
          .bus = {.kind = BusAccess::Kind::kPortOut, .bytes = 1, .address = port, .value = value}};
}

TEST_F(VmTest, KeepsVmsByName) {
  EXPECT_EQ(manager_->Get("vm").status().code(), absl::StatusCode::kNotFound);
  Make(Config("b"));
  Make(Config("a"));
  EXPECT_EQ(manager_->Create(Config("a")).status().code(), absl::StatusCode::kAlreadyExists);
  ASSERT_EQ(manager_->List().size(), 2u);
  EXPECT_EQ(manager_->List()[0]->name(), "a");
  EXPECT_TRUE(manager_->Delete("a").ok());
  EXPECT_EQ(manager_->Delete("a").code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(manager_->Create(Config("a")).ok());
}

TEST_F(VmTest, KnowsWhatIsBeingMade) {
  Make(Config("vm"));
  Make(Config("another"));
  EXPECT_EQ(loading_, (std::vector<bool>{true, false}));
  EXPECT_EQ(manager_->Loading("vm").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(VmTest, LeavesNothingBehindWhenCreationFails) {
  const auto fails = [this](auto change) {
    VmConfig config = Config();
    change(config);
    const absl::Status status = manager_->Create(config).status();
    EXPECT_TRUE(manager_->List().empty());
    return status.code();
  };
  using enum absl::StatusCode;
  EXPECT_EQ(fails([](VmConfig& c) { c.vendor = "nobody"; }), kInvalidArgument);
  EXPECT_EQ(fails([](VmConfig& c) { c.execute_split = ExecuteSplit::kOn; }), kFailedPrecondition);
  EXPECT_EQ(fails([](VmConfig& c) { c.spte_accessed_dirty = c.tdp = false; }), kFailedPrecondition);
  EXPECT_EQ(fails([](VmConfig& c) { c.cpu_features = "+x"; }), kInvalidArgument);
  EXPECT_EQ(fails([](VmConfig& c) { c.memory_bytes = std::uint64_t{2} << 30; }),
            kResourceExhausted);
  EXPECT_EQ(fails([](VmConfig& c) { c.image_path = "/nonexistent"; }), kNotFound);
  EXPECT_TRUE(manager_->Create(Config()).ok());
}

TEST_F(VmTest, RunsUntilTheDebugExit) {
  program_ = [step = 0](FakeProcessor&, std::uint64_t) mutable {
    static constexpr std::string_view kText = "hi\n";
    const auto at = static_cast<std::size_t>(step++);
    return at < kText.size() ? PortWrite(0x3f8, static_cast<std::uint8_t>(kText[at]))
                             : PortWrite(0xf4, 5);
  };
  const auto vm = Make(Config());
  EXPECT_EQ(vm->exit().reason, StopReason::kNone);
  ASSERT_TRUE(vm->Start().ok());
  ASSERT_TRUE(vm->WaitUntilStopped(milliseconds(10'000)));
  EXPECT_EQ(vm->exit().reason, StopReason::kDebugExit);
  EXPECT_EQ(vm->exit().debug_exit_value, 5u);
  const ConsoleChunk chunk = vm->console().Read(0, 100, milliseconds(1000));
  EXPECT_EQ(chunk.data, "hi\n");
  EXPECT_TRUE(chunk.closed);
  EXPECT_EQ(vm->Start().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(VmTest, PausesAGuestThatNeverExits) {
  std::atomic<std::uint64_t> turns{0};
  program_ = [&](FakeProcessor&, std::uint64_t) {
    ++turns;
    return Exit{};
  };
  const auto vm = Make(Config());
  ASSERT_TRUE(vm->Start().ok());
  EXPECT_EQ(vm->GetRegisters(0).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(vm->Pause().ok());
  const std::uint64_t seen = turns;
  EXPECT_TRUE(vm->GetRegisters(0).ok());
  EXPECT_EQ(vm->GetRegisters(1).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(turns, seen);
  ASSERT_TRUE(vm->Resume().ok());
  while (turns == seen) std::this_thread::yield();
  EXPECT_TRUE(vm->Stop().ok());
  EXPECT_EQ(vm->exit().reason, StopReason::kRequested);
}

TEST_F(VmTest, AHaltedGuestObeysPauseAndTheTimeLimit) {
  program_ = [](FakeProcessor&, std::uint64_t) { return Exit{.reason = ExitReason::kHalt}; };
  VmConfig config = Config();
  config.time_limit = milliseconds(50);
  const auto vm = Make(config);
  ASSERT_TRUE(vm->Start().ok());
  ASSERT_TRUE(vm->Pause().ok());
  ASSERT_TRUE(vm->Resume().ok());
  ASSERT_TRUE(vm->WaitUntilStopped(milliseconds(10'000)));
  EXPECT_EQ(vm->exit().reason, StopReason::kTimeLimit);
  EXPECT_LE(vm->Statistics().vcpus[0].exits, 10u);
}

TEST_F(VmTest, ReadsAndWritesMemory) {
  const auto vm = Make(Config());
  const std::array<std::byte, 4> data = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  ASSERT_TRUE(vm->WriteMemory(Gpa(0xffe), data).ok());
  std::array<std::byte, 4> back = {};
  ASSERT_TRUE(vm->ReadMemory(Gpa(0xffe), back).ok());
  EXPECT_EQ(back, data);
  EXPECT_EQ(vm->WriteMemory(Gpa((16u << 20) - 2), data).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(vm->ReadMemory(Gpa(~0ull), back).code(), absl::StatusCode::kOutOfRange);
  ASSERT_EQ(vm->MemorySlots().size(), 1u);
}

TEST_F(VmTest, ChecksRegisters) {
  const auto vm = Make(Config());
  CpuState state = *vm->GetRegisters(0);
  state.gpr[kRax] = 42;
  ASSERT_TRUE(vm->SetRegisters(0, state).ok());
  EXPECT_EQ(vm->GetRegisters(0)->gpr[kRax], 42u);
  state.cr0 |= kCr0Pg;
  EXPECT_EQ(vm->SetRegisters(0, state).code(), absl::StatusCode::kInvalidArgument);
}

// Tables written by hand into a VM without image, then asked about.
TEST_F(VmTest, WalksTablesThatToolsWrote) {
  const auto vm = Make(Config());
  const auto write = [&](std::uint64_t gpa, std::uint64_t entry) {
    ASSERT_TRUE(vm->WriteMemory(Gpa(gpa), std::as_bytes(std::span(&entry, 1))).ok());
  };
  write(0x1000, 0x2003);
  write(0x2000, 0x3003);
  write(0x3000, 0x4003);
  write(0x4008, 0x7003);
  CpuState state = *vm->GetRegisters(0);
  state.segments[kCs].attributes = 0xa09b;
  state.cr0 |= kCr0Pe | kCr0Pg;
  state.cr3 = 0x1000;
  state.cr4 = kCr4Pae;
  state.efer = kEferLme | kEferLma;
  ASSERT_TRUE(vm->SetRegisters(0, state).ok());

  const auto walkers = vm->Walkers(0);
  ASSERT_TRUE(walkers.ok());
  EXPECT_EQ((*walkers)[0].mode, PagingMode::k4Level);
  EXPECT_EQ((*walkers)[0].root_register, 0x1000u);
  const Access read = Access::Read(Privilege::kSupervisor);
  const auto report = vm->Walk(0, "cpu_walk", InputAddress(0x1234), read);
  ASSERT_TRUE(report.ok() && report->result);
  EXPECT_EQ(GpaOf(report->result->output), Gpa(0x7234));
  EXPECT_EQ(report->trace.steps().size(), 4u);
  const auto hole = vm->Walk(0, "cpu_walk", InputAddress(0x2000), read);
  ASSERT_TRUE(hole.ok());
  EXPECT_EQ(hole->result.fault().kind, WalkFault::Kind::kNotPresent);
  EXPECT_EQ(vm->Walk(0, "nobody", InputAddress(0), read).status().code(),
            absl::StatusCode::kNotFound);
  std::uint64_t entry = 0;
  ASSERT_TRUE(vm->ReadMemory(Gpa(0x4008), std::as_writable_bytes(std::span(&entry, 1))).ok());
  EXPECT_EQ(entry, 0x7003u);  // looking set no A bit
}

TEST_F(VmTest, FaultsBuildSptesThatCanBeSeen) {
  program_ = [n = 0](FakeProcessor& p, std::uint64_t) mutable {
    ++p.retired;
    if (++n > 1) return Exit{.reason = ExitReason::kHalt};
    Exit exit{.reason = ExitReason::kTableFault};
    exit.fault.address = InputAddress(0x5678);
    exit.fault.access = Access::Write(Privilege::kSupervisor);
    return exit;
  };
  const auto vm = Make(Config());
  const Access write = Access::Write(Privilege::kSupervisor);
  EXPECT_FALSE(vm->WalkSptes(0, "root_mmu", InputAddress(0x5678), write)->result);
  ASSERT_TRUE(vm->Start().ok());
  while (vm->Statistics().vcpus[0].exits_halt == 0) std::this_thread::yield();
  const auto sptes = vm->WalkSptes(0, "root_mmu", InputAddress(0x5678), write);
  ASSERT_TRUE(sptes.ok() && sptes->result);
  EXPECT_EQ(reinterpret_cast<std::byte*>(HpaOf(sptes->result->output).bits()),
            vm->MemorySlots()[0].host + 0x5678);
  EXPECT_EQ(vm->Statistics().mmu.faults_fixed, 1u);
  EXPECT_EQ(vm->Roots(0, "root_mmu")->size(), 1u);
  EXPECT_GE(vm->ShadowPages(0, 100).size(), 2u);
  EXPECT_EQ((*vm->ShadowMmus(0))[0].format_name, "acme-tdp");
  EXPECT_EQ(vm->Roots(0, "x").status().code(), absl::StatusCode::kNotFound);
}

// Nothing else is forgotten.
TEST_F(VmTest, TellsProcessorsWhichBytesWereWritten) {
  program_ = [](FakeProcessor&, std::uint64_t) { return PortWrite(0xf4, 0); };
  VmConfig config = Config();
  config.cpu_count = 2;
  const auto vm = Make(config);
  const std::array<std::byte, 4> data = {};
  ASSERT_TRUE(vm->WriteMemory(Gpa(0x1ffe), data).ok());
  const auto host = reinterpret_cast<std::uint64_t>(vm->MemorySlots()[0].host);
  const std::vector<std::pair<Hpa, std::uint64_t>> expected = {{Hpa(host + 0x1ffe), 2},
                                                               {Hpa(host + 0x2000), 2}};
  ASSERT_EQ(processors_.size(), 2u);
  for (const FakeProcessor* processor : processors_) EXPECT_EQ(processor->changes, expected);
  ASSERT_TRUE(vm->Start().ok());
  ASSERT_TRUE(vm->WaitUntilStopped(milliseconds(60'000)));
  for (const FakeProcessor* processor : processors_) EXPECT_EQ(processor->flushes, 0u);
}

TEST_F(VmTest, ConsoleInputIsBounded) {
  const auto vm = Make(Config());
  EXPECT_TRUE(vm->WriteConsole("abc").ok());
  EXPECT_EQ(vm->WriteConsole(std::string(100'000, 'x')).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(VmTest, DeletingARunningVmStopsIt) {
  const auto vm = Make(Config());
  ASSERT_TRUE(vm->Start().ok());
  ASSERT_TRUE(manager_->Delete("vm").ok());
  EXPECT_EQ(vm->state(), VmState::kStopped);
}

}  // namespace
}  // namespace pagesaw
