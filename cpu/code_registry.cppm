// Which host pages hold code that some processor of a VM has decoded, so that a store by one makes
// the others forget what they made of the old bytes.
//
// A processor *holds* a page before it decodes from it. A page that anybody holds gets no write tag
// in any TLB: every store there takes the slow path, which announces it. A tag that a processor had
// before is dropped at its next look-up; until all have dropped theirs, and until whoever announced
// a store has made it, the page is *unsettled*: code of it may be executed as it is read, but not
// be kept. Nobody ever waits for another processor.
module;
#include <absl/container/flat_hash_map.h>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>
export module pagesaw.cpu.code_registry;

export namespace pagesaw::cpu {

// The most processors of one VM.
inline constexpr unsigned kMaxProcessors = 64;

// What a processor must do at its next look-up.
struct CodeNews {
  struct Change {
    std::uint64_t host = 0;
    std::size_t bytes = 0;
  };
  struct HeldPage {
    std::uint64_t page = 0;
    std::uint64_t serial = 0;
  };
  bool forget_all_code = false;
  bool drop_all_write_tags = false;
  std::vector<Change> changes;  // forget the code made from these bytes
  std::vector<HeldPage> held;   // drop the write tags of these pages, then `Confirm`
};

// Pages are host page numbers: address >> 12.
class CodeRegistry {
 public:
  // One processor's part in it. All calls but its siblings' posts are its own thread's.
  class Member {
   public:
    // `attention` is set when there is news. Members are made before the first of them runs, at
    // most kMaxProcessors; the registry outlives them.
    Member(CodeRegistry& registry, std::atomic<bool>& attention);
    ~Member();
    Member(const Member&) = delete;
    Member& operator=(const Member&) = delete;

    // Brackets the execution of guest code. Between Leave and Enter nothing is asked of it.
    void Enter();
    void Leave();

    // Takes what happened since; cheap if nothing did. `Confirm` says that it has been done.
    bool HasNews() const { return has_news_.load(std::memory_order_acquire); }
    CodeNews TakeNews();
    void Confirm(const CodeNews& news);

    // Holds `page`, and gives it up again.
    void Hold(std::uint64_t page);
    void Release(std::uint64_t page);
    // Whether code decoded from `page`, held by this processor, may be kept.
    bool IsSettled(std::uint64_t page) const;
    // Whether another processor than this one holds `page`.
    bool OthersHold(std::uint64_t page) const;
    // This processor is about to store to [host, host + bytes), in one page.
    void Announce(std::uint64_t host, std::size_t bytes);
    // No processor has stored there: it has changed already. True if this one holds the page: it
    // has news. Any thread.
    bool Changed(std::uint64_t host, std::size_t bytes);

   private:
    friend class CodeRegistry;
    std::uint64_t bit() const { return std::uint64_t{1} << index_; }
    // False: it does not run, and will drop its tags when it does.
    bool PostHeld(std::uint64_t page, std::uint64_t serial);
    void PostChange(std::uint64_t host, std::size_t bytes);

    CodeRegistry& registry_;
    std::atomic<bool>& attention_;
    unsigned index_ = 0;
    std::mutex mutex_;  // of what follows; taken behind a shard's
    bool running_ = false;
    CodeNews news_;
    std::atomic<bool> has_news_{false};
  };

  // Serialises locked operations that cross pages, which host memory cannot make atomic.
  std::mutex& split_lock() { return split_lock_; }

 private:
  struct Page {
    std::uint64_t holders = 0;
    std::uint64_t unconfirmed = 0;  // who may yet store without announcing
    std::uint64_t serial = 0;       // tells one time of being held from the next
  };
  struct Shard {
    mutable std::mutex mutex;
    absl::flat_hash_map<std::uint64_t, Page> pages;
  };
  static constexpr unsigned kShards = 64;

  Shard& ShardOf(std::uint64_t page) { return shards_[page % kShards]; }
  const Shard& ShardOf(std::uint64_t page) const { return shards_[page % kShards]; }
  bool alone() const { return member_count_.load(std::memory_order_relaxed) < 2; }

  std::array<Shard, kShards> shards_;
  std::array<Member*, kMaxProcessors> members_ = {};
  std::atomic<unsigned> member_count_{0};
  std::atomic<std::uint64_t> next_serial_{1};
  std::mutex split_lock_;
};

}  // namespace pagesaw::cpu
