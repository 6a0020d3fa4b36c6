// The programs themselves: the life of a daemon, and the CLI as its client.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

import pagesaw.core.plugin;

namespace pagesaw {
namespace {

constexpr const char* kDaemon = "control/pagesawd";
constexpr const char* kCli = "control/pagesawctl";
constexpr const char* kExamplePlugin = "tests/example_plugin/libexample_plugin.so";
constexpr const char* kBrokenPlugin = "tests/example_plugin/libbroken_abi.so";

struct Ended {
  int exit_status = -1;
  std::string output;  // stdout and stderr
};

// Runs a command line to its end.
Ended RunToEnd(const std::string& command) {
  Ended ended;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  char buffer[4096];
  for (std::size_t count; (count = fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
    ended.output.append(buffer, count);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ended.exit_status = WEXITSTATUS(status);
  return ended;
}

// A daemon in the background; the constructor returns when it listens.
class Daemon {
 public:
  Daemon(const std::string& listen, const std::vector<std::string>& more) {
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    child_ = fork();
    if (child_ == 0) {
      dup2(ready[1], STDOUT_FILENO);
      std::vector<const char*> words = {kDaemon, listen.c_str()};
      for (const std::string& word : more) words.push_back(word.c_str());
      words.push_back(nullptr);
      execv(kDaemon, const_cast<char* const*>(words.data()));
      _exit(127);
    }
    close(ready[1]);
    for (char c = 0; read(ready[0], &c, 1) == 1 && c != '\n';) said_ += c;
    close(ready[0]);
  }
  ~Daemon() {
    if (child_ > 0) End(SIGKILL);
  }
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  const std::string& said() const { return said_; }

  // Its exit status, or minus the signal that ended it.
  int End(int signal_number) {
    kill(child_, signal_number);
    int status = 0;
    waitpid(child_, &status, 0);
    child_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t child_ = -1;
  std::string said_;
};

class DaemonTest : public testing::Test {
 protected:
  DaemonTest() : directory_("/tmp/pagesaw-daemon-test-XXXXXX") {
    EXPECT_NE(mkdtemp(directory_.data()), nullptr);
  }
  ~DaemonTest() override {
    unlink(path().c_str());
    rmdir(directory_.c_str());
  }
  std::string path() const { return directory_ + "/s"; }
  std::string listen() const { return "--listen=unix:" + path(); }
  std::string socket() const { return " --socket=unix:" + path(); }
  bool SocketExists() const {
    struct stat status = {};
    return stat(path().c_str(), &status) == 0;
  }

  std::string directory_;
};

TEST_F(DaemonTest, SaysThatItListensAndRemovesTheSocketWhenTerminated) {
  Daemon daemon(listen(), {});
  EXPECT_EQ(daemon.said(), "pagesawd: listening at unix:" + path());
  EXPECT_TRUE(SocketExists());
  EXPECT_EQ(daemon.End(SIGTERM), 0);
  EXPECT_FALSE(SocketExists());
}

TEST_F(DaemonTest, EndsCleanlyWhenInterrupted) {
  Daemon daemon(listen(), {});
  EXPECT_EQ(daemon.End(SIGINT), 0);
  EXPECT_FALSE(SocketExists());
}

TEST_F(DaemonTest, TakesOverTheSocketOfAKilledOne) {
  Daemon killed(listen(), {});
  killed.End(SIGKILL);
  ASSERT_TRUE(SocketExists());
  Daemon daemon(listen(), {});
  EXPECT_EQ(RunToEnd(kCli + std::string(" vm list") + socket()).exit_status, 0);
}

TEST_F(DaemonTest, IsRefusedASocketInUse) {
  Daemon daemon(listen(), {});
  const Ended second = RunToEnd(kDaemon + (" " + listen()));
  EXPECT_EQ(second.exit_status, 1);
  EXPECT_EQ(second.output,
            "error: " + path() + ": the socket is in use: another daemon listens there\n");
  EXPECT_EQ(RunToEnd(kCli + std::string(" vm list") + socket()).exit_status, 0);
}

TEST_F(DaemonTest, SaysInOneLineWhyItCannotListen) {
  const std::string missing = directory_ + "/none/s";
  const Ended ended = RunToEnd(kDaemon + (" --listen=unix:" + missing));
  EXPECT_EQ(ended.exit_status, 1);
  EXPECT_EQ(ended.output,
            "error: " + missing + ": cannot listen there: No such file or directory\n");
}

TEST_F(DaemonTest, KeepsItsSocketToItsOwner) {
  Daemon daemon(listen(), {});
  struct stat status = {};
  ASSERT_EQ(stat(path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 077, 0u);
}

TEST_F(DaemonTest, LoadsPluginsBesideTheBuiltInOnes) {
  Daemon daemon(listen(), {"--plugin=" + std::string(kExamplePlugin)});
  const Ended formats = RunToEnd(kCli + std::string(" format list") + socket());
  EXPECT_EQ(formats.exit_status, 0);
  for (const char* name : {"ept ", "ept-mbec", "npt ", "npt-gmet", "example-tdp"}) {
    EXPECT_NE(formats.output.find(name), std::string::npos) << name << "\n" << formats.output;
  }
}

TEST_F(DaemonTest, DoesNotStartWithABadPlugin) {
  const Ended ended = RunToEnd(kDaemon + (" " + listen()) + " --plugin=" + kBrokenPlugin);
  EXPECT_EQ(ended.exit_status, 1);
  EXPECT_EQ(ended.output, "error: --plugin=" + std::string(kBrokenPlugin) +
                              ": built for plugin ABI version " +
                              std::to_string(kPluginAbiVersion + 1) + ", this program has " +
                              std::to_string(kPluginAbiVersion) + "\n");
  EXPECT_FALSE(SocketExists());
}

TEST_F(DaemonTest, RefusesBadUsage) {
  const Ended unknown = RunToEnd(kDaemon + std::string(" --port=1"));
  EXPECT_EQ(unknown.exit_status, 2);
  EXPECT_EQ(unknown.output, "error: --port=1: unknown option; see 'pagesawd --help'\n");
  const Ended listen_twice = RunToEnd(kDaemon + std::string(" --listen=unix:a --listen=unix:b"));
  EXPECT_EQ(listen_twice.exit_status, 2);
  const Ended tcp = RunToEnd(kDaemon + std::string(" --listen=0.0.0.0:80"));
  EXPECT_EQ(tcp.exit_status, 2);
  EXPECT_EQ(tcp.output, "error: --listen=0.0.0.0:80: must be unix:PATH\n");
}

TEST_F(DaemonTest, HelpHasAnExample) {
  const Ended help = RunToEnd(kDaemon + std::string(" --help"));
  EXPECT_EQ(help.exit_status, 0);
  EXPECT_NE(help.output.find("example:\n  pagesawd "), std::string::npos);
}

TEST_F(DaemonTest, PrintsOneJsonDocument) {
  Daemon daemon(listen(), {});
  ASSERT_EQ(RunToEnd(kCli + std::string(" vm create a") + socket()).exit_status, 0);
  for (const char* command :
       {" vm list", " vm get a", " vm registers a", " vm read-memory a 0", " walk a 0", " spte a 0",
        " mmu list a", " root list a", " page list a", " stats a", " format list"}) {
    const Ended ended = RunToEnd(kCli + std::string(command) + " --output=json" + socket());
    EXPECT_EQ(ended.exit_status, 0) << ended.output;
    EXPECT_TRUE(ended.output.starts_with("{")) << command << "\n" << ended.output;
    EXPECT_EQ(ended.output.find("\n}\n{"), std::string::npos) << command << "\n" << ended.output;
  }
  const Ended mmus = RunToEnd(kCli + std::string(" mmu list a --output=json") + socket());
  EXPECT_NE(mmus.output.find("\"walkers\""), std::string::npos) << mmus.output;
  EXPECT_NE(mmus.output.find("\"shadow_mmus\""), std::string::npos) << mmus.output;
}

TEST_F(DaemonTest, UnknownVmIsOneClearError) {
  Daemon daemon(listen(), {});
  for (const char* command : {" vm get none", " walk none 0x1000", " stats none"}) {
    const Ended ended = RunToEnd(kCli + std::string(command) + socket());
    EXPECT_EQ(ended.exit_status, 1);
    EXPECT_TRUE(ended.output.starts_with("error: ")) << ended.output;
    EXPECT_NE(ended.output.find("none"), std::string::npos) << ended.output;
  }
}

// A private daemon is started and gone again even if the guest cannot be made.
TEST_F(DaemonTest, RunWithAFileThatIsNoImageFailsAndLeavesNothing) {
  const Ended ended =
      RunToEnd("TMPDIR=" + directory_ + " " + kCli + " run tests/daemon/BUILD.bazel" + socket());
  EXPECT_EQ(ended.exit_status, 1) << ended.output;
  EXPECT_TRUE(ended.output.starts_with("error: ")) << ended.output;
  EXPECT_EQ(RunToEnd("ls -A " + directory_).output, "");
}

TEST_F(DaemonTest, RunTypesWhatComesFromAPipe) {
  const std::string run =
      kCli + std::string(" run guests/edge/echo.elf --time_limit=60s") + socket();
  const Ended typed = RunToEnd("printf 'abcq' | " + run);
  EXPECT_EQ(typed.output, "abcq");
  EXPECT_EQ(typed.exit_status, 7);
  // More than the guest's queue takes at once.
  const Ended much = RunToEnd("{ head -c 20000 /dev/zero | tr '\\0' x; printf q; } | " + run);
  EXPECT_EQ(much.output, std::string(20000, 'x') + "q");
}

TEST_F(DaemonTest, RunGoesOnWithoutInput) {
  for (const char* input : {"</dev/null", "<&-"}) {
    const Ended ended =
        RunToEnd(kCli + std::string(" run guests/edge/echo.elf --time_limit=300ms") + socket() +
                 " " + input);
    EXPECT_EQ(ended.exit_status, 124) << ended.output;
  }
}

}  // namespace
}  // namespace pagesaw
