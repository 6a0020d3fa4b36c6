module;
#include <cstdint>
module pagesaw.cpu.tlb;

namespace pagesaw::cpu {

void Tlb::Flush() {
  for (TlbBank& bank : banks_) {
    if (!bank.used) continue;
    bank.entries.fill(TlbEntry{});
    bank.used = false;
  }
  pieces_2m_.reset();
  pieces_1g_.reset();
}

void Tlb::FlushPage(std::uint64_t linear) {
  // A 4 MiB page counts as one of 1 GiB: what goes too much comes back by itself.
  if (pieces_1g_[RegionOf(linear, k1gShift)]) return FlushRegion(linear, k1gShift);
  if (pieces_2m_[RegionOf(linear, k2mShift)]) return FlushRegion(linear, k2mShift);
  for (TlbBank& bank : banks_) bank.At(linear) = TlbEntry{};
}

void Tlb::FlushRegion(std::uint64_t linear, unsigned shift) {
  const auto inside = [=](std::uint64_t tag) { return tag >> shift == linear >> shift; };
  for (TlbBank& bank : banks_) {
    if (!bank.used) continue;
    for (TlbEntry& entry : bank.entries) {
      if (inside(entry.read_tag) || inside(entry.write_tag) || inside(entry.fetch_tag)) {
        entry = TlbEntry{};
      }
    }
  }
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
