// Runs the guests of //guests on the whole machine, as each vendor's processor: the tour must print
// what is expected to the letter, and an edge guest must end as the header of its source says.
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <vector>

import pagesaw.control.parts;
import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.plugin;
import pagesaw.machine.vm;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;

// Long enough for any guest that ends, on a slow host with sanitizers.
constexpr milliseconds kPatience(120'000);
// How long a guest that never ends is watched.
constexpr milliseconds kGlance(500);

std::string FileText(const std::filesystem::path& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// What the header of an edge guest's source says; see guests/edge/edge.inc.
struct Expectation {
  std::string end;      // "exit 1", "shutdown", "runs", "stops" or "any"
  std::string console;  // empty: not checked
  unsigned cpus = 1;
};

Expectation ExpectationOf(const std::filesystem::path& source) {
  constexpr std::string_view kExpect = "// expect: ", kConsole = "// console: ",
                             kCpus = "// cpus: ";
  Expectation expectation;
  std::istringstream lines(FileText(source));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(kExpect)) expectation.end = line.substr(kExpect.size());
    if (line.starts_with(kCpus)) {
      expectation.cpus = static_cast<unsigned>(std::stoul(line.substr(kCpus.size())));
    }
    if (line.starts_with(kConsole)) expectation.console += line.substr(kConsole.size()) + "\n";
  }
  return expectation;
}

std::vector<std::string> EdgeGuests() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("guests/edge")) {
    if (entry.path().extension() == ".S") names.push_back(entry.path().stem());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Vendor, whether translation has two stages, and the guest.
class GuestTest : public testing::TestWithParam<std::tuple<std::string, bool, std::string>> {
 protected:
  void SetUp() override {
    const std::unique_ptr<Plugin> plugins[] = {vmx::MakeVmxPlugin(), svm::MakeSvmPlugin(),
                                               mbec::MakeMbecPlugin()};
    for (const auto& plugin : plugins) ASSERT_FALSE(plugin->Register(registry_));
  }

  std::unique_ptr<Vm> MakeVm(const std::string& vendor, bool tdp, const std::string& image,
                             const std::string& cmdline, milliseconds time_limit = {},
                             unsigned cpus = 1) {
    VmConfig config;
    config.name = "guest";
    config.vendor = vendor;
    config.tdp = tdp;
    config.image_path = image;
    config.cmdline = cmdline;
    config.time_limit = time_limit;
    config.cpu_count = cpus;
    config.cpu_model = cpu_model_;
    config.cpu_features = cpu_features_;
    auto vm = Vm::Create(config, registry_, MakeVmParts());
    EXPECT_TRUE(vm.ok()) << vm.status();
    return vm.ok() ? *std::move(vm) : nullptr;
  }

  PluginRegistry registry_;
  std::string cpu_model_;
  std::string cpu_features_;
};

std::string ConsoleText(const Vm& vm) {
  return vm.console().Read(0, Console::kDefaultBytes, milliseconds(0)).data;
}

// Whoever looks gets an answer, and the VM obeys.
void ExpectHealthy(Vm& vm) {
  EXPECT_TRUE(vm.GetPagingState(0).ok());
  const auto walk =
      vm.Walk(0, "cpu_walk", InputAddress(0x100000), Access::Read(Privilege::kSupervisor));
  EXPECT_TRUE(walk.ok()) << walk.status();
  EXPECT_EQ(vm.Statistics().vcpus.size(), vm.vcpu_count());
  EXPECT_TRUE(vm.Stop().ok());
  EXPECT_EQ(vm.state(), VmState::kStopped);
}

void ExpectEnd(const std::string& end, const VmExit& exit) {
  if (end == "any") return;
  if (end == "shutdown") {
    EXPECT_EQ(exit.reason, StopReason::kShutdown) << exit.message;
  } else if (end == "runs") {
    EXPECT_EQ(exit.reason, StopReason::kTimeLimit) << exit.message;
  } else if (end == "stops") {
    EXPECT_NE(exit.reason, StopReason::kNone);
    EXPECT_NE(exit.reason, StopReason::kDebugExit);
  } else {
    EXPECT_EQ(exit.reason, StopReason::kDebugExit) << exit.message;
    EXPECT_EQ("exit " + std::to_string(ProcessStatus(exit)), end);
  }
}

using EdgeGuest = GuestTest;

TEST_P(EdgeGuest, EndsAsItsSourceSays) {
  const auto& [vendor, tdp, name] = GetParam();
  const Expectation expectation = ExpectationOf("guests/edge/" + name + ".S");
  ASSERT_FALSE(expectation.end.empty());
  const bool may_run_on = expectation.end == "runs" || expectation.end == "any";
  const auto vm = MakeVm(vendor, tdp, "guests/edge/" + name + ".elf", "",
                         may_run_on ? kGlance : milliseconds(0), expectation.cpus);
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->Start().ok());
  // What runs for ever obeys the time limit.
  ASSERT_TRUE(vm->WaitUntilStopped(kPatience));
  ExpectEnd(expectation.end, vm->exit());
  if (!expectation.console.empty()) {
    EXPECT_EQ(ConsoleText(*vm), expectation.console);
  }
  ExpectHealthy(*vm);
}

std::string NameOf(const GuestTest::ParamType& parameter) {
  const auto& [vendor, tdp, guest] = parameter;
  std::string name = vendor + (tdp ? "XtwoStages" : "XoneStage") + "X" +
                     std::filesystem::path(guest).stem().string();
  std::replace(name.begin(), name.end(), '_', 'X');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Vendors, EdgeGuest,
                         testing::Combine(testing::Values("intel", "amd"), testing::Bool(),
                                          testing::ValuesIn(EdgeGuests())),
                         [](const auto& info) { return NameOf(info.param); });

