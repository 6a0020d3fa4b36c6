module;
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
module pagesaw.control.cli.patience;

namespace pagesaw {

Patience::Patience(std::string what) : what_(std::move(what)), thread_([this] { Wait(); }) {}

Patience::~Patience() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Patience::Wait() {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  std::unique_lock lock(mutex_);
  unsigned seconds = 0;
  while (!changed_.wait_for(lock, std::chrono::seconds(1), [this] { return over_; })) {
    ++seconds;
    if (terminal) {
      std::fprintf(stderr, "\rpagesawctl: %s: %u s", what_.c_str(), seconds);
    } else if (seconds == 1) {
      std::fprintf(stderr, "pagesawctl: %s\n", what_.c_str());
    }
    std::fflush(stderr);
  }
  if (terminal && seconds != 0) std::fprintf(stderr, "\n");
}

}  // namespace pagesaw
