module;
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>
module pagesaw.machine.console;

namespace pagesaw {

std::uint64_t Console::BeginLocked() const {
  return end_ - std::min<std::uint64_t>(end_, capacity_);
}

void Console::Append(std::string_view data) {
  const std::lock_guard lock(mutex_);
  if (closed_ || data.empty() || capacity_ == 0) return;
  for (const char c : data) {
    // Until it is full, the ring is a vector that holds position p at index p.
    if (ring_.size() < capacity_) {
      ring_.push_back(c);
    } else {
      ring_[end_ % capacity_] = c;
    }
    ++end_;
  }
  changed_.notify_all();
}

void Console::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

ConsoleChunk Console::Read(std::uint64_t position, std::size_t max_bytes,
                           std::chrono::milliseconds timeout) const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return closed_ || end_ > position; });
  ConsoleChunk chunk;
  const std::uint64_t begin = std::max(position, BeginLocked());
  chunk.position = begin;
  chunk.lost_bytes = begin - position;
  const std::uint64_t available = end_ > begin ? end_ - begin : 0;
  const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(available, max_bytes));
  chunk.data.reserve(count);
  for (std::size_t i = 0; i < count; ++i) chunk.data.push_back(ring_[(begin + i) % capacity_]);
  chunk.next = begin + count;
  chunk.closed = closed_ && chunk.next >= end_;
  return chunk;
}

std::uint64_t Console::end_position() const {
  const std::lock_guard lock(mutex_);
  return end_;
}

std::uint64_t Console::begin_position() const {
  const std::lock_guard lock(mutex_);
  return BeginLocked();
}

}  // namespace pagesaw
