// 4-level page tables that a guest builds for itself, in identity-mapped memory.
#ifndef GUESTS_SUPPORT_PAGE_TABLES_H_
#define GUESTS_SUPPORT_PAGE_TABLES_H_

#include <stdint.h>

namespace guest {

// Entry bits. [intel/vol3] "4-Level Paging and 5-Level Paging"
inline constexpr uint64_t kPresent = 1u << 0;
inline constexpr uint64_t kWritable = 1u << 1;
inline constexpr uint64_t kUser = 1u << 2;
inline constexpr uint64_t kAccessed = 1u << 5;
inline constexpr uint64_t kDirty = 1u << 6;
inline constexpr uint64_t kPageSize = 1u << 7;
inline constexpr uint64_t kNoExecute = uint64_t{1} << 63;
inline constexpr uint64_t kAddressMask = 0x000f'ffff'ffff'f000;

// The level of the table that holds the leaf, 1 to 3.
enum class PageSize { k4K = 1, k2M = 2, k1G = 3 };
constexpr uint64_t BytesOf(PageSize size) {
  return uint64_t{1} << (3 + 9 * static_cast<int>(size));
}

class PageTables {
 public:
  // Takes frames for tables from [`frames`, `frames_end`). Exits with a message if they run out.
  PageTables(uint64_t frames, uint64_t frames_end);

  uint64_t root() const { return root_; }

  // Maps one page; an older mapping of the same size is replaced. Tables above grant everything
  // that `flags` might. Does not flush.
  void Map(uint64_t linear, uint64_t physical, PageSize size, uint64_t flags);

  // The entry for `linear` in the table of `level`, which must exist.
  uint64_t& Entry(uint64_t linear, int level);

  uint64_t frames_used() const { return used_; }

 private:
  uint64_t NewTable();
  uint64_t& Descend(uint64_t linear, int level, bool make);

  uint64_t next_, end_, used_ = 0;
  uint64_t root_;
};

}  // namespace guest

#endif  // GUESTS_SUPPORT_PAGE_TABLES_H_
