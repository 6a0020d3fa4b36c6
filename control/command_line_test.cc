#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

import pagesaw.control.command_line;

namespace pagesaw {
namespace {

CommandSpec Spec() {
  return {.name = "prog verb",
          .summary = "Does it.",
          .operands = {{.name = "IMAGE", .help = "what to run"},
                       {.name = "COUNT", .help = "how often", .optional = true}},
          .options =
              {{.name = "memory", .placeholder = "512M", .help = "guest memory"},
               {.name = "user", .placeholder = "", .help = "in user mode"},
               {.name = "plugin", .placeholder = "FILE", .help = "a plugin", .repeatable = true}},
          .details = "",
          .example = "prog verb a.flat --memory=1G"};
}

std::string ErrorOf(const std::vector<std::string_view>& arguments) {
  return std::string(ParseCommand(Spec(), arguments).status().message());
}

TEST(CommandLine, TakesOperandsAndOptionsInAnyOrder) {
  const std::vector<std::string_view> arguments = {"--user", "a.flat", "--memory=1G", "3"};
  const auto parsed = ParseCommand(Spec(), arguments);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->operands(), (std::vector<std::string>{"a.flat", "3"}));
  EXPECT_TRUE(parsed->Has("user"));
  EXPECT_EQ(parsed->Value("memory"), "1G");
  EXPECT_EQ(parsed->Value("plugin", "none"), "none");
}

TEST(CommandLine, KeepsRepeatedValuesInOrder) {
  const std::vector<std::string_view> arguments = {"a", "--plugin=x", "--plugin=y=z"};
  const auto parsed = ParseCommand(Spec(), arguments);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->Values("plugin"), (std::vector<std::string>{"x", "y=z"}));
}

TEST(CommandLine, TakesEverythingBehindTwoDashesAsOperands) {
  const std::vector<std::string_view> arguments = {"--", "--user"};
  const auto parsed = ParseCommand(Spec(), arguments);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->operands(), (std::vector<std::string>{"--user"}));
}

TEST(CommandLine, StopsAtHelp) {
  const std::vector<std::string_view> arguments = {"--help", "--nonsense"};
  const auto parsed = ParseCommand(Spec(), arguments);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->help());
}

struct ErrorCase {
  const char* name;
  std::vector<std::string_view> arguments;
  const char* want;
};
class CommandLineError : public testing::TestWithParam<ErrorCase> {};

TEST_P(CommandLineError, NamesTheArgument) {
  EXPECT_EQ(ErrorOf(GetParam().arguments), GetParam().want);
}

INSTANTIATE_TEST_SUITE_P(
    Usage, CommandLineError,
    testing::Values(
        ErrorCase{"Unknown", {"a", "--foo=1"}, "--foo=1: unknown option; see 'prog verb --help'"},
        ErrorCase{"Short", {"a", "-m"}, "-m: unknown option; see 'prog verb --help'"},
        ErrorCase{"Twice", {"a", "--memory=1", "--memory=2"}, "--memory: given twice"},
        ErrorCase{
            "NoValue", {"a", "--memory", "1"}, "--memory: needs a value, as in --memory=512M"},
        ErrorCase{"SwitchValue", {"a", "--user=1"}, "--user=1: this option takes no value"},
        ErrorCase{"Missing", {}, "IMAGE: missing; see 'prog verb --help'"},
        ErrorCase{"TooMany", {"a", "b", "c"}, "c: one argument too many; see 'prog verb --help'"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(CommandLineHelp, ListsEverything) {
  EXPECT_EQ(HelpText(Spec()), R"(usage: prog verb IMAGE [COUNT] [options]

Does it.

  IMAGE  what to run
  COUNT  how often

options:
  --memory=512M  guest memory
  --user         in user mode
  --plugin=FILE  a plugin (may be repeated)

example:
  prog verb a.flat --memory=1G
)");
}

struct BytesCase {
  const char* name;
  const char* text;
  std::uint64_t want;  // 0: refused
};
class ParseBytesOf : public testing::TestWithParam<BytesCase> {};

TEST_P(ParseBytesOf, Text) {
  EXPECT_EQ(ParseBytes("--memory", GetParam().text).value_or(0), GetParam().want);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ParseBytesOf,
                         testing::Values(BytesCase{"Plain", "4096", 4096},
                                         BytesCase{"K", "64K", 65536},
                                         BytesCase{"M", "512M", std::uint64_t{512} << 20},
                                         BytesCase{"G", "2G", std::uint64_t{2} << 30},
                                         BytesCase{"Zero", "0", 0}, BytesCase{"Negative", "-1", 0},
                                         BytesCase{"Empty", "", 0}, BytesCase{"Suffix", "1T", 0},
                                         BytesCase{"Trailing", "1Mx", 0},
                                         BytesCase{"Overflow", "8589934592G", 0},
                                         BytesCase{"Huge", "99999999999999999999", 0}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ParseValue, ErrorsNameOptionAndValue) {
  EXPECT_EQ(ParseBytes("--memory", "0").status().message(),
            "--memory=0: must be a positive number of bytes, as in 4096, 64K, 512M or 2G");
  EXPECT_EQ(ParseNumber("--vcpu", "x", 0, 7).status().message(),
            "--vcpu=x: must be a number from 0 to 7");
  EXPECT_EQ(ParseNumber("ADDRESS", "0xg", 0, UINT64_MAX).status().message(),
            "ADDRESS 0xg: must be a 64-bit number, decimal or with 0x");
  EXPECT_EQ(ParseChoice("--tdp", "maybe", {"on", "off"}).status().message(),
            "--tdp=maybe: must be one of: on, off");
  EXPECT_EQ(ParseDuration("--time_limit", "60").status().message(),
            "--time_limit=60: must be a time from 1ms to 24h, as in 500ms, 60s, 5m or 1h");
}

TEST(ParseValue, TakesWhatIsAllowed) {
  EXPECT_EQ(ParseNumber("ADDRESS", "0xffff800000000000", 0, UINT64_MAX).value_or(0),
            0xffff'8000'0000'0000);
  EXPECT_EQ(ParseNumber("--vcpu", "7", 0, 7).value_or(0), 7u);
  EXPECT_EQ(ParseChoice("--tdp", "off", {"on", "off"}).value_or(9), 1u);
  EXPECT_EQ(ParseDuration("--time_limit", "2m").value_or(std::chrono::milliseconds(0)),
            std::chrono::minutes(2));
}

}  // namespace
}  // namespace pagesaw
