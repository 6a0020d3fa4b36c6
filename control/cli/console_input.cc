module;
#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
module pagesaw.control.cli.console_input;

namespace pagesaw {
namespace {

constexpr char kEscape = 0x01;             // Ctrl-a
constexpr std::size_t kTypedBytes = 1024;  // at a time; the guest's queue has room for a few
constexpr int kRetryMs = 20;

// As they were before raw mode. One stdin, one copy.
termios terminal_before;

bool IsForegroundTerminal() {
  return isatty(STDIN_FILENO) != 0 && tcgetpgrp(STDIN_FILENO) == getpgrp();
}

}  // namespace

EscapeFilter::Typed EscapeFilter::Take(std::string_view bytes) {
  Typed typed;
  for (const char c : bytes) {
    if (!std::exchange(escaped_, false)) {
      escaped_ = c == kEscape;
      if (!escaped_) typed.data += c;
    } else if (c == 'x') {
      typed.quit = true;
      return typed;
    } else if (c == kEscape) {
      typed.data += c;
    }
  }
  return typed;
}

ConsoleInput::ConsoleInput(Type type, std::function<void()> quit)
    : type_(std::move(type)), quit_(std::move(quit)) {
  if (isatty(STDIN_FILENO) != 0) {
    if (!IsForegroundTerminal() || tcgetattr(STDIN_FILENO, &terminal_before) != 0) return;
    termios raw = terminal_before;
    cfmakeraw(&raw);
    raw_ = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
    if (!raw_) return;
  }
  if (pipe(wake_) != 0) return;
  thread_ = std::thread([this] { Copy(); });
}

ConsoleInput::~ConsoleInput() {
  over_ = true;
  if (thread_.joinable()) {
    // The pipe is empty, so that this cannot block.
    (void)!write(wake_[1], "", 1);
    thread_.join();
  }
  for (const int end : wake_) {
    if (end >= 0) close(end);
  }
  Restore();
}

void ConsoleInput::Restore() {
  if (raw_) tcsetattr(STDIN_FILENO, TCSANOW, &terminal_before);
}

// False: there is nobody to type to any more.
bool ConsoleInput::TypeAll(std::string data) {
  while (!data.empty() && !over_) {
    const std::string part = data.substr(0, kTypedBytes);
    const Result result = type_(part);
    if (result == Result::kFailed) return false;
    if (result == Result::kTyped) {
      data.erase(0, part.size());
      continue;
    }
    pollfd woken = {.fd = wake_[0], .events = POLLIN, .revents = 0};
    poll(&woken, 1, kRetryMs);
  }
  return true;
}

void ConsoleInput::Copy() {
  EscapeFilter filter;
  while (!over_) {
    pollfd events[] = {{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0},
                       {.fd = wake_[0], .events = POLLIN, .revents = 0}};
    if (poll(events, 2, -1) < 0 && errno != EINTR) return;
    if (over_ || events[0].revents == 0) continue;
    char buffer[kTypedBytes];
    const ssize_t count = read(STDIN_FILENO, buffer, sizeof buffer);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count <= 0) return;  // the end, or no stdin at all
    std::string data(buffer, static_cast<std::size_t>(count));
    bool quit = false;
    if (raw_) {
      EscapeFilter::Typed typed = filter.Take(data);
      data = std::move(typed.data);
      quit = typed.quit;
    }
    if (!TypeAll(std::move(data))) return;
    if (quit) {
      quit_();
      return;
    }
  }
}

}  // namespace pagesaw
