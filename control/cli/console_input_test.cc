#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <string_view>

import pagesaw.control.cli.console_input;

namespace pagesaw {
namespace {

struct EscapeCase {
  const char* name;
  std::string_view typed;
  std::string_view data;
  bool quit;
};
class EscapeFilterTest : public testing::TestWithParam<EscapeCase> {};

TEST_P(EscapeFilterTest, TellsDataFromCommands) {
  EscapeFilter whole;
  const EscapeFilter::Typed at_once = whole.Take(GetParam().typed);
  EXPECT_EQ(at_once.data, GetParam().data);
  EXPECT_EQ(at_once.quit, GetParam().quit);
  EscapeFilter filter;
  std::string data;
  bool quit = false;
  for (std::size_t i = 0; i < GetParam().typed.size() && !quit; ++i) {
    const EscapeFilter::Typed one = filter.Take(GetParam().typed.substr(i, 1));
    data += one.data;
    quit = one.quit;
  }
  EXPECT_EQ(data, GetParam().data);
  EXPECT_EQ(quit, GetParam().quit);
}

INSTANTIATE_TEST_SUITE_P(Typed, EscapeFilterTest,
                         testing::Values(EscapeCase{"Nothing", "", "", false},
                                         EscapeCase{"Plain", "ls\r\x03", "ls\r\x03", false},
                                         EscapeCase{"Quit", "ab\001xcd", "ab", true},
                                         EscapeCase{"CtrlAItself", "\001\001x", "\001x", false},
                                         EscapeCase{"Unknown", "a\001qb", "ab", false},
                                         EscapeCase{"AtTheEnd", "a\001", "a", false}),
                         [](const auto& info) { return std::string(info.param.name); });

// stdin as the test wants it, and what arrives from there.
class ConsoleInputTest : public testing::Test {
 protected:
  ConsoleInputTest() : stdin_before_(dup(STDIN_FILENO)) {}
  ~ConsoleInputTest() override {
    dup2(stdin_before_, STDIN_FILENO);
    close(stdin_before_);
  }
  ConsoleInput::Result Type(const std::string& data) {
    const std::lock_guard lock(mutex_);
    if (refusals_ > 0) {
      --refusals_;
      return ConsoleInput::Result::kNoRoom;
    }
    typed_ += data;
    changed_.notify_all();
    return ConsoleInput::Result::kTyped;
  }
  void Quit() {
    const std::lock_guard lock(mutex_);
    quit_ = true;
    changed_.notify_all();
  }
  void Await(const std::string& typed, bool quit) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return typed_ == typed && quit_ == quit; });
  }

  const int stdin_before_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string typed_;
  int refusals_ = 0;
  bool quit_ = false;
};

TEST_F(ConsoleInputTest, CopiesAPipeAsItIsToItsEndAndTriesAgainWhereThereIsNoRoom) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  dup2(ends[0], STDIN_FILENO);
  close(ends[0]);
  refusals_ = 3;
  const ConsoleInput input([this](const std::string& data) { return Type(data); },
                           [this] { Quit(); });
  const std::string text = "a\001x" + std::string(3000, 'b');
  ASSERT_EQ(write(ends[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  close(ends[1]);
  Await(text, false);
}

TEST_F(ConsoleInputTest, EndsWithNothingToRead) {
  const int null = open("/dev/null", O_RDONLY);
  dup2(null, STDIN_FILENO);
  close(null);
  {
    const ConsoleInput input([this](const std::string& data) { return Type(data); }, [] {});
  }
  close(STDIN_FILENO);
  {
    const ConsoleInput input([this](const std::string& data) { return Type(data); }, [] {});
  }
  EXPECT_EQ(typed_, "");
}

TEST_F(ConsoleInputTest, EndsWhileNothingIsTyped) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  dup2(ends[0], STDIN_FILENO);
  close(ends[0]);
  {
    const ConsoleInput input([this](const std::string& data) { return Type(data); }, [] {});
  }
  close(ends[1]);
}

TEST_F(ConsoleInputTest, DoesNotReadATerminalFromTheBackground) {
  int master = -1, slave = -1;
  ASSERT_EQ(openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  dup2(slave, STDIN_FILENO);
  termios before = {}, during = {};
  ASSERT_EQ(tcgetattr(slave, &before), 0);
  {
    // This terminal is not the controlling one.
    const ConsoleInput input([this](const std::string& data) { return Type(data); }, [] {});
    ASSERT_EQ(tcgetattr(slave, &during), 0);
  }
  EXPECT_EQ(during.c_lflag, before.c_lflag);
  close(master);
  close(slave);
}

// In a child that leads a session, since a terminal belongs to one.
TEST_F(ConsoleInputTest, PutsATerminalIntoRawModeAndQuitsOnCtrlAX) {
  int master = -1;
  const pid_t child = forkpty(&master, nullptr, nullptr, nullptr);
  if (child == 0) {
    termios before = {}, during = {}, after = {};
    tcgetattr(STDIN_FILENO, &before);
    bool raw = false;
    {
      const ConsoleInput input([this](const std::string& data) { return Type(data); },
                               [this] { Quit(); });
      tcgetattr(STDIN_FILENO, &during);
      raw = (during.c_lflag & (ICANON | ISIG | ECHO)) == 0;
      (void)!write(STDOUT_FILENO, "ready", 5);
      Await("\003a", true);
    }
    tcgetattr(STDIN_FILENO, &after);
    _exit(raw && after.c_lflag == before.c_lflag ? 0 : 1);
  }
  ASSERT_GT(child, 0);
  std::string said;
  char c = 0;
  while (said != "ready" && read(master, &c, 1) == 1) said += c;
  ASSERT_EQ(write(master, "\003a\001x", 4), 4);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  close(master);
}

}  // namespace
}  // namespace pagesaw
