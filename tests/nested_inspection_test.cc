// Looking at a guest's guest from outside, on the whole machine, as each vendor's processor: both
// stages of its walks, who hears of what refuses them, its shadow MMU and its control structure.
// The guests are //guests:ept and //guests:npt, whose own guest reads one page for ever.
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <vector>

import pagesaw.control.parts;
import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.plugin;
import pagesaw.core.shadow_mmu;
import pagesaw.core.virt_extension;
import pagesaw.machine.vm;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;
using Taker = Verdict::Taker;

constexpr Access kRead = Access::Read(Privilege::kSupervisor);
constexpr Access kWrite = Access::Write(Privilege::kSupervisor);
// Where neither hypervisor's guest comes while it stays: a large page of both stages.
constexpr std::uint64_t kElsewhere = 40u << 20;

// Vendor, and whether the hypervisor's own translation has two stages.
class NestedInspection : public testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  void SetUp() override {
    const std::unique_ptr<Plugin> plugins[] = {vmx::MakeVmxPlugin(), svm::MakeSvmPlugin(),
                                               mbec::MakeMbecPlugin()};
    for (const auto& plugin : plugins) ASSERT_FALSE(plugin->Register(registry_));
  }
  void TearDown() override {
    if (vm_ != nullptr) EXPECT_TRUE(vm_->Stop().ok());
  }

  bool intel() const { return std::get<0>(GetParam()) == "intel"; }
  // What the guest's guest reads, and where that is in its memory and in its hypervisor's.
  std::uint64_t linear() const { return intel() ? 0x4000'0000 : 0x200'5000; }
  std::uint64_t of_guest() const { return intel() ? std::uint64_t{512} << 30 : 0x200'5000; }
  std::uint64_t of_hypervisor() const { return intel() ? 0x200'0000 : 0x200'4000; }

  // Until the guest's guest runs.
  void Start(const std::string& cmdline) {
    VmConfig config;
    config.name = "nest";
    config.vendor = std::get<0>(GetParam());
    config.tdp = std::get<1>(GetParam());
    config.image_path = intel() ? "guests/ept.elf" : "guests/npt.elf";
    config.cmdline = cmdline;
    auto vm = Vm::Create(config, registry_, MakeVmParts());
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    ASSERT_TRUE(vm_->Start().ok());
  }
  std::string Console() const {
    return vm_->console().Read(0, Console::kDefaultBytes, milliseconds(0)).data;
  }
  void StartAndStay(const std::string& cmdline) {
    Start(cmdline);
    for (int i = 0; i < 6000 && Console().find("the guest stays\n") == std::string::npos; ++i) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    // Its last lines come before guest mode is entered.
    for (int i = 0; i < 1000 && !vm_->GetNestedState(0)->guest_mode; ++i) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    ASSERT_TRUE(vm_->GetNestedState(0)->guest_mode) << Console();
  }

  WalkReport Walk(std::string_view walker, std::uint64_t address, Access access) {
    auto report = vm_->Walk(0, walker, InputAddress(address), access);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *std::move(report) : WalkReport{};
  }
  std::uint64_t Read(std::uint64_t gpa) {
    std::uint64_t value = 0;
    EXPECT_TRUE(vm_->ReadMemory(Gpa(gpa), std::as_writable_bytes(std::span(&value, 1))).ok());
    return value;
  }
  void Write(std::uint64_t gpa, std::uint64_t value) {
    EXPECT_TRUE(vm_->WriteMemory(Gpa(gpa), std::as_bytes(std::span(&value, 1))).ok());
  }
  const StructureField* Find(const NestedState& state, std::string_view name) {
    for (const StructureField& field : state.fields) {
      if (field.name == name) return &field;
    }
    return nullptr;
  }

  PluginRegistry registry_;
  std::unique_ptr<Vm> vm_;
};

