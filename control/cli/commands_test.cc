#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

import pagesaw.control.cli.commands;
import pagesaw.control.command_line;

namespace pagesaw {
namespace {

using Arguments = std::vector<std::string_view>;

std::string HelpOfEverything() {
  const Arguments overview = {"--help"};
  std::string text = RunCommand(overview).out;
  for (const Command& command : AllCommands()) text += "\n----\n" + HelpText(command.spec);
  return text;
}

// After a wanted change: bazel run //control/cli:commands_test prints the new text in its failure.
TEST(Commands, HelpIsAsInTheGoldenFile) {
  std::ifstream file("control/cli/help.golden");
  const std::string golden(std::istreambuf_iterator<char>(file), {});
  EXPECT_EQ(HelpOfEverything(), golden) << HelpOfEverything();
}

TEST(Commands, EveryExampleParses) {
  for (const Command& command : AllCommands()) {
    std::istringstream words{std::string(command.spec.example)};
    const std::vector<std::string> all(std::istream_iterator<std::string>(words), {});
    std::istringstream name_words{std::string(command.spec.name)};
    const std::size_t skip = std::distance(std::istream_iterator<std::string>(name_words), {});
    const Arguments arguments(all.begin() + static_cast<std::ptrdiff_t>(skip), all.end());
    EXPECT_TRUE(std::string(command.spec.example).starts_with(command.spec.name));
    const auto parsed = ParseCommand(command.spec, arguments);
    EXPECT_TRUE(parsed.ok()) << command.spec.example << ": " << parsed.status();
  }
}

struct UsageCase {
  const char* name;
  Arguments arguments;
  const char* want;
};
class CommandUsage : public testing::TestWithParam<UsageCase> {};

TEST_P(CommandUsage, IsRefusedWithOneSentence) {
  const Outcome outcome = RunCommand(GetParam().arguments);
  EXPECT_EQ(outcome.exit_status, kUsage);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(outcome.error, std::string("error: ") + GetParam().want + "\n");
}

INSTANTIATE_TEST_SUITE_P(
    Errors, CommandUsage,
    testing::Values(
        UsageCase{"Nothing", {}, "no command; see 'pagesawctl --help'"},
        UsageCase{"UnknownCommand", {"fly"}, "fly: unknown command; see 'pagesawctl --help'"},
        UsageCase{"NounAlone", {"format"}, "format: needs one of: list, show"},
        UsageCase{"UnknownVerb",
                  {"format", "make"},
                  "format make: unknown command; must be one of: list, show"},
        UsageCase{"NoImage", {"run"}, "IMAGE: missing; see 'pagesawctl run --help'"},
        UsageCase{"EmptyImage", {"run", ""}, "IMAGE: must not be empty"},
        UsageCase{"EmptyImageOfVm", {"vm", "create", "a", ""}, "IMAGE: must not be empty"},
        UsageCase{"UnknownOption",
                  {"run", "x", "--fast"},
                  "--fast: unknown option; see 'pagesawctl run --help'"},
        UsageCase{"Twice", {"run", "x", "--tdp=on", "--tdp=on"}, "--tdp: given twice"},
        UsageCase{"MemoryZero",
                  {"run", "x", "--memory=0"},
                  "--memory=0: must be a positive number of bytes, as in 4096, 64K, 512M or 2G"},
        UsageCase{"MemoryUneven",
                  {"run", "x", "--memory=4097"},
                  "--memory=4097: must be a multiple of 4096"},
        UsageCase{"Cpus", {"run", "x", "--cpus=0"}, "--cpus=0: must be a number from 1 to 4096"},
        UsageCase{"Tdp", {"run", "x", "--tdp=yes"}, "--tdp=yes: must be one of: on, off"},
        UsageCase{
            "Clock", {"run", "x", "--clock=sun"}, "--clock=sun: must be one of: host, virtual"},
        UsageCase{"Virtio",
                  {"run", "x", "--virtio=console,net"},
                  "--virtio=net: must be one of: console, rng"},
        UsageCase{"DiskModeAlone",
                  {"run", "x", "--disk_mode=cow"},
                  "--disk_mode: there is no --disk that it could be of"},
        UsageCase{"Vendor",
                  {"vm", "create", "a", "--vendor="},
                  "--vendor=: must name a vendor, as in --vendor=intel"},
        UsageCase{"TimeLimit",
                  {"run", "x", "--time_limit=0s"},
                  "--time_limit=0s: must be a time from 1ms to 24h, as in 500ms, 60s, 5m or 1h"},
        UsageCase{"Socket", {"vm", "list", "--socket=tcp:1"}, "--socket=tcp:1: must be unix:PATH"},
        UsageCase{
            "Output", {"vm", "list", "--output=xml"}, "--output=xml: must be one of: table, json"},
        UsageCase{
            "VmName", {"vm", "get", "Demo"}, "VM Demo: must be a name like [a-z][a-z0-9-]{0,62}"},
        UsageCase{"Address",
                  {"walk", "a", "0xzz"},
                  "ADDRESS 0xzz: must be a 64-bit number, decimal or with 0x"},
        UsageCase{"Access",
                  {"walk", "a", "0", "--access=jump"},
                  "--access=jump: must be one of: read, write, fetch"},
        UsageCase{
            "Vcpu", {"walk", "a", "0", "--vcpu=-1"}, "--vcpu=-1: must be a number from 0 to 4095"},
        UsageCase{"Mmu",
                  {"root", "list", "a", "--mmu=tdp_mmu"},
                  "--mmu=tdp_mmu: must be one of: root_mmu, guest_mmu"},
        UsageCase{
            "Space", {"spte", "a", "0", "--space=hpa"}, "--space=hpa: must be one of: gpa, gva"},
        UsageCase{"Size",
                  {"vm", "read-memory", "a", "0", "--size=0"},
                  "--size=0: must be a number from 1 to 1048576"},
        UsageCase{"SlotNumber",
                  {"slot", "delete", "demo", "seven"},
                  "SLOT seven: must be a number from 0 to 4294967295"},
        UsageCase{"SlotAccess",
                  {"slot", "set", "demo", "7", "--access=none"},
                  "--access=none: must be one of: read-write, read-only"},
        UsageCase{"DirtyLogMethod",
                  {"dirty-log", "start", "demo", "--method=guess"},
                  "--method=guess: must be one of: auto, write-protect, dirty-bits"},
        UsageCase{"NothingToWrite",
                  {"vm", "write-memory", "a", "0"},
                  "one of --hex, --file and --u64 must be given"},
        UsageCase{"Hex",
                  {"vm", "write-memory", "a", "0", "--hex=123"},
                  "--hex=123: must be pairs of hexadecimal digits"},
        UsageCase{
            "NoRights", {"attribute", "set", "a", "0"}, "--rights: missing; as in --rights=R,W,XS"},
        UsageCase{"Rights",
                  {"attribute", "set", "a", "0", "--rights=R,X"},
                  "--rights=R,X: must be none, or some of R, W, XS and XU with commas between"},
        UsageCase{"NoRightAtAll",
                  {"attribute", "set", "a", "0", "--rights="},
                  "--rights=: must be none, or some of R, W, XS and XU with commas between"},
        UsageCase{"Policy",
                  {"attribute", "set", "a", "0", "--rights=R", "--policy=ask"},
                  "--policy=ask: must be one of: stop, page-fault, general-protection, log"},
        UsageCase{"AttributeSize",
                  {"attribute", "clear", "a", "0", "--size=-1"},
                  "--size=-1: must be a positive number of bytes, as in 4096, 64K, 512M or 2G"},
        UsageCase{"NoRegister",
                  {"vm", "set-registers", "a"},
                  "a register to set must be given, as in --cr3=0x1000"},
        UsageCase{"Segment",
                  {"vm", "set-registers", "a", "--cs=8,0"},
                  "--cs=8,0: must be 4 numbers: selector,attributes,limit,base"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Commands, FailsWithoutADaemon) {
  const Arguments arguments = {"vm", "list", "--socket=unix:/tmp/pagesaw-none.sock"};
  const Outcome outcome = RunCommand(arguments);
  EXPECT_EQ(outcome.exit_status, kFailed);
  EXPECT_EQ(outcome.error,
            "error: no daemon listens at unix:/tmp/pagesaw-none.sock; start one: pagesawd "
            "--listen=unix:/tmp/pagesaw-none.sock\n");
}

// Neither file ends: reading one whole would take all memory or all time.
TEST(Commands, WritesNoEndlessFile) {
  for (const char* path : {"/dev/zero", "/tmp"}) {
    const std::string file = std::string("--file=") + path;
    const Arguments arguments = {"vm", "write-memory", "a", "0", file};
    const Outcome outcome = RunCommand(arguments);
    EXPECT_EQ(outcome.exit_status, kFailed);
    EXPECT_EQ(outcome.error, std::string("error: ") + path + ": not a regular file\n");
  }
}

TEST(Commands, FailsWithoutAnImageFileBeforeADaemonStarts) {
  const Arguments arguments = {"run", "/no/such.elf"};
  const Outcome outcome = RunCommand(arguments);
  EXPECT_EQ(outcome.exit_status, kFailed);
  EXPECT_EQ(outcome.error, "error: /no/such.elf: there is no such file\n");
}

}  // namespace
}  // namespace pagesaw
