#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

import pagesaw.core.page_format;
import pagesaw.core.plugin;
import pagesaw.core.processor;
import pagesaw.core.virt_extension;

namespace pagesaw {
namespace {

class FakeExtension : public VirtExtension {
 public:
  FakeExtension(std::string name, std::string vendor, std::string cpuid_vendor = "TwelveLetter")
      : name_(std::move(name)),
        vendor_(std::move(vendor)),
        cpuid_vendor_(std::move(cpuid_vendor)) {}
  std::string_view name() const override { return name_; }
  std::string_view vendor() const override { return vendor_; }
  std::string_view cpuid_vendor() const override { return cpuid_vendor_; }
  ExitDescription Describe(const TableFault&, const PageFormat&) const override { return {}; }
  void AdjustCpuid(std::uint32_t, std::uint32_t, CpuidResult&) const override {}
  void AdjustPagingFeatures(bool&, std::uint8_t&, unsigned) const override {}

 private:
  std::string name_, vendor_, cpuid_vendor_;
};

TdpFormat FormatCalled(std::string name, std::string vendor = "v", bool splits = false) {
  return {.name = std::move(name),
          .vendor = std::move(vendor),
          .splits_execute = splits,
          .make = [](unsigned) { return PageFormat(); }};
}

TEST(PluginRegistry, FindsWhatWasAdded) {
  PluginRegistry registry;
  EXPECT_FALSE(registry.AddPlugin("p"));
  EXPECT_FALSE(registry.AddExtension(std::make_unique<FakeExtension>("e", "v")));
  EXPECT_FALSE(registry.AddTdpFormat(FormatCalled("f")));
  EXPECT_FALSE(registry.AddTdpFormat(FormatCalled("g", "v", true)));

  EXPECT_EQ(registry.ExtensionOf("v")->name(), "e");
  EXPECT_EQ(registry.FindTdpFormat("f")->name, "f");
  EXPECT_EQ(registry.TdpFormatOf("v", true)->name, "g");
  EXPECT_EQ(registry.vendors(), std::vector<std::string>{"v"});
  EXPECT_EQ(registry.plugins(), std::vector<std::string>{"p"});
}

TEST(PluginRegistry, KnowsNothingElse) {
  const PluginRegistry registry;
  EXPECT_EQ(registry.ExtensionOf("v"), nullptr);
  EXPECT_EQ(registry.FindTdpFormat("f"), nullptr);
  EXPECT_EQ(registry.TdpFormatOf("v", false), nullptr);
}

TEST(PluginRegistry, AddedFormatsStayWhereTheyAre) {
  PluginRegistry registry;
  ASSERT_FALSE(registry.AddTdpFormat(FormatCalled("first")));
  const TdpFormat* first = registry.FindTdpFormat("first");
  for (int i = 0; i < 100; ++i)
    ASSERT_FALSE(registry.AddTdpFormat(FormatCalled(std::to_string(i))));
  EXPECT_EQ(registry.FindTdpFormat("first"), first);
}

TEST(PluginRegistry, RefusesTakenNamesAndSaysWhich) {
  PluginRegistry registry;
  ASSERT_FALSE(registry.AddPlugin("p"));
  ASSERT_FALSE(registry.AddExtension(std::make_unique<FakeExtension>("e", "v")));
  ASSERT_FALSE(registry.AddTdpFormat(FormatCalled("f")));

  const RegistrationResult plugin = registry.AddPlugin("p");
  ASSERT_TRUE(plugin);
  EXPECT_NE(plugin->message.find("'p'"), std::string::npos);
  EXPECT_TRUE(registry.AddExtension(std::make_unique<FakeExtension>("e", "w")));
  EXPECT_TRUE(registry.AddExtension(std::make_unique<FakeExtension>("d", "v")));
  EXPECT_TRUE(registry.AddTdpFormat(FormatCalled("f")));
}

TEST(PluginRegistry, RefusesWhatIsIncomplete) {
  PluginRegistry registry;
  EXPECT_TRUE(registry.AddPlugin(""));
  EXPECT_TRUE(registry.AddExtension(std::make_unique<FakeExtension>("", "v")));
  EXPECT_TRUE(registry.AddExtension(std::make_unique<FakeExtension>("e", "v", "short")));
  EXPECT_TRUE(registry.AddTdpFormat(FormatCalled("")));
  EXPECT_TRUE(registry.AddTdpFormat({.name = "f", .vendor = "v"}));
}

}  // namespace
}  // namespace pagesaw
