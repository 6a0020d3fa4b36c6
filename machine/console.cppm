// What a guest prints: a ring of the last bytes. Readers come with a position and take what is
// there; neither a slow reader nor a flood from the guest makes anything grow or wait.
module;
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>
export module pagesaw.machine.console;

export namespace pagesaw {

struct ConsoleChunk {
  std::string data;
  std::uint64_t position = 0;    // of the first byte of `data` in all that was ever printed
  std::uint64_t next = 0;        // position to read on from
  std::uint64_t lost_bytes = 0;  // between the position asked for and `position`: overwritten
  bool closed = false;           // nothing will follow `next`
};

// Thread safe.
class Console {
 public:
  static constexpr std::size_t kDefaultBytes = std::size_t{1} << 20;

  explicit Console(std::size_t capacity_bytes = kDefaultBytes) : capacity_(capacity_bytes) {}

  void Append(std::string_view data);
  // Wakes the readers that wait; later appends are dropped.
  void Close();

  // At most `max_bytes` from `position` on. Waits up to `timeout` for the first byte, returns at
  // once when the console is closed. A position before the backlog starts at the backlog, and one
  // that lies in the future waits for it.
  ConsoleChunk Read(std::uint64_t position, std::size_t max_bytes,
                    std::chrono::milliseconds timeout) const;

  // Bytes printed so far, and the position of the oldest that is kept.
  std::uint64_t end_position() const;
  std::uint64_t begin_position() const;

 private:
  std::uint64_t BeginLocked() const;

  const std::size_t capacity_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::vector<char> ring_;  // grows up to capacity_
  std::uint64_t end_ = 0;
  bool closed_ = false;
};

}  // namespace pagesaw
