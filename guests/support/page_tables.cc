#include "guests/support/page_tables.h"

#include "guests/support/console.h"
#include "guests/support/processor.h"

namespace guest {
namespace {

uint64_t* TableAt(uint64_t physical) {
  return reinterpret_cast<uint64_t*>(static_cast<uintptr_t>(physical));
}

unsigned IndexOf(uint64_t linear, int level) {
  return static_cast<unsigned>(linear >> (3 + 9 * level)) & 511;
}

}  // namespace

PageTables::PageTables(uint64_t frames, uint64_t frames_end) : next_(frames), end_(frames_end) {
  root_ = NewTable();
}

uint64_t PageTables::NewTable() {
  if (next_ == end_) {
    Print("out of frames for page tables\n");
    Exit(1);
  }
  const uint64_t table = next_;
  for (unsigned i = 0; i < 512; ++i) TableAt(table)[i] = 0;
  next_ += 4096;
  ++used_;
  return table;
}

uint64_t& PageTables::Descend(uint64_t linear, int level, bool make) {
  uint64_t table = root_;
  for (int at = 4; at > level; --at) {
    uint64_t& entry = TableAt(table)[IndexOf(linear, at)];
    if ((entry & kPresent) == 0) {
      if (!make) {
        Print("no table at level ", uint64_t(at - 1), " for ", Hex{linear}, "\n");
        Exit(1);
      }
      entry = NewTable() | kPresent | kWritable | kUser;
    }
    table = entry & kAddressMask;
  }
  return TableAt(table)[IndexOf(linear, level)];
}

void PageTables::Map(uint64_t linear, uint64_t physical, PageSize size, uint64_t flags) {
  const uint64_t large = size == PageSize::k4K ? 0 : kPageSize;
  Descend(linear, static_cast<int>(size), true) = physical | flags | large | kPresent;
}

uint64_t& PageTables::Entry(uint64_t linear, int level) { return Descend(linear, level, false); }

}  // namespace guest
