// Guest tables whose walk marks A and D: the logs of written pages hear of it.
export module pagesaw.mmu.logged_tables;

import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.page_walker;
import pagesaw.mmu.dirty_log;
import pagesaw.mmu.memory_attributes;
import pagesaw.mmu.walk;

export namespace pagesaw {

// Guest memory whose logs hear of entries that are updated, once they have been: told before, they
// might be read between, and the next reading miss the change.
class LoggedTableSpace : public GuestTableSpace<true> {
 public:
  // `logs` and `attributes` may be null.
  LoggedTableSpace(const GuestMemory& memory, const DirtyLogs* logs,
                   const MemoryAttributes* attributes)
      : GuestTableSpace(memory, attributes), logs_(logs) {}
  ~LoggedTableSpace() { Tell(); }
  LoggedTableSpace(const LoggedTableSpace&) = delete;
  LoggedTableSpace& operator=(const LoggedTableSpace&) = delete;

  inline EntryUpdate PrepareUpdate(OutputAddress at) {
    const EntryUpdate update = GuestTableSpace::PrepareUpdate(at);
    if (logs_ == nullptr || update != EntryUpdate::kAllowed) return update;
    Tell();
    updated_ = at;
    any_ = true;
    return update;
  }

 private:
  inline void Tell() {
    if (any_) logs_->Mark(GpaOf(updated_), 1);
  }

  const DirtyLogs* logs_;
  OutputAddress updated_ = {};
  bool any_ = false;
};

}  // namespace pagesaw
