// The software TLB: linear page -> host page, by kind of access. It holds only what a hardware walk
// over SPTEs found; whoever changes SPTEs flushes it.
module;
#include <array>
#include <cstdint>
export module pagesaw.cpu.tlb;

export namespace pagesaw::cpu {

// An entry that matches no address: bits 11:0 are never clear in it.
inline constexpr std::uint64_t kNoTag = ~std::uint64_t{0};

// Tags are linear page addresses. Each kind of access has its own, so that one compare decides
// presence and rights at once.
struct TlbEntry {
  std::uint64_t read_tag = kNoTag;
  std::uint64_t write_tag =
      kNoTag;  // only where the page is dirty in every table and holds no code
  std::uint64_t fetch_tag = kNoTag;
  std::uint64_t addend = 0;  // host address - linear address
};

inline constexpr unsigned kTlbEntries = 1024;

// Translations for one way of being privileged.
struct TlbBank {
  std::array<TlbEntry, kTlbEntries> entries;
  bool used = false;   // some entry is not empty
  bool large = false;  // some entry is a piece of a page of more than 4 KiB

  inline TlbEntry& At(std::uint64_t linear) { return entries[(linear >> 12) & (kTlbEntries - 1)]; }
};

// Which bank an access uses: rights differ by privilege and, under SMAP, by EFLAGS.AC.
enum class BankName : std::uint8_t {
  kSupervisor,            // explicit supervisor accesses with AC = 0, and implicit ones
  kSupervisorSmapWaived,  // explicit supervisor accesses with AC = 1
  kUser,
  kChecked,  // never filled: user accesses under alignment checking, each judged in the slow path
};

class Tlb {
 public:
  inline TlbBank& bank(BankName name) { return banks_[static_cast<unsigned>(name)]; }

  // Forgets everything.
  void Flush();
  // Forgets the page that holds `linear`; everything, if large pages are cached.
  void FlushPage(std::uint64_t linear);
  // Forgets every right to write to the host page that holds `host`: the next store there walks.
  void FlushWritesTo(std::uint64_t host);

 private:
  std::array<TlbBank, 4> banks_;
};

}  // namespace pagesaw::cpu
