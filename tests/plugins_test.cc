// Which plugins are loaded decides what a VM's processors have: exactly what is there is
// enumerated, and hypervisors in VMs find it to work, and what is not there to be ignored.
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

import pagesaw.control.parts;
import pagesaw.core.plugin;
import pagesaw.machine.vm;
import pagesaw.plugins.mbec.plugin;
import pagesaw.plugins.svm.plugin;
import pagesaw.plugins.vmx.plugin;

namespace pagesaw {
namespace {

using std::chrono::milliseconds;

// Plugins by name, in any order.
std::unique_ptr<PluginRegistry> RegistryOf(const std::vector<std::string>& names) {
  auto registry = std::make_unique<PluginRegistry>();
  for (const std::string& name : names) {
    const std::unique_ptr<Plugin> plugin = name == "vmx"   ? vmx::MakeVmxPlugin()
                                           : name == "svm" ? svm::MakeSvmPlugin()
                                                           : mbec::MakeMbecPlugin();
    EXPECT_FALSE(plugin->Register(*registry));
  }
  return registry;
}

VmConfig ConfigOf(const std::string& vendor, bool tdp, const std::string& image,
                  const std::string& cpu_features = "") {
  VmConfig config;
  config.name = "guest";
  config.vendor = vendor;
  config.tdp = tdp;
  config.image_path = image;
  config.cpu_features = cpu_features;
  return config;
}

// What the guest prints until it ends.
std::string ConsoleOf(const PluginRegistry& registry, const VmConfig& config) {
  auto vm = Vm::Create(config, registry, MakeVmParts());
  EXPECT_TRUE(vm.ok()) << vm.status();
  if (!vm.ok() || !(*vm)->Start().ok()) return {};
  EXPECT_TRUE((*vm)->WaitUntilStopped(milliseconds(120'000)));
  EXPECT_EQ(ProcessStatus((*vm)->exit()), 1) << (*vm)->exit().message;
  return (*vm)->console().Read(0, Console::kDefaultBytes, milliseconds(0)).data;
}

// Lines `name value` of guests/extensions.
std::map<std::string, std::uint64_t> Enumerated(const PluginRegistry& registry,
                                                const VmConfig& config) {
  std::map<std::string, std::uint64_t> values;
  std::istringstream lines(ConsoleOf(registry, config));
  for (std::string name, value; lines >> name >> value;)
    values[name] = std::stoull(value, nullptr, 0);
  return values;
}

constexpr const char* kExtensions = "guests/extensions.elf";
constexpr std::uint64_t kSplitExecute = 1u << 22;  // of the secondary controls
constexpr std::uint64_t kExecuteTrap = 1u << 17;   // of CPUID Fn8000_000A EDX

TEST(Plugins, AVendorIsThereWithItsExtension) {
  struct Row {
    std::vector<std::string> plugins;
    bool intel, amd;
  };
  const Row rows[] = {{{}, false, false},
                      {{"mbec"}, false, false},
                      {{"vmx"}, true, false},
                      {{"svm"}, false, true},
                      {{"mbec", "vmx"}, true, false},
                      {{"svm", "mbec"}, false, true},
                      {{"vmx", "svm", "mbec"}, true, true}};
  for (const Row& row : rows) {
    const auto registry = RegistryOf(row.plugins);
    for (const bool tdp : {false, true}) {
      for (const std::string vendor : {"intel", "amd"}) {
        const bool there = vendor == "intel" ? row.intel : row.amd;
        const auto vm = Vm::Create(ConfigOf(vendor, tdp, ""), *registry, MakeVmParts());
        EXPECT_EQ(vm.ok(), there) << vendor << ", " << row.plugins.size() << " plugins";
        if (vm.ok() || there) continue;
        EXPECT_NE(vm.status().message().find("vendor '" + vendor + "'"), std::string::npos);
        if (!row.intel && !row.amd) {
          EXPECT_NE(vm.status().message().find("no plugin"), std::string::npos) << vm.status();
        }
      }
    }
  }
}

TEST(Plugins, VmxIsEnumeratedAsItIs) {
  const auto plain = RegistryOf({"vmx"}), split = RegistryOf({"mbec", "vmx"});
  for (const bool tdp : {false, true}) {
    const VmConfig config = ConfigOf("intel", tdp, kExtensions);
    auto without = Enumerated(*plain, config), with = Enumerated(*split, config);
    EXPECT_EQ(without["vmx"], 1u);
    EXPECT_EQ(without["svm"], 0u);
    EXPECT_EQ(without["features"], 0u);
    EXPECT_EQ(without["msr-0x48b"] >> 32 & kSplitExecute, 0u);
    // Nothing else depends on the plugin.
    EXPECT_EQ(with["msr-0x48b"], without["msr-0x48b"] | kSplitExecute << 32);
    with["msr-0x48b"] = without["msr-0x48b"];
    EXPECT_EQ(with, without);
  }
}

TEST(Plugins, SvmIsEnumeratedAsItIs) {
  const auto plain = RegistryOf({"svm"}), split = RegistryOf({"svm", "mbec"});
  for (const bool tdp : {false, true}) {
    const VmConfig config = ConfigOf("amd", tdp, kExtensions);
    auto without = Enumerated(*plain, config), with = Enumerated(*split, config);
    EXPECT_EQ(without["svm"], 1u);
    EXPECT_EQ(without["vmx"], 0u);
    EXPECT_EQ(without["features"] & kExecuteTrap, 0u);
    EXPECT_EQ(with["features"], without["features"] | kExecuteTrap);
    with["features"] = without["features"];
    EXPECT_EQ(with, without);
  }
}

// Each on its own, and what rests on it goes with it.
TEST(Plugins, PartsCanBeTakenAway) {
  const auto registry = RegistryOf({"vmx", "svm", "mbec"});
  auto none = Enumerated(*registry, ConfigOf("intel", true, kExtensions, "-vmx"));
  EXPECT_EQ(none["vmx"], 0u);
  auto no_ept = Enumerated(*registry, ConfigOf("intel", true, kExtensions, "-ept"));
  EXPECT_EQ(no_ept["vmx"], 1u);
  // EPT, unrestricted guest, VM functions, logging, #VE, split execution; EPT's capabilities.
  EXPECT_EQ(
      no_ept["msr-0x48b"] >> 32 & (1u << 1 | 1u << 7 | 1u << 13 | 1u << 17 | 1u << 18 | 1u << 22),
      0u);
  EXPECT_EQ(no_ept["msr-0x48c"] & 0xffff'ffff, 0u);
  auto no_svm = Enumerated(*registry, ConfigOf("amd", true, kExtensions, "-svm"));
  EXPECT_EQ(no_svm["svm"], 0u);
  EXPECT_EQ(no_svm["features"], 0u);
  auto no_npt = Enumerated(*registry, ConfigOf("amd", true, kExtensions, "-npt"));
  EXPECT_EQ(no_npt["svm"], 1u);
  EXPECT_EQ(no_npt["features"] & (1u | kExecuteTrap), 0u);
}

// The guests check every row themselves.
TEST(Plugins, HypervisorsFindWhatIsEnumeratedToWork) {
  struct Row {
    std::vector<std::string> plugins;
    const char *vendor, *image, *split;
  };
  const Row rows[] = {{{"vmx"}, "intel", "guests/ept_rows.elf", "execution split by mode"},
                      {{"mbec", "vmx"}, "intel", "guests/ept_rows.elf", "execution split by mode"},
                      {{"svm"}, "amd", "guests/npt.elf", "with the trap"},
                      {{"mbec", "svm"}, "amd", "guests/npt.elf", "with the trap"}};
  for (const Row& row : rows) {
    const auto registry = RegistryOf(row.plugins);
    for (const bool tdp : {false, true}) {
      const std::string console = ConsoleOf(*registry, ConfigOf(row.vendor, tdp, row.image));
      EXPECT_EQ(console.find("WRONG"), std::string::npos) << console;
      EXPECT_EQ(console.find(row.split) != std::string::npos, row.plugins.size() == 2) << console;
    }
  }
}

}  // namespace
}  // namespace pagesaw
