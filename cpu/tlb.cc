module;
#include <cstdint>
module pagesaw.cpu.tlb;

namespace pagesaw::cpu {

void Tlb::Flush() {
  for (TlbBank& bank : banks_) {
    if (!bank.used) continue;
    bank.entries.fill(TlbEntry{});
    bank.used = false;
    bank.large = false;
  }
}

void Tlb::FlushPage(std::uint64_t linear) {
  for (TlbBank& bank : banks_) {
    if (bank.large) {
      Flush();
      return;
    }
  }
  for (TlbBank& bank : banks_) bank.At(linear) = TlbEntry{};
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
