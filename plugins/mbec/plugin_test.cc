#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

import pagesaw.core.plugin;
import pagesaw.core.virt_extension;
import pagesaw.plugins.mbec.plugin;

namespace pagesaw::mbec {
namespace {

TEST(MbecPlugin, RegistersASplitFormatForEachVendor) {
  PluginRegistry registry;
  ASSERT_FALSE(MakeMbecPlugin()->Register(registry));
  EXPECT_EQ(registry.TdpFormatOf("intel", true)->name, "ept-mbec");
  EXPECT_EQ(registry.TdpFormatOf("amd", true)->name, "npt-gmet");
  EXPECT_EQ(registry.TdpFormatOf("intel", false), nullptr);
  EXPECT_TRUE(registry.vendors().empty()) << "it brings no extension of its own";
}

}  // namespace
}  // namespace pagesaw::mbec
