module;
#include <atomic>
#include <cstddef>
#include <cstdint>
module pagesaw.plugins.vmx.msr_lists;

import pagesaw.plugins.vmx.capabilities;
import pagesaw.plugins.vmx.vmx_bits;

namespace pagesaw::vmx {
namespace {

constexpr std::uint64_t kEntryBytes = 16;

// One entry in memory: an index, 32 reserved bits, the value. The index is read once: what was
// checked is what is used.
class Entry {
 public:
  Entry(VirtHost& host, Gpa list, std::uint32_t number)
      : words_(reinterpret_cast<std::uint64_t*>(
            host.Memory(Gpa(list.bits() + number * kEntryBytes), kEntryBytes))),
        index_(words_ == nullptr ? 0 : std::atomic_ref(words_[0]).load()) {}

  bool there() const { return words_ != nullptr; }
  std::uint64_t index() const { return index_; }  // reserved bits, too
  std::uint64_t value() const { return std::atomic_ref(words_[1]).load(); }
  void set_value(std::uint64_t value) { std::atomic_ref(words_[1]).store(value); }

 private:
  std::uint64_t* const words_;
  const std::uint64_t index_;
};

// MSRs of the local APIC's registers, which no list may name.
bool IsX2apic(std::uint64_t index) { return index >> 8 == 8; }

bool MayBeLoaded(std::uint64_t index) {
  return index >> 32 == 0 && !IsX2apic(index) && index != kMsrFsBase && index != kMsrGsBase &&
         index != kMsrSmmMonitorControl;
}

bool MayBeStored(std::uint64_t index) {
  return index >> 32 == 0 && !IsX2apic(index) && index != kMsrSmBase;
}

}  // namespace

std::uint32_t LoadMsrs(VirtHost& host, Gpa list, std::uint32_t count) {
  for (std::uint32_t i = 0; i < count; ++i) {
    const Entry entry(host, list, i);
    if (i == kMsrListEntries || !entry.there() || !MayBeLoaded(entry.index()) ||
        !host.WriteMsr(static_cast<std::uint32_t>(entry.index()), entry.value())) {
      return i + 1;
    }
  }
  return 0;
}

std::uint32_t StoreMsrs(VirtHost& host, Gpa list, std::uint32_t count, std::uint64_t tsc) {
  for (std::uint32_t i = 0; i < count; ++i) {
    Entry entry(host, list, i);
    std::uint64_t value = 0;
    if (i == kMsrListEntries || !entry.there() || !MayBeStored(entry.index()) ||
        !host.ReadMsr(static_cast<std::uint32_t>(entry.index()), value)) {
      return i + 1;
    }
    entry.set_value(entry.index() == kMsrTsc ? tsc : value);
    host.Wrote(Gpa(list.bits() + i * kEntryBytes));
  }
  return 0;
}

}  // namespace pagesaw::vmx
