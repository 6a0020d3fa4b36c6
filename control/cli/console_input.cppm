// What is typed at `pagesawctl run`: from this process's stdin to the guest's console.
module;
#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
export module pagesaw.control.cli.console_input;

export namespace pagesaw {

// Finds the commands in what is typed at a terminal in raw mode: Ctrl-a x quits, Ctrl-a twice is
// one Ctrl-a for the guest; Ctrl-a and anything else does nothing.
class EscapeFilter {
 public:
  struct Typed {
    std::string data;  // for the guest
    bool quit = false;
  };
  Typed Take(std::string_view bytes);

 private:
  bool escaped_ = false;
};

// While it exists, a thread copies stdin to the guest. A terminal is put into raw mode, unless this
// process is in the background, where it would be stopped; then, as with a stdin that is closed,
// nothing is typed. From a pipe or a file every byte is copied as it is, up to its end.
class ConsoleInput {
 public:
  // `type` gives bytes to the guest and says what became of them; it may take its time.
  enum class Result { kTyped, kNoRoom, kFailed };
  using Type = std::function<Result(const std::string& data)>;

  // `quit` is called, once, when Ctrl-a x is typed.
  ConsoleInput(Type type, std::function<void()> quit);
  ~ConsoleInput();
  ConsoleInput(const ConsoleInput&) = delete;
  ConsoleInput& operator=(const ConsoleInput&) = delete;

  // Gives the terminal its settings back, early.
  void Restore();

 private:
  void Copy();
  bool TypeAll(std::string data);

  const Type type_;
  const std::function<void()> quit_;
  bool raw_ = false;
  std::atomic<bool> over_ = false;
  int wake_[2] = {-1, -1};  // a pipe; written to end the thread
  std::thread thread_;
};

}  // namespace pagesaw