using Hypervisor = GuestTest;

// They check what they meet themselves.
TEST_P(Hypervisor, FindsAllWell) {
  const auto& [vendor, tdp, image] = GetParam();
  const auto vm = MakeVm(vendor, tdp, image, "");
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->Start().ok());
  ASSERT_TRUE(vm->WaitUntilStopped(kPatience));
  ExpectEnd("exit 1", vm->exit());
  EXPECT_EQ(ConsoleText(*vm).find("WRONG"), std::string::npos) << ConsoleText(*vm);
}

// Nobody outside knows by which rules guest mode would be left.
TEST_P(Hypervisor, ItsGuestsRegistersAreNotWritten) {
  const auto& [vendor, tdp, image] = GetParam();
  const auto vm = MakeVm(vendor, tdp, image, "stay");
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->Start().ok());
  const auto end = std::chrono::steady_clock::now() + kPatience;
  absl::Status status;
  while (status.ok() && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(10));
    if (ConsoleText(*vm).find("the guest stays") == std::string::npos) continue;
    ASSERT_TRUE(vm->Pause().ok());
    const auto state = vm->GetRegisters(0);
    ASSERT_TRUE(state.ok());
    status = vm->SetRegisters(0, *state);
    ASSERT_TRUE(vm->Resume().ok());
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("vCPU 0 is in guest mode"), std::string::npos) << status;
  ExpectHealthy(*vm);
}

INSTANTIATE_TEST_SUITE_P(Intel, Hypervisor,
                         testing::Combine(testing::Values("intel"), testing::Bool(),
                                          testing::Values("guests/ept.elf")),
                         [](const auto& info) { return NameOf(info.param); });
INSTANTIATE_TEST_SUITE_P(Amd, Hypervisor,
                         testing::Combine(testing::Values("amd"), testing::Bool(),
                                          testing::Values("guests/npt.elf")),
                         [](const auto& info) { return NameOf(info.param); });

// Both in guest mode at the same time, over the same nested tables.
using HypervisorOfTwoProcessors = GuestTest;

TEST_P(HypervisorOfTwoProcessors, FindsAllWell) {
  const auto& [vendor, tdp, image] = GetParam();
  const auto vm = MakeVm(vendor, tdp, image, "rounds=60", {}, 2);
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->Start().ok());
  ASSERT_TRUE(vm->WaitUntilStopped(kPatience));
  ExpectEnd("exit 1", vm->exit());
  EXPECT_EQ(ConsoleText(*vm).find("WRONG"), std::string::npos) << ConsoleText(*vm);
}

INSTANTIATE_TEST_SUITE_P(Vendors, HypervisorOfTwoProcessors,
                         testing::Combine(testing::Values("intel", "amd"), testing::Bool(),
                                          testing::Values("guests/nested_smp.elf")),
                         [](const auto& info) { return NameOf(info.param); });

// Where addresses are wide enough for a fifth level.
using HypervisorOfWideProcessor = GuestTest;

TEST_P(HypervisorOfWideProcessor, FindsAllWell) {
  const auto& [vendor, tdp, image] = GetParam();
  cpu_features_ = "+la57,maxphyaddr=52";
  const auto vm = MakeVm(vendor, tdp, image, "");
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->Start().ok());
  ASSERT_TRUE(vm->WaitUntilStopped(kPatience));
  ExpectEnd("exit 1", vm->exit());
  EXPECT_NE(ConsoleText(*vm).find("beyond 4 levels"), std::string::npos) << ConsoleText(*vm);
}

INSTANTIATE_TEST_SUITE_P(Intel, HypervisorOfWideProcessor,
                         testing::Combine(testing::Values("intel"), testing::Bool(),
                                          testing::Values("guests/ept_rows.elf")),
                         [](const auto& info) { return NameOf(info.param); });

using Tour = GuestTest;

TEST_P(Tour, PrintsWhatIsExpected) {
  const auto& [vendor, tdp, image] = GetParam();
  const auto vm = MakeVm(vendor, tdp, image, "once");
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->Start().ok());
  ASSERT_TRUE(vm->WaitUntilStopped(kPatience));
  EXPECT_EQ(ConsoleText(*vm), FileText("guests/tour.golden"));
  ExpectEnd("exit 1", vm->exit());
}

INSTANTIATE_TEST_SUITE_P(Vendors, Tour,
                         testing::Combine(testing::Values("intel", "amd"), testing::Bool(),
                                          testing::Values("guests/tour.elf")),
                         [](const auto& info) { return NameOf(info.param); });

// Models that have all that the tour can show, and more physical address bits than others.
using TourOfModel = GuestTest;

TEST_P(TourOfModel, PrintsTheSame) {
  const auto& [vendor, tdp, model] = GetParam();
  cpu_model_ = model;
  const auto vm = MakeVm(vendor, tdp, "guests/tour.elf", "once");
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(vm->Start().ok());
  ASSERT_TRUE(vm->WaitUntilStopped(kPatience));
  EXPECT_EQ(ConsoleText(*vm), FileText("guests/tour.golden"));
}

INSTANTIATE_TEST_SUITE_P(Models, TourOfModel,
                         testing::Values(std::tuple("intel", true, "sapphire-rapids"),
                                         std::tuple("amd", false, "epyc-genoa")),
                         [](const auto& info) { return std::string(std::get<0>(info.param)); });

}  // namespace
}  // namespace pagesaw
