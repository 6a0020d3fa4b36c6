// Which frames of a memory slot have been written since somebody asked: a bitmap for each slot that
// is logged. Marking takes no lock, so that whoever gives a guest the right to write can do it.
module;
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>
export module pagesaw.mmu.dirty_log;

import pagesaw.core.address;
import pagesaw.core.guest_memory;

export namespace pagesaw {

// How writes are noticed.
enum class DirtyLogMethod : std::uint8_t {
  kWriteProtect,  // SPTEs refuse the first write to each page
  kDirtyBits,     // the processor sets D in SPTEs, which are looked through when somebody asks
};

// The log of one slot. Bit i of the bitmap is page i of the slot.
class DirtyLog {
 public:
  static constexpr unsigned kPagesPerWord = 64;

  DirtyLog(const MemorySlot& slot, DirtyLogMethod method);

  const MemorySlot& slot() const { return slot_; }
  DirtyLogMethod method() const { return method_; }
  std::size_t word_count() const { return (slot_.page_count + kPagesPerWord - 1) / kPagesPerWord; }

  void Mark(std::uint64_t page) {
    words_[page / kPagesPerWord].fetch_or(std::uint64_t{1} << page % kPagesPerWord);
  }
  bool IsMarked(std::uint64_t page) const {
    return (words_[page / kPagesPerWord].load() >> page % kPagesPerWord & 1) != 0;
  }
  // A word of the bitmap, which is 0 from then on.
  std::uint64_t TakeWord(std::size_t index) { return words_[index].exchange(0); }

 private:
  MemorySlot slot_;
  DirtyLogMethod method_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> words_;
};

// The logs of a VM. Starting, stopping and finding belong to whoever holds the MMU lock.
class DirtyLogs {
 public:
  DirtyLogs() = default;
  ~DirtyLogs();
  DirtyLogs(const DirtyLogs&) = delete;
  DirtyLogs& operator=(const DirtyLogs&) = delete;

  // Starts a log of `slot`, none of whose frames is logged.
  void Start(const MemorySlot& slot, DirtyLogMethod method);
  // Ends the log of the slot called `slot_id`, which there is.
  void Stop(std::uint32_t slot_id);

  bool empty() const { return current_.load(std::memory_order_acquire) == nullptr; }
  // The log of the slot called `slot_id`, or of the frame, or null.
  DirtyLog* Find(std::uint32_t slot_id) const;
  DirtyLog* FindFrame(Gfn gfn) const;
  // Whether any of `count` frames from `first` is logged.
  bool AnyIn(Gfn first, std::uint64_t count) const;

  // `bytes` bytes from `gpa`, or the page of memory at `host`, have been or may be written. Any
  // thread, without any lock.
  void Mark(Gpa gpa, std::uint64_t bytes) const;
  void MarkHost(Hpa host) const;

 private:
  using Table = std::vector<std::shared_ptr<DirtyLog>>;

  std::span<const std::shared_ptr<DirtyLog>> logs() const;
  void Publish(Table table);
  template <typename Visit>
  void ForEachUnlocked(Visit visit) const;

  std::atomic<const Table*> current_ = nullptr;  // null: no logs
  // Who marks is counted, so that tables that have been replaced are freed behind their backs
  // never.
  mutable std::atomic<std::uint32_t> markers_ = 0;
  std::vector<std::unique_ptr<const Table>> tables_;  // the current one last
};

}  // namespace pagesaw
