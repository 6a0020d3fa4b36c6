#include <absl/status/status.h>
#include <gtest/gtest.h>
#include <chrono>
#include <cstdint>
#include <string>

import pagesaw.machine.vm_config;

namespace pagesaw {
namespace {

constexpr std::uint64_t kLimit = std::uint64_t{1} << 30;

TEST(VmName, FollowsTheRule) {
  EXPECT_TRUE(CheckVmName("a").ok());
  EXPECT_TRUE(CheckVmName("a-1").ok());
  EXPECT_TRUE(CheckVmName("a" + std::string(62, 'z')).ok());
  for (const std::string& name :
       {std::string(), std::string("1a"), std::string("-a"), std::string("A"), std::string("a_b"),
        std::string("a/b"), std::string("a\0b", 3), "a" + std::string(63, 'z')}) {
    EXPECT_EQ(CheckVmName(name).code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

struct ConfigCase {
  const char* name;
  void (*change)(VmConfig&);
  absl::StatusCode want;
  const char* says;
};

class VmConfigCheck : public testing::TestWithParam<ConfigCase> {};

TEST_P(VmConfigCheck, NamesWhatItRefuses) {
  VmConfig config;
  config.name = "vm";
  GetParam().change(config);
  const absl::Status status = CheckVmConfig(config, kLimit);
  EXPECT_EQ(status.code(), GetParam().want) << status;
  EXPECT_NE(std::string(status.message()).find(GetParam().says), std::string::npos) << status;
}

INSTANTIATE_TEST_SUITE_P(
    Fields, VmConfigCheck,
    testing::Values(
        ConfigCase{"Default", [](VmConfig&) {}, absl::StatusCode::kOk, ""},
        ConfigCase{"Name", [](VmConfig& c) { c.name = "X"; }, absl::StatusCode::kInvalidArgument,
                   "'X'"},
        ConfigCase{"NoMemory", [](VmConfig& c) { c.memory_bytes = 0; },
                   absl::StatusCode::kInvalidArgument, "memory size 0"},
        ConfigCase{"OddMemory", [](VmConfig& c) { c.memory_bytes = 4097; },
                   absl::StatusCode::kInvalidArgument, "4097"},
        ConfigCase{"TooMuchMemory", [](VmConfig& c) { c.memory_bytes = kLimit + 4096; },
                   absl::StatusCode::kResourceExhausted, "1073745920"},
        ConfigCase{"NoCpu", [](VmConfig& c) { c.cpu_count = 0; },
                   absl::StatusCode::kInvalidArgument, "vCPU count 0"},
        ConfigCase{"TooManyCpus", [](VmConfig& c) { c.cpu_count = 65; },
                   absl::StatusCode::kInvalidArgument, "vCPU count 65"},
        ConfigCase{"Shadow", [](VmConfig& c) { c.tdp = false; }, absl::StatusCode::kOk, ""},
        ConfigCase{"TimeLimit", [](VmConfig& c) { c.time_limit = std::chrono::milliseconds(-5); },
                   absl::StatusCode::kInvalidArgument, "-5"},
        ConfigCase{"Cmdline",
                   [](VmConfig& c) {
                     c.image_path = "x";
                     c.cmdline = std::string(5000, 'a');
                   },
                   absl::StatusCode::kInvalidArgument, "5000"},
        ConfigCase{"InitrdAlone", [](VmConfig& c) { c.initrd_path = "rd"; },
                   absl::StatusCode::kInvalidArgument, "'rd'"},
        ConfigCase{"VirtualClock", [](VmConfig& c) { c.clock = ClockKind::kVirtual; },
                   absl::StatusCode::kOk, ""},
        ConfigCase{"VirtualClockOfTwo",
                   [](VmConfig& c) {
                     c.clock = ClockKind::kVirtual;
                     c.cpu_count = 2;
                   },
                   absl::StatusCode::kInvalidArgument, "vCPU count 2: a VM with a virtual clock"},
        ConfigCase{"ReadOnlyWithoutADisk", [](VmConfig& c) { c.disk_read_only = true; },
                   absl::StatusCode::kInvalidArgument, "disk"},
        ConfigCase{"CmdlineAlone", [](VmConfig& c) { c.cmdline = "x"; },
                   absl::StatusCode::kInvalidArgument, "'x'"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pagesaw
