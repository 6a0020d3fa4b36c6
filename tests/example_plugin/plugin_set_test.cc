#include <absl/status/status.h>
#include <gtest/gtest.h>

#include <string>

import pagesaw.control.plugin_set;
import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.page_format;
import pagesaw.core.plugin;
import pagesaw.core.virt_extension;

namespace pagesaw {
namespace {

const std::string kFolder = "tests/example_plugin/";

TEST(PluginSet, LoadsAPluginFromOutsideTheTree) {
  PluginSet plugins;
  const absl::Status loaded = plugins.Load(kFolder + "libexample_plugin.so");
  ASSERT_TRUE(loaded.ok()) << loaded;
  ASSERT_EQ(plugins.registry().plugins().size(), 1u);
  EXPECT_EQ(plugins.registry().plugins()[0], "example");
  const TdpFormat* format = plugins.registry().FindTdpFormat("example-tdp");
  ASSERT_NE(format, nullptr);
  const PageFormat made = format->make(40);
  EXPECT_TRUE(made.IsPresent(1));
  EXPECT_TRUE(made.IsMalformed(std::uint64_t{1} << 40 | 1, Level::kPt));
  EXPECT_FALSE(made.PermissionFault(made.RightsOf(5), Access::Fetch(Privilege::kUser)));
  EXPECT_TRUE(made.PermissionFault(made.RightsOf(5), Access::Write(Privilege::kUser)));
}

struct BrokenCase {
  const char* name;
  const char* file;
  absl::StatusCode code;
  const char* message;  // part of it
};
class PluginSetRefuses : public testing::TestWithParam<BrokenCase> {};

TEST_P(PluginSetRefuses, File) {
  PluginSet plugins;
  const absl::Status status = plugins.Load(kFolder + GetParam().file);
  EXPECT_EQ(status.code(), GetParam().code) << status;
  const std::string message(status.message());
  EXPECT_TRUE(message.starts_with(kFolder + GetParam().file + ": ")) << message;
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    Files, PluginSetRefuses,
    testing::Values(BrokenCase{"Missing", "none.so", absl::StatusCode::kNotFound, "no such file"},
                    BrokenCase{"NotASharedObject", "BUILD.bazel",
                               absl::StatusCode::kInvalidArgument, "not a shared object"},
                    BrokenCase{"NoSymbol", "libbroken_no_symbol.so",
                               absl::StatusCode::kInvalidArgument,
                               "has no symbol 'pagesaw_plugin'"},
                    BrokenCase{"OtherAbi", "libbroken_abi.so",
                               absl::StatusCode::kFailedPrecondition, ", this program has "},
                    BrokenCase{"NoMaker", "libbroken_create.so", absl::StatusCode::kInvalidArgument,
                               "could not be created"},
                    BrokenCase{"RegistrationRefused", "libbroken_register.so",
                               absl::StatusCode::kInvalidArgument,
                               "TDP format 'formatless': it has no maker"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(PluginSet, RefusesANameThatIsTaken) {
  PluginSet plugins;
  ASSERT_TRUE(plugins.Load(kFolder + "libexample_plugin.so").ok());
  const absl::Status status = plugins.Load(kFolder + "libexample_plugin.so");
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
  EXPECT_NE(status.message().find("plugin 'example'"), std::string::npos) << status;
}

}  // namespace
}  // namespace pagesaw
