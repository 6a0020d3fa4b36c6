#include <gtest/gtest.h>

#include <string>
#include <vector>

import pagesaw.control.cli.table;

namespace pagesaw {
namespace {

TEST(Table, AlignsColumnsWithoutTrailingBlanks) {
  Table table({"NAME", "STATE"});
  table.AddRow({"a-long-name", "x"});
  table.AddRow({"b"});
  EXPECT_EQ(table.Text(),
            "NAME         STATE\n"
            "a-long-name  x\n"
            "b\n");
}

}  // namespace
}  // namespace pagesaw
