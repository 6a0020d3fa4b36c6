module;
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
module pagesaw.cpu.tlb;

namespace pagesaw::cpu {

void KeyedPages::Add(std::uint64_t linear, unsigned key) {
  linear &= ~std::uint64_t{0xfff};
  for (const Page& page : pages()) {
    if (page.linear == linear && page.key == key) return;
  }
  if (count_ == pages_.size()) {
    lost_some_ = true;
  } else {
    pages_[count_++] = {linear, key};
  }
}

void Tlb::NoteKey(std::uint64_t linear, unsigned key) {
  keys_used_ |= 1u << key;
  if (key != 0) keyed_.Add(linear, key);
}

void Tlb::FlushKeys(unsigned keys) {
  if ((keys & keys_used_) == 0) return;
  const auto forget_data = [](TlbEntry& entry) { entry.read_tag = entry.write_tag = kNoTag; };
  const bool all = (keys & 1) != 0 || keyed_.lost_some();
  for (TlbBank& bank : banks_) {
    if (all) {
      bank.used.ForEach([&](unsigned index) { forget_data(bank.entries[index]); });
      continue;
    }
    for (const KeyedPages::Page& page : keyed_.pages()) {
      if ((keys >> page.key & 1) != 0) forget_data(bank.At(page.linear));
    }
  }
  if (all) {
    keyed_.Clear();
    keys_used_ = 0;
  }
}

void Tlb::Flush() {
  for (TlbBank& bank : banks_) {
    bank.used.ForEach([&](unsigned index) { bank.entries[index] = TlbEntry{}; });
    bank.used.Clear();
  }
  pieces_2m_.reset();
  pieces_1g_.reset();
  keyed_.Clear();
  keys_used_ = 0;
  code_.Clear();
}

bool Tlb::FlushPage(std::uint64_t linear) {
  // A 4 MiB page counts as one of 1 GiB: what goes too much comes back by itself.
  if (pieces_1g_[RegionOf(linear, k1gShift)]) return FlushRegion(linear, k1gShift);
  if (pieces_2m_[RegionOf(linear, k2mShift)]) return FlushRegion(linear, k2mShift);
  for (TlbBank& bank : banks_) bank.At(linear) = TlbEntry{};
  return HoldsCode(linear, kPageShift);
}

bool Tlb::FlushRegion(std::uint64_t linear, unsigned shift) {
  const auto inside = [=](std::uint64_t tag) { return tag >> shift == linear >> shift; };
  const unsigned count = std::min(1u << (shift - kPageShift), kTlbEntries);
  const unsigned first = TlbIndex(linear) & ~(count - 1);
  for (TlbBank& bank : banks_) {
    bank.used.ForEach(first, count, [&](unsigned index) {
      TlbEntry& entry = bank.entries[index];
      if (inside(entry.read_tag) || inside(entry.write_tag) || inside(entry.fetch_tag)) {
        entry = TlbEntry{};
        bank.used.Remove(index);
      }
    });
  }
  return HoldsCode(linear, shift);
}

// Whether code was noted in the region of `linear`, or may have been.
bool Tlb::HoldsCode(std::uint64_t linear, unsigned shift) const {
  const auto inside = [&](unsigned index) {
    const std::uint64_t page = code_pages_[index];
    return page == kManyPages || page >> (shift - kPageShift) == linear >> shift;
  };
  if (shift == kPageShift) return code_.Has(TlbIndex(linear)) && inside(TlbIndex(linear));
  const unsigned count = std::min(1u << (shift - kPageShift), kTlbEntries);
  bool found = false;
  code_.ForEach(TlbIndex(linear) & ~(count - 1), count,
                [&](unsigned index) { found = found || inside(index); });
  return found;
}

void Tlb::FlushWrites() {
  for (TlbBank& bank : banks_) {
    bank.used.ForEach([&](unsigned index) { bank.entries[index].write_tag = kNoTag; });
  }
}

void Tlb::AnnounceWritesTo(std::uint64_t host) {
  for (TlbBank& bank : banks_) {
    bank.used.ForEach([&](unsigned index) {
      TlbEntry& entry = bank.entries[index];
      if ((entry.write_tag + entry.addend) >> 12 == host >> 12) entry.write_tag |= kAnnounced;
    });
  }
}

}  // namespace pagesaw::cpu