TEST_P(NestedInspection, AWalkShowsBothStages) {
  StartAndStay("stay");
  const WalkReport walk = Walk("cpu_walk", linear(), kRead);
  ASSERT_TRUE(walk.result);
  EXPECT_TRUE(walk.guest_mode);
  EXPECT_EQ(walk.result->output.bits(), of_guest());
  const std::size_t steps = walk.trace.steps().size();
  EXPECT_EQ(steps, intel() ? 4u : 3u);
  ASSERT_EQ(walk.nested.size(), steps + 1);
  for (std::size_t i = 0; i < steps; ++i) {
    EXPECT_EQ(walk.nested[i].stage, Stage::kTable);
    EXPECT_EQ(walk.nested[i].level, walk.trace.steps()[i].level);
    EXPECT_EQ(walk.nested[i].address.bits(), walk.trace.steps()[i].entry_address.bits());
    ASSERT_TRUE(walk.nested[i].result);
    EXPECT_EQ(Read(walk.nested[i].result->output.bits()), walk.trace.steps()[i].entry);
  }
  EXPECT_EQ(walk.nested.back().stage, Stage::kFinal);
  EXPECT_EQ(walk.nested.back().trace.steps().size(), 4u);
  EXPECT_EQ(walk.nested.back().result->output.bits(), of_hypervisor());
  EXPECT_EQ(walk.verdict.taker, Taker::kNobody);

  const WalkReport physical = Walk("tdp_walk", of_guest(), kRead);
  ASSERT_TRUE(physical.result);
  EXPECT_EQ(physical.result->output.bits(), of_hypervisor());
  EXPECT_TRUE(physical.nested.empty());
}

TEST_P(NestedInspection, ShadowMmusAndRootsAreThoseOfBothGuests) {
  StartAndStay("stay");
  const auto mmus = vm_->ShadowMmus(0);
  ASSERT_EQ(mmus->size(), 2u);
  EXPECT_EQ((*mmus)[0].name, "root_mmu");
  EXPECT_FALSE((*mmus)[0].active);
  EXPECT_EQ((*mmus)[1].name, "guest_mmu");
  EXPECT_TRUE((*mmus)[1].active);
  EXPECT_EQ((*mmus)[1].walker, "tdp_walk");
  EXPECT_EQ((*mmus)[1].format_name, intel() ? "ept-mbec" : "npt-gmet");
  const auto walkers = vm_->Walkers(0);
  ASSERT_EQ(walkers->size(), 2u);
  EXPECT_EQ((*walkers)[1].name, "tdp_walk");
  EXPECT_EQ((*walkers)[1].root_level, 4u);
  EXPECT_EQ((*walkers)[1].format_name, intel() ? "ept-mbec" : "npt");
  const auto roots = vm_->Roots(0, "guest_mmu");
  ASSERT_FALSE(roots->empty());
  EXPECT_TRUE(roots->front().current);
  EXPECT_EQ(roots->front().root_register, (*walkers)[1].root_register);

  const auto sptes = vm_->WalkSptes(0, "guest_mmu", InputAddress(of_guest()), kRead);
  ASSERT_TRUE(sptes->result);
  // Host memory that holds what the hypervisor has there: the page's first bytes.
  std::uint64_t seen = 0;
  std::memcpy(&seen, reinterpret_cast<const void*>(sptes->result->output.bits()), sizeof seen);
  EXPECT_EQ(seen, Read(of_hypervisor()));
  EXPECT_FALSE(vm_->Roots(0, "tdp_mmu").ok());
}

TEST_P(NestedInspection, TheControlStructureIsShownByName) {
  StartAndStay("stay");
  const auto state = vm_->GetNestedState(0);
  ASSERT_TRUE(state.ok());
  ASSERT_TRUE(state->structure);
  ASSERT_TRUE(state->tdp_walk);
  EXPECT_EQ(state->structure_name, intel() ? "VMCS" : "VMCB");
  const StructureField* const root = Find(*state, intel() ? "EPT pointer" : "nCR3");
  ASSERT_NE(root, nullptr);
  EXPECT_EQ(root->value, state->tdp_walk->root_register);
  const StructureField* const cr3 = Find(*state, intel() ? "guest CR3" : "CR3");
  ASSERT_NE(cr3, nullptr);
  EXPECT_EQ(cr3->value, vm_->GetPagingState(0)->cr3);
}

