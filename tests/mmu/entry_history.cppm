// What the words of a guest's memory have been: which values a processor that has not invalidated
// since some moment may still translate by.
module;
#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>
export module pagesaw.tests.mmu.entry_history;

export namespace pagesaw {

class EntryHistory {
 public:
  // Moments count up from 1.
  std::uint64_t now() const { return now_; }

  // The 8 bytes at `address`, a multiple of 8, which were `old`, are about to change.
  void Changes(std::uint64_t address, std::uint64_t old) {
    old_[address].push_back({.until = ++now_, .value = old});
  }
  // Nobody can use what the words from `first` to `last` were any more.
  void Forget(std::uint64_t first, std::uint64_t last) {
    old_.erase(old_.lower_bound(first), old_.upper_bound(last));
  }
  // Nobody can use what any word was before `moment`.
  void ForgetBefore(std::uint64_t moment) {
    for (auto word = old_.begin(); word != old_.end();) {
      std::erase_if(word->second, [moment](const Old& old) { return old.until <= moment; });
      word = word->second.empty() ? old_.erase(word) : std::next(word);
    }
  }

  // The values that the word at `address`, which now is `value`, has had since `moment`, the
  // present one first, each once.
  std::vector<std::uint64_t> Since(std::uint64_t moment, std::uint64_t address,
                                   std::uint64_t value) const {
    std::vector<std::uint64_t> values = {value};
    const auto found = old_.find(address);
    if (found == old_.end()) return values;
    for (const Old& old : found->second) {
      const bool known = std::find(values.begin(), values.end(), old.value) != values.end();
      if (old.until > moment && !known) values.push_back(old.value);
    }
    return values;
  }

 private:
  struct Old {
    std::uint64_t until = 0;
    std::uint64_t value = 0;
  };
  std::uint64_t now_ = 1;
  std::map<std::uint64_t, std::vector<Old>> old_;
};

}  // namespace pagesaw
