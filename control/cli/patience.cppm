// Tells people on stderr what a command waits for, once it takes long.
module;
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
export module pagesaw.control.cli.patience;

export namespace pagesaw {

// While it exists: what `what` says, after a second once; on a terminal after half of one, and then
// four times a second, in one line. Nothing if all is done sooner.
class Patience {
 public:
  // `what` is called on another thread.
  explicit Patience(std::function<std::string()> what);
  ~Patience();
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;

 private:
  void Wait();

  const std::function<std::string()> what_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace pagesaw
