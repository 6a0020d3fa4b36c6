module;
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
module pagesaw.control.cli.patience;

namespace pagesaw {

Patience::Patience(std::function<std::string()> what)
    : what_(std::move(what)), thread_([this] { Wait(); }) {}

Patience::~Patience() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Patience::Wait() {
  constexpr std::chrono::milliseconds kTurn(250);
  const bool terminal = isatty(STDERR_FILENO) != 0;
  std::unique_lock lock(mutex_);
  unsigned turns = 0;
  while (!changed_.wait_for(lock, kTurn, [this] { return over_; })) {
    ++turns;
    if (terminal && turns >= 2) {
      std::fprintf(stderr, "\r\033[Kpagesawctl: %s", what_().c_str());
    } else if (turns == 4) {
      std::fprintf(stderr, "pagesawctl: %s\n", what_().c_str());
    }
    std::fflush(stderr);
  }
  if (terminal && turns >= 2) std::fprintf(stderr, "\n");
}

}  // namespace pagesaw
