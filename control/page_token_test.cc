#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <string>

import pagesaw.control.page_token;

namespace pagesaw {
namespace {

const PageTokens kTokens(1);

TEST(PageTokens, GivesBackTheCursor) {
  for (const std::string cursor : {"", "a", "41", "\xff/"}) {
    const auto opened = kTokens.Open("List x", kTokens.Make("List x", cursor));
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(*opened, cursor);
  }
}

TEST(PageTokens, EmptyTokenIsTheStart) { EXPECT_EQ(kTokens.Open("List x", "").value_or("?"), ""); }

class PageTokensRefuses : public testing::TestWithParam<std::string> {};

TEST_P(PageTokensRefuses, ForeignToken) {
  const auto opened = kTokens.Open("List x", GetParam());
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(opened.status().message().find("page_token"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Tokens, PageTokensRefuses,
                         testing::Values(kTokens.Make("List y", "41"),
                                         PageTokens(2).Make("List x", "41"),
                                         kTokens.Make("List x", "41") + "00", "1", "zz",
                                         std::string("\0\xff", 2), std::string(5000, '0')));

}  // namespace
}  // namespace pagesaw
