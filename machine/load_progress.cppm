// How far the files that a guest is made of have been read.
module;
#include <atomic>
#include <cstdint>
export module pagesaw.machine.load_progress;

export namespace pagesaw {

// One thread reads files, any may look.
class LoadProgress {
 public:
  // Bytes that are to be read, more than so far.
  void Expect(std::uint64_t bytes) { total_.fetch_add(bytes, std::memory_order_relaxed); }
  void Add(std::uint64_t bytes) { done_.fetch_add(bytes, std::memory_order_relaxed); }

  std::uint64_t done_bytes() const { return done_.load(std::memory_order_relaxed); }
  std::uint64_t total_bytes() const { return total_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> done_{0}, total_{0};
};

}  // namespace pagesaw
