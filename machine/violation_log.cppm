// What memory attributes refused to the guest: who tried what, and what became of it.
module;
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>
export module pagesaw.machine.violation_log;

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.memory_attribute;

export namespace pagesaw {

// One access of a vCPU that an attribute refused.
struct Violation {
  std::uint64_t number = 0;  // in the VM, from 1
  unsigned vcpu = 0;
  std::uint64_t rip = 0;  // of the instruction that made it
  Gpa gpa = {};           // of the byte; of the entry where a guest's table was refused
  Gva linear = {};        // what the processor was accessing, 0 if nothing linear was
  // What was done to `gpa`, with the mode of the processor; at Stage::kTable a read of a guest's
  // table, or the setting of A or D there, on behalf of an access to `linear`.
  Access access = Access::Read(Privilege::kSupervisor);
  Stage stage = Stage::kFinal;
  Rights missing = {};  // the right that the attribute lacks
  MemoryAttribute attribute = {};
};

// "vCPU 0, rip 0x1000: user fetch of 0x5000 (linear 0x400000) needs XU, its attribute is R W XS"
std::string Describe(const Violation& violation);

// Any thread.
class ViolationLog {
 public:
  // The newest ones are kept.
  static constexpr std::size_t kKept = 256;

  // Numbers and keeps it.
  void Note(Violation violation);
  // Those kept, oldest first.
  std::vector<Violation> Recent() const;
  // How many there were of each policy.
  std::uint64_t count(ViolationPolicy policy) const {
    return counts_[static_cast<std::size_t>(policy)].load(std::memory_order_relaxed);
  }

  // Those that hold the VM: noted under ViolationPolicy::kStop since the last Release, the last of
  // each vCPU.
  std::vector<Violation> Holding() const;
  // The VM runs on.
  void Release();

 private:
  mutable std::mutex mutex_;
  std::uint64_t last_number_ = 0;
  std::deque<Violation> recent_;
  std::vector<Violation> holding_;
  std::array<std::atomic<std::uint64_t>, 4> counts_ = {};
};

}  // namespace pagesaw
