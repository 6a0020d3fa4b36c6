// What a halted vCPU costs the host: nothing, next to one that runs.
#include <absl/status/status.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

import pagesaw.control.parts;
import pagesaw.core.plugin;
import pagesaw.machine.vm;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

double ProcessorSeconds() {
  rusage usage = {};
  EXPECT_EQ(getrusage(RUSAGE_SELF, &usage), 0);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class HaltTest : public testing::Test {
 protected:
  HaltTest() {
    EXPECT_FALSE(vmx::MakeVmxPlugin()->Register(registry_));
    EXPECT_FALSE(mbec::MakeMbecPlugin()->Register(registry_));
  }
  std::unique_ptr<Vm> Start(const std::string& image, unsigned cpus) {
    VmConfig config;
    config.name = "halt-test";
    config.image_path = "guests/edge/" + image + ".elf";
    config.cpu_count = cpus;
    auto vm = Vm::Create(config, registry_, MakeVmParts());
    EXPECT_TRUE(vm.ok()) << vm.status();
    EXPECT_TRUE((*vm)->Start().ok());
    return *std::move(vm);
  }
  // What the one that runs is given, however long a busy host takes for it; the others are watched
  // for as long.
  static constexpr double kSpinningSeconds = 0.2;

  PluginRegistry registry_;
};

TEST_F(HaltTest, HaltedProcessorsCostTheHostNothing) {
  auto spinning = Start("cli_loop", 1);
  const Clock::time_point begin = Clock::now();
  const double before = ProcessorSeconds();
  while (ProcessorSeconds() - before < kSpinningSeconds) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  const Clock::duration wall = Clock::now() - begin;
  ASSERT_TRUE(spinning->Stop().ok());
  spinning.reset();

  const auto halted = Start("many_halted", 8);
  for (unsigned i = 0; i < 8;) {  // until each has halted
    std::this_thread::sleep_for(milliseconds(10));
    if (halted->Statistics().vcpus[i].exits_halt != 0) ++i;
  }
  const double idle_before = ProcessorSeconds();
  std::this_thread::sleep_for(wall);
  const double idle = ProcessorSeconds() - idle_before;
  std::printf("one that runs: %.3f s, eight that halt: %.6f s\n", kSpinningSeconds, idle);
  EXPECT_LT(idle, kSpinningSeconds / 20);
}

}  // namespace
}  // namespace pagesaw
