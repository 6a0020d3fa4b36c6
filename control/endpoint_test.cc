#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

import pagesaw.control.endpoint;

namespace pagesaw {
namespace {

TEST(Endpoint, TakesUnixPathsOnly) {
  EXPECT_EQ(SocketPathOf("unix:/tmp/x.sock").value_or("?"), "/tmp/x.sock");
  for (const std::string bad : {"", "unix:", "/tmp/x", "tcp:1", "localhost:80"}) {
    EXPECT_EQ(SocketPathOf(bad).status().message(), bad + ": must be unix:PATH");
  }
  EXPECT_FALSE(SocketPathOf("unix:/" + std::string(200, 'x')).ok());
}

TEST(Endpoint, DefaultFollowsTheRuntimeDirectory) {
  setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  EXPECT_EQ(DefaultEndpoint(), "unix:/run/user/7/pagesaw.sock");
  unsetenv("XDG_RUNTIME_DIR");
  EXPECT_TRUE(DefaultEndpoint().starts_with("unix:/tmp/pagesaw-")) << DefaultEndpoint();
}

TEST(Endpoint, NobodyListensWhereNothingIs) {
  EXPECT_FALSE(IsListening("/tmp/pagesaw-no-such.sock"));
  EXPECT_FALSE(IsListening("/" + std::string(500, 'x')));
}

}  // namespace
}  // namespace pagesaw
