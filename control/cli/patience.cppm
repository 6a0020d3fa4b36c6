// Tells people on stderr what a command waits for, once it takes long.
module;
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
export module pagesaw.control.cli.patience;

export namespace pagesaw {

// While it exists: after a second, and then each second on a terminal, a line with `what` and the
// seconds that have passed. Nothing if all is done sooner.
class Patience {
 public:
  explicit Patience(std::string what);
  ~Patience();
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;

 private:
  void Wait();

  const std::string what_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace pagesaw
