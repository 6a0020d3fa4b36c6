// Time that follows from what a guest of one vCPU executes, and from nothing of the host.
module;
#include <atomic>
#include <cstdint>
export module pagesaw.core.virtual_time;

export namespace pagesaw {

// Nanoseconds since the VM began to run: those of its instructions, and those that it slept
// through. The processor counts instructions, the machine skips; any thread reads.
class VirtualTime {
 public:
  // A processor of 250 million instructions a second.
  static constexpr std::uint64_t kNsPerInstruction = 4;

  std::uint64_t NowNs() const { return NsAt(instructions_.load(std::memory_order_relaxed)); }
  // The same when `instructions` have been executed.
  std::uint64_t NsAt(std::uint64_t instructions) const {
    return instructions * kNsPerInstruction + skipped_ns_.load(std::memory_order_relaxed);
  }

  void SetInstructions(std::uint64_t count) {
    instructions_.store(count, std::memory_order_relaxed);
  }
  // Nothing happens until `ns`, while no instruction is executed.
  void SkipTo(std::uint64_t ns) {
    const std::uint64_t now = NowNs();
    if (ns > now) skipped_ns_.fetch_add(ns - now, std::memory_order_relaxed);
  }

 private:
  std::atomic<std::uint64_t> instructions_{0}, skipped_ns_{0};
};

}  // namespace pagesaw