TEST_P(NestedInspection, WithoutNestedPagingThereIsOneStage) {
  StartAndStay("stay-plain");
  const WalkReport walk = Walk("cpu_walk", 0x200'5000, kRead);
  ASSERT_TRUE(walk.result);
  EXPECT_TRUE(walk.guest_mode);
  EXPECT_TRUE(walk.nested.empty());
  EXPECT_EQ(walk.result->output.bits(), 0x200'5000u);
  EXPECT_EQ(vm_->Walkers(0)->size(), 1u);
  const auto none = vm_->Walk(0, "tdp_walk", InputAddress(0), kRead);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(none.status().message().find("has now only cpu_walk"), std::string::npos);
  EXPECT_TRUE((*vm_->ShadowMmus(0))[0].active);
  EXPECT_FALSE(vm_->GetNestedState(0)->tdp_walk);
  EXPECT_TRUE(vm_->GetNestedState(0)->structure);
}

// -- who hears of what

// Makes an entry another while it lives; the VM is paused.
class Changed {
 public:
  Changed(Vm& vm, std::uint64_t gpa, std::uint64_t set, std::uint64_t clear) : vm_(vm), gpa_(gpa) {
    EXPECT_TRUE(vm_.ReadMemory(Gpa(gpa_), std::as_writable_bytes(std::span(&was_, 1))).ok());
    Store((was_ & ~clear) | set);
  }
  ~Changed() { Store(was_); }

 private:
  void Store(std::uint64_t value) {
    EXPECT_TRUE(vm_.WriteMemory(Gpa(gpa_), std::as_bytes(std::span(&value, 1))).ok());
  }

  Vm& vm_;
  const std::uint64_t gpa_;
  std::uint64_t was_ = 0;
};

TEST_P(NestedInspection, TheTakerOfAFaultIsNamed) {
  StartAndStay("stay");
  ASSERT_TRUE(vm_->Pause().ok());
  const WalkReport clean = Walk("cpu_walk", kElsewhere, kWrite);
  ASSERT_TRUE(clean.result);
  ASSERT_EQ(clean.trace.steps().size(), 3u);
  ASSERT_EQ(clean.nested.size(), 4u);
  const std::uint64_t own_pde = clean.nested[2].result->output.bits();
  const std::uint64_t nested_pde = clean.nested[3].trace.steps().back().entry_address.bits();
  {
    const Changed changed(*vm_, own_pde, 0, 2);
    const WalkReport walk = Walk("cpu_walk", kElsewhere, kWrite);
    // The hypervisor on AMD's intercepts every exception, that on Intel's leaves it page faults.
    EXPECT_EQ(walk.verdict.taker, intel() ? Taker::kGuest : Taker::kHypervisor);
    EXPECT_EQ(walk.verdict.event, "#PF");
    EXPECT_EQ(walk.verdict.code, 3u);
    EXPECT_EQ(walk.verdict.address, kElsewhere);
  }
  {
    const Changed changed(*vm_, nested_pde, 0, 0x407);
    const WalkReport walk = Walk("cpu_walk", kElsewhere + 0x123, kWrite);
    EXPECT_EQ(walk.result.fault().kind, WalkFault::Kind::kSecondStage);
    EXPECT_EQ(walk.verdict.taker, Taker::kHypervisor);
    EXPECT_EQ(walk.verdict.event, intel() ? "EPT violation" : "nested page fault");
    // Of the page only: bits 7 and 8, and the guest may write and a supervisor execute it (bit 10).
    EXPECT_EQ(walk.verdict.code, intel() ? 0x582u : 0x1'0000'0006u);
    EXPECT_EQ(walk.verdict.address, kElsewhere + 0x123);
    EXPECT_EQ(Walk("tdp_walk", kElsewhere, kRead).verdict.taker, Taker::kHypervisor);
  }
  {
    // A bit that nested large pages must have clear.
    const Changed changed(*vm_, nested_pde, 1u << 13, 0);
    const WalkReport walk = Walk("cpu_walk", kElsewhere, kRead);
    EXPECT_EQ(walk.verdict.event, intel() ? "EPT misconfiguration" : "nested page fault");
    EXPECT_EQ(walk.verdict.code, intel() ? 0u : 0x1'0000'000du);
  }
  {
    // The nested page that holds the guest's own page directory.
    const std::uint64_t of_table = clean.nested[2].trace.steps().back().entry_address.bits();
    const Changed changed(*vm_, of_table, 0, 0x407);
    const WalkReport walk = Walk("cpu_walk", kElsewhere, kRead);
    EXPECT_EQ(walk.nested.back().stage, Stage::kTable);
    EXPECT_EQ(walk.nested.back().level, Level::kPd);
    EXPECT_EQ(walk.verdict.code, intel() ? 0x83u : 0x2'0000'0006u);
    EXPECT_EQ(walk.verdict.address, clean.nested[2].address.bits());
  }
}

// What a walk foretells is what the processor then tells the hypervisor, whose guest reads the
// page.
TEST_P(NestedInspection, WhatIsForetoldHappens) {
  // An entry of nested tables that is cleared: of the last table, or of another one of the guest's.
  for (const bool of_table : {false, true}) {
    if (of_table && !intel()) continue;  // it shares its tables with its code
    StartAndStay("stay");
    ASSERT_TRUE(vm_->Pause().ok());
    const WalkReport clean = Walk("cpu_walk", linear(), kRead);
    ASSERT_TRUE(clean.result);
    const NestedWalk& changed = clean.nested[clean.nested.size() - (of_table ? 2 : 1)];
    Write(changed.trace.steps().back().entry_address.bits(), 0);
    const WalkReport foretold = Walk("cpu_walk", linear(), kRead);
    ASSERT_EQ(foretold.verdict.taker, Taker::kHypervisor);
    ASSERT_TRUE(vm_->Resume().ok());
    ASSERT_TRUE(vm_->WaitUntilStopped(milliseconds(60'000))) << Console();
    const auto state = vm_->GetNestedState(0);
    ASSERT_TRUE(state.ok());
    EXPECT_FALSE(state->guest_mode);
    EXPECT_EQ(Find(*state, intel() ? "exit reason" : "EXITCODE")->meaning,
              intel() ? "EPT violation" : "VMEXIT_NPF");
    EXPECT_EQ(Find(*state, intel() ? "exit qualification" : "EXITINFO1")->value,
              foretold.verdict.code);
    EXPECT_EQ(Find(*state, intel() ? "guest-physical address" : "EXITINFO2")->value,
              foretold.verdict.address);
  }
}

TEST_P(NestedInspection, TheHostIsNamedWhereItRefuses) {
  StartAndStay("stay");
  ASSERT_TRUE(vm_->Pause().ok());
  const WalkReport clean = Walk("cpu_walk", kElsewhere, kWrite);
  const std::uint64_t nested_pde = clean.nested[3].trace.steps().back().entry_address.bits();
  const auto set = [&](std::uint64_t gpa, unsigned rights) {
    const MemoryAttribute attribute = {.rights = Rights(rights)};
    EXPECT_TRUE(vm_->SetMemoryAttribute(Gpa(gpa), kPageBytes, attribute).ok());
  };
  const unsigned all = MemoryAttribute::kEverything.bits();
  set(kElsewhere, all & ~unsigned{Rights::kWrite});
  WalkReport walk = Walk("cpu_walk", kElsewhere, kWrite);
  EXPECT_TRUE(walk.result) << "the guest's tables allow it";
  EXPECT_EQ(walk.verdict.taker, Taker::kHost);
  EXPECT_EQ(walk.verdict.event, "memory attribute");
  EXPECT_EQ(walk.verdict.address, kElsewhere);
  EXPECT_EQ(Walk("cpu_walk", kElsewhere, kRead).verdict.taker, Taker::kNobody);
  EXPECT_EQ(Walk("tdp_walk", kElsewhere, kWrite).verdict.taker, Taker::kHost);
  set(kElsewhere, all);
  {
    const Changed nowhere(*vm_, nested_pde, 0xfe00'0000, 0x3fe0'0000);
    walk = Walk("cpu_walk", kElsewhere, kRead);
    EXPECT_TRUE(walk.result);
    EXPECT_EQ(walk.verdict.taker, Taker::kHost);
    EXPECT_EQ(walk.verdict.event, "no memory");
  }
  EXPECT_EQ(Walk("cpu_walk", kElsewhere, kWrite).verdict.taker, Taker::kNobody);
}

// -- while it runs

// The two change places all the time: what is seen is always one or the other.
TEST_P(NestedInspection, ASwitchIsNeverSeenHalf) {
  Start("switches=2000000000");
  for (int i = 0; i < 6000 && !vm_->GetNestedState(0)->structure; ++i) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  // Linear addresses of the guest's guest whose tables nobody else has.
  const std::uint64_t address = linear();
  unsigned of_guest_count = 0, of_hypervisor_count = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while ((of_guest_count < 200 || of_hypervisor_count < 200) &&
         std::chrono::steady_clock::now() < end) {
    const WalkReport walk = Walk("cpu_walk", address, kRead);
    const bool nested = !walk.nested.empty();
    ASSERT_EQ(nested, walk.guest_mode);
    ++(nested ? of_guest_count : of_hypervisor_count);
    for (const NestedWalk& table : walk.nested) {
      if (table.stage == Stage::kTable) ASSERT_TRUE(table.result) << Console();
    }
    if (nested) {
      // Tables of the hypervisor's own would lie elsewhere: its guest's are at 6 MiB and above.
      const std::uint64_t root = walk.trace.steps()[0].entry_address.bits();
      ASSERT_TRUE(root >= 6u << 20 && root < 8u << 20) << root;
    } else if (!walk.trace.steps().empty()) {
      const std::uint64_t root = walk.trace.steps()[0].entry_address.bits();
      ASSERT_FALSE(root >= 6u << 20 && root < 8u << 20) << root;
    }
    ASSERT_TRUE(vm_->ShadowMmus(0).ok());
    ASSERT_TRUE(vm_->Roots(0, "guest_mmu").ok());
    ASSERT_TRUE(vm_->WalkSptes(0, "guest_mmu", InputAddress(address), kRead).ok());
  }
  EXPECT_GE(of_guest_count, 200u) << Console();
  EXPECT_GE(of_hypervisor_count, 200u) << Console();
}

TEST_P(NestedInspection, LookingSetsNoBits) {
  StartAndStay("stay");
  ASSERT_TRUE(vm_->Pause().ok());
  const WalkReport clean = Walk("cpu_walk", kElsewhere, kRead);
  // Where they lie, and which of their bits are A and D.
  struct Entry {
    std::uint64_t gpa, bits;
  };
  std::vector<Entry> entries;
  for (const NestedWalk& nested : clean.nested) {
    const EntryLayout& layout = clean.nested_format.layout;
    for (const WalkStep& step : nested.trace.steps()) {
      entries.push_back({step.entry_address.bits(), layout.accessed | layout.dirty});
    }
    if (nested.stage == Stage::kTable) entries.push_back({nested.result->output.bits(), 0x60});
  }
  ASSERT_GT(entries.size(), 12u);
  for (const Entry& entry : entries) Write(entry.gpa, Read(entry.gpa) & ~entry.bits);
  for (const Access access : {kRead, kWrite, Access::Fetch(Privilege::kSupervisor)}) {
    EXPECT_TRUE(Walk("cpu_walk", kElsewhere, access).result);
    EXPECT_TRUE(Walk("tdp_walk", kElsewhere, access).result);
  }
  for (const Entry& entry : entries) EXPECT_EQ(Read(entry.gpa) & entry.bits, 0u) << entry.gpa;
}

INSTANTIATE_TEST_SUITE_P(Vendors, NestedInspection,
                         testing::Combine(testing::Values("intel", "amd"), testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) ? "XtwoStages" : "XoneStage");
                         });

}  // namespace
}  // namespace pagesaw
