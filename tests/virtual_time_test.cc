// With a virtual clock two runs of one image are the same, whatever the host does meanwhile.
#include <absl/status/status.h>
#include <gtest/gtest.h>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

import pagesaw.control.parts;
import pagesaw.core.plugin;
import pagesaw.core.shadow_mmu;
import pagesaw.machine.console;
import pagesaw.machine.vm;
import pagesaw.machine.vm_config;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;

struct Case {
  const char* name;
  const char* image;
  const char* vendor;
  bool tdp;
};

struct Outcome {
  std::string console;
  std::uint64_t instructions = 0;
  std::vector<std::uint64_t> mmu;
  bool operator==(const Outcome&) const = default;
};

std::vector<std::uint64_t> Numbers(const MmuStatistics& s) {
  return {s.faults,
          s.faults_fixed,
          s.faults_fixed_unlocked,
          s.faults_spurious,
          s.faults_mmio,
          s.faults_guest,
          s.pages_4k,
          s.pages_2m,
          s.pages_1g,
          s.mmio_sptes,
          s.shadow_pages,
          s.shadow_pages_made,
          s.zaps,
          s.remote_flushes};
}

class VirtualTime : public testing::TestWithParam<Case> {
 protected:
  VirtualTime() {
    EXPECT_FALSE(vmx::MakeVmxPlugin()->Register(registry_));
    EXPECT_FALSE(svm::MakeSvmPlugin()->Register(registry_));
    EXPECT_FALSE(mbec::MakeMbecPlugin()->Register(registry_));
  }
  Outcome Run(ClockKind clock) {
    VmConfig config;
    config.name = "virtual-time-test";
    config.image_path = GetParam().image;
    config.cmdline = "once";
    config.vendor = GetParam().vendor;
    config.tdp = GetParam().tdp;
    config.memory_bytes = std::uint64_t{64} << 20;
    config.clock = clock;
    const auto vm = Vm::Create(config, registry_, MakeVmParts());
    EXPECT_TRUE(vm.ok()) << vm.status();
    EXPECT_TRUE((*vm)->Start().ok());
    EXPECT_TRUE((*vm)->WaitUntilStopped(milliseconds(60'000)));
    const VmStatistics statistics = (*vm)->Statistics();
    return {.console = (*vm)->console().Read(0, 1 << 20, milliseconds(0)).data,
            .instructions = statistics.vcpus[0].instructions,
            .mmu = Numbers(statistics.mmu)};
  }

  PluginRegistry registry_;
};

TEST_P(VirtualTime, TwoRunsAreTheSame) {
  const Outcome first = Run(ClockKind::kVirtual);
  const Outcome second = Run(ClockKind::kVirtual);
  EXPECT_EQ(first.console, second.console);
  EXPECT_EQ(first.instructions, second.instructions);
  EXPECT_EQ(first.mmu, second.mmu);
  EXPECT_GT(first.instructions, 0u);
  EXPECT_FALSE(first.console.empty());
}

// Or the test above could not fail.
TEST_P(VirtualTime, TheHostsClockIsSeenByTheGuestThatPrintsIt) {
  const bool prints = std::string(GetParam().image).find("clocks") != std::string::npos;
  EXPECT_EQ(Run(ClockKind::kHost).console == Run(ClockKind::kHost).console, !prints);
}

INSTANTIATE_TEST_SUITE_P(
    Guests, VirtualTime,
    testing::Values(Case{"ClocksIntel", "guests/edge/clocks.elf", "intel", true},
                    Case{"ClocksAmdShadow", "guests/edge/clocks.elf", "amd", false},
                    Case{"TourIntelShadow", "guests/tour.elf", "intel", false},
                    Case{"TourAmd", "guests/tour.elf", "amd", true}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw
