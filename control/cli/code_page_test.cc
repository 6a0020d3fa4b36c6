#include <gtest/gtest.h>

#include <set>
#include <string>

import pagesaw.control.cli.code_page;

namespace pagesaw {
namespace {

TEST(CodePage, ShowsAsciiFramesAndLetters) {
  EXPECT_EQ(CodePage437('A'), "A");
  EXPECT_EQ(CodePage437(0x00), " ");
  EXPECT_EQ(CodePage437(0x01), "☺");
  EXPECT_EQ(CodePage437(0x7f), "⌂");
  EXPECT_EQ(CodePage437(0x80), "Ç");
  EXPECT_EQ(CodePage437(0xb3), "│");
  EXPECT_EQ(CodePage437(0xc4), "─");
  EXPECT_EQ(CodePage437(0xdb), "█");
  EXPECT_EQ(CodePage437(0xff), " ");
}

TEST(CodePage, GivesEachCodeItsOwnCharacterButBlanks) {
  std::set<std::string> all;
  for (unsigned code = 0; code < 256; ++code) {
    all.insert(CodePage437(static_cast<unsigned char>(code)));
  }
  EXPECT_EQ(all.size(), 254u);
}

}  // namespace
}  // namespace pagesaw
