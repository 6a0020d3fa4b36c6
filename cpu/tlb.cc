module;
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
    if (!bank.used) continue;
    if (all) {
      for (TlbEntry& entry : bank.entries) forget_data(entry);
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
    if (!bank.used) continue;
    bank.entries.fill(TlbEntry{});
    bank.used = false;
  }
  pieces_2m_.reset();
  pieces_1g_.reset();
  keyed_.Clear();
  keys_used_ = 0;
  code_.reset();
}

bool Tlb::FlushPage(std::uint64_t linear) {
  // A 4 MiB page counts as one of 1 GiB: what goes too much comes back by itself.
  if (pieces_1g_[RegionOf(linear, k1gShift)]) return FlushRegion(linear, k1gShift);
  if (pieces_2m_[RegionOf(linear, k2mShift)]) return FlushRegion(linear, k2mShift);
  for (TlbBank& bank : banks_) bank.At(linear) = TlbEntry{};
  return code_[(linear >> 12) & (kTlbEntries - 1)];
}

bool Tlb::FlushRegion(std::uint64_t linear, unsigned shift) {
  const auto inside = [=](std::uint64_t tag) { return tag >> shift == linear >> shift; };
  for (TlbBank& bank : banks_) {
    if (!bank.used) continue;
    for (TlbEntry& entry : bank.entries) {
      if (inside(entry.read_tag) || inside(entry.write_tag) || inside(entry.fetch_tag)) {
        entry = TlbEntry{};
      }
    }
  }
  return HoldsCode(linear, shift);
}

// Whether code was noted in the region of `linear`.
bool Tlb::HoldsCode(std::uint64_t linear, unsigned shift) const {
  const std::uint64_t pages = std::uint64_t{1} << (shift - 12);
  if (pages >= kTlbEntries) return code_.any();
  const std::uint64_t first = (linear >> shift << (shift - 12)) & (kTlbEntries - 1);
  for (std::uint64_t i = 0; i < pages; ++i) {
    if (code_[first + i]) return true;
  }
  return false;
}

void Tlb::FlushWrites() {
  for (TlbBank& bank : banks_) {
    if (!bank.used) continue;
    for (TlbEntry& entry : bank.entries) entry.write_tag = kNoTag;
  }
}

void Tlb::FlushWritesTo(std::uint64_t host) {
  for (TlbBank& bank : banks_) {
    if (!bank.used) continue;
    for (TlbEntry& entry : bank.entries) {
      if ((entry.write_tag + entry.addend) >> 12 == host >> 12) entry.write_tag = kNoTag;
    }
  }
}

}  // namespace pagesaw::cpu
