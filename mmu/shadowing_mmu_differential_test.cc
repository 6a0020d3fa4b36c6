// Random guests against the shadow MMU: tables that point at one another, writes to them by the
// guest (seen or unseen) and by the host, invalidations, changes of every control bit that paging
// knows. A model of a processor with a TLB believes the SPTEs alone; after every access its verdict
// is compared with the walker's, and the shadow pages are searched for contradictions.
//
//   --seed=N     the first seed (default: 1)
//   --seconds=S  how long (default: 5)
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>

import pagesaw.core.access;
import pagesaw.core.address;
import pagesaw.core.guest_memory;
import pagesaw.core.page_format;
import pagesaw.core.page_walker;
import pagesaw.core.paging_state;
import pagesaw.core.shadow_mmu;
import pagesaw.mmu.cpu_walker;
import pagesaw.mmu.guest_tables;
import pagesaw.mmu.shadow_pages;
import pagesaw.mmu.shadowing_mmu;
import pagesaw.mmu.spte;
import pagesaw.mmu.test_memory;
import pagesaw.mmu.walk;

namespace pagesaw {
namespace {

unsigned g_seed = 1;
unsigned g_seconds = 5;

constexpr std::uint64_t kMemoryBytes = 8u << 20;
constexpr std::uint64_t kReadOnlyBase = 0x1000'0000;
constexpr unsigned kTables = 14;  // the first frames hold tables
constexpr unsigned kSteps = 3000;

struct Outcome {
  enum class Kind { kHost, kGuestFault, kDevice, kNone } kind = Kind::kNone;
  std::uint64_t value = 0;  // host address, error code or gpa
  bool operator==(const Outcome&) const = default;
};

std::string Words(const Outcome& outcome) {
  static constexpr const char* kNames[] = {"host", "guest fault", "device", "nothing"};
  char text[64];
  std::snprintf(text, sizeof(text), "%s %#llx", kNames[static_cast<int>(outcome.kind)],
                static_cast<unsigned long long>(outcome.value));
  return text;
}

class Guest final : public TlbFlusher {
 public:
  explicit Guest(unsigned seed)
      : random_(seed),
        memory_(kMemoryBytes),
        tables_(memory_, Features()),
        pages_(SpteCodec(LinearSpteFormat()), *this, Below(3) == 0 ? 24 : 400, &tables_),
        walker_(memory_),
        mmu_(ShadowingMmu::Make(pages_, memory_, tables_, walker_)) {
    memory_.AddSlot(Gpa(kReadOnlyBase), 1u << 20, true);
    state_.features = features_;
    for (unsigned i = 0; i < kTables * 40; ++i) WriteEntry();
    ChangeMode();
  }

  // One random step. A complaint, or nothing.
  std::optional<std::string> Step() {
    switch (Below(32)) {
      case 0:
        ChangeMode();
        break;
      case 1:
        ChangeBits();
        break;
      case 2:
        state_.cr3 = RandomRoot();
        Changed();
        break;
      case 3:
        state_.pkru = Below(2) == 0 ? 0 : random_();
        state_.pkrs = Below(2) == 0 ? 0 : random_();
        walker_.Reset(state_);
        tlb_.clear();
        break;
      case 4:
        Changed();
        break;
      case 5:
      case 6:
        HostWrites();
        break;
      case 7:
      case 8:
      case 9:
      case 10:
      case 11:
      case 12:
        if (auto complaint = GuestWrites()) return complaint;
        break;
      default:
        if (auto complaint = CheckedAccess()) return complaint;
    }
    if (Below(8) != 0) return std::nullopt;
    const ShadowPages::Lock lock = pages_.Acquire();
    return pages_.Audit();
  }

  void FlushAll() override { tlb_.clear(); }

  std::string Describe() const {
    char text[160];
    std::snprintf(text, sizeof(text), "cr0 %#llx cr3 %#llx cr4 %#llx efer %#llx pkru %#x pkrs %#x",
                  static_cast<unsigned long long>(state_.cr0),
                  static_cast<unsigned long long>(state_.cr3),
                  static_cast<unsigned long long>(state_.cr4),
                  static_cast<unsigned long long>(state_.efer), state_.pkru, state_.pkrs);
    return text;
  }

 private:
  std::uint64_t Below(std::uint64_t bound) { return random_() % bound; }
  bool Chance(unsigned in) { return Below(in) == 0; }

  PagingFeatures Features() {
    features_.physical_bits = static_cast<std::uint8_t>(36 + Below(16));
    features_.gib_pages = !Chance(4);
    features_.pse36_bits = 40;
    features_.root_bit8_reserved = Chance(2);
    features_.la57 = true;
    return features_;
  }

  // -- the guest's tables and registers

  std::uint64_t RandomFrame() {
    if (Chance(40)) return (kReadOnlyBase >> 12) + Below(4);
    if (Chance(40)) return 0x5'0000 + Below(4);
    return Chance(2) ? Below(kTables) : Below(64);
  }

  std::uint64_t RandomEntry() {
    std::uint64_t entry = RandomFrame() << 12;
    if (!Chance(12)) entry |= 1;
    if (!Chance(4)) entry |= 2;
    if (!Chance(4)) entry |= 4;
    if (!Chance(3)) entry |= 0x20;
    if (!Chance(3)) entry |= 0x40;
    if (Chance(6)) entry = (entry & ~std::uint64_t{0x1f'f000}) | 0x80;
    if (Chance(40)) entry |= 0x100;
    if (Chance(10)) entry |= std::uint64_t{1} << 63;
    if (Chance(10)) entry |= Below(16) << 59;
    if (Chance(60)) entry |= std::uint64_t{1} << (13 + Below(39));
    return entry;
  }

  unsigned RandomIndex(unsigned count) {
    static constexpr std::array<unsigned, 4> kLow = {0, 1, 2, 3};
    return Chance(4) ? count - 1 : kLow[Below(kLow.size())];
  }

  Gpa RandomEntryAddress(unsigned& bytes) {
    bytes = state_.mode() == PagingMode::k32Bit || Chance(8) ? 4 : 8;
    const unsigned index = RandomIndex(4096 / bytes);
    return Gpa((Below(kTables) << 12) + std::uint64_t{index} * bytes);
  }

  void Store(Gpa at, std::uint64_t value, unsigned bytes) {
    if (bytes == 4) {
      memory_.Write<std::uint32_t>(at, static_cast<std::uint32_t>(value));
    } else {
      memory_.Write<std::uint64_t>(at, value);
    }
  }

  void WriteEntry() {
    unsigned bytes = 8;
    const Gpa at = RandomEntryAddress(bytes);
    Store(at, RandomEntry(), bytes);
  }

  void HostWrites() {
    unsigned bytes = 8;
    const Gpa at = RandomEntryAddress(bytes);
    Store(at, RandomEntry(), bytes);
    pages_.GuestWrote(at, bytes);
  }

  std::uint64_t RandomRoot() {
    if (Chance(30)) return 0x5000'0000;
    return Below(5) << 12;
  }

  std::uint64_t RandomLinear() {
    if (state_.mode() == PagingMode::k32Bit) {
      return std::uint64_t{RandomIndex(1024)} << 22 | std::uint64_t{RandomIndex(1024)} << 12 |
             Below(4096);
    }
    std::uint64_t linear = Below(4096);
    for (unsigned level = 1; level <= 5; ++level) {
      linear |= std::uint64_t{RandomIndex(512)} << (12 + 9 * (level - 1));
    }
    if (!state_.long_mode()) return linear & 0xffff'ffff;
    const unsigned shift = 64 - state_.linear_bits();
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(linear << shift) >> shift);
  }

  Access RandomAccess() {
    const Privilege by = Chance(2) ? Privilege::kUser : Privilege::kSupervisor;
    const auto kind = Below(3);
    if (kind == 0) return Access::Fetch(by);
    const Access access = kind == 1 ? Access::Write(by) : Access::Read(by);
    return by == Privilege::kSupervisor && Chance(3) ? access.WithSmapWaived() : access;
  }

  void ChangeMode() {
    const auto mode = Below(9);
    state_.cr0 = kCr0Pe | (mode == 0 ? 0 : kCr0Pg);
    state_.cr4 = 0;
    state_.efer = 0;
    if (mode >= 3) state_.cr4 |= kCr4Pae;
    if (mode >= 5) state_.efer |= kEferLme | kEferLma;
    if (mode >= 7) state_.cr4 |= kCr4La57;
    state_.cr3 = RandomRoot();
    ChangeBits();
  }

  void ChangeBits() {
    const auto flip = [this](std::uint64_t& word, std::uint64_t bit, unsigned in) {
      word = Chance(in) ? word & ~bit : word | bit;
    };
    flip(state_.cr0, kCr0Wp, 2);
    flip(state_.cr4, kCr4Pse, 3);
    flip(state_.cr4, kCr4Smep, 2);
    flip(state_.cr4, kCr4Smap, 2);
    flip(state_.cr4, kCr4Pke, 2);
    flip(state_.cr4, kCr4Pks, 2);
    flip(state_.efer, kEferNxe, 4);
    Changed();
  }

  void Changed() {
    if (state_.mode() == PagingMode::kPae) {
      const std::uint64_t table = state_.cr3 & 0xffff'ffe0;
      for (unsigned i = 0; i < 4; ++i) {
        // Well-formed: the processor refuses others.
        const std::uint64_t pdpte = memory_.Find(GfnOf(Gpa(table))) == nullptr
                                        ? 0
                                        : memory_.Read<std::uint64_t>(Gpa(table + 8 * i));
        state_.pdptes[i] = pdpte & 0x0000'000f'ffff'f001;
      }
    }
    walker_.Reset(state_);
    mmu_->PagingChanged(state_);
    tlb_.clear();
    unseen_ = false;
  }

  // -- the processor

  void LoadRoot() {
    if (!mmu_->roots_obsolete()) return;
    root_ = mmu_->Root();
    tlb_.clear();
  }

  Outcome Run(std::uint64_t linear, Access access, bool& from_tlb) {
    from_tlb = false;
    const auto key = std::pair(linear >> 12, access.permission_row());
    for (unsigned tries = 0; tries < 12; ++tries) {
      LoadRoot();
      if (const auto found = tlb_.find(key); found != tlb_.end()) {
        from_tlb = true;
        return {Outcome::Kind::kHost, found->second | (linear & 0xfff)};
      }
      HostTableSpace<true> space;
      const WalkResult walk = WalkTables<AnyLayout>(mmu_->format(),
                                                    {.table = OutputAddress(root_.table.bits()),
                                                     .level = root_.level,
                                                     .address = InputAddress(linear),
                                                     .access = access,
                                                     .pkru = state_.pkru,
                                                     .pkrs = state_.pkrs},
                                                    space);
      if (walk) {
        tlb_[key] = walk->output.bits() & ~std::uint64_t{0xfff};
        return {Outcome::Kind::kHost, walk->output.bits()};
      }
      const FaultResolution result =
          mmu_->HandleFault({.address = InputAddress(linear),
                             .access = access,
                             .malformed = walk.fault().kind == WalkFault::Kind::kMalformed,
                             .linear = Gva(linear)});
      switch (result.outcome) {
        case FaultOutcome::kGuestFault:
          return {Outcome::Kind::kGuestFault, result.guest_fault.code.bits()};
        case FaultOutcome::kMmio:
          return {Outcome::Kind::kDevice, result.gpa.bits()};
        case FaultOutcome::kWriteProtected:
          lent_ = result.gpa;
          return {Outcome::Kind::kHost, result.host.bits()};
        default:
          break;
      }
    }
    return {};
  }

  Outcome Expected(std::uint64_t linear, Access access) const {
    const WalkResult walk =
        CpuWalker(memory_, state_).Inspect(InputAddress(linear), access, nullptr);
    if (!walk) return {Outcome::Kind::kGuestFault, walk.fault().code.bits()};
    const Gpa gpa = GpaOf(walk->output);
    const MemorySlot* slot = memory_.Find(GfnOf(gpa));
    if (slot == nullptr || (slot->read_only && access.is_write())) {
      return {Outcome::Kind::kDevice, gpa.bits()};
    }
    return {Outcome::Kind::kHost, reinterpret_cast<std::uintptr_t>(slot->HostOf(gpa))};
  }

  // A in every entry and D in the leaf of a write, except where memory cannot be written.
  bool HasAccessedDirty(std::uint64_t linear, Access access) const {
    WalkTrace trace;
    (void)CpuWalker(memory_, state_).Inspect(InputAddress(linear), access, &trace);
    for (const WalkStep& step : trace.steps()) {
      if (state_.mode() == PagingMode::kPae && step.level == Level::kPdpt) continue;
      if (memory_.Find(GfnOf(GpaOf(step.entry_address)))->read_only) continue;
      const std::uint64_t wanted = 0x20 | (step.leaf && access.is_write() ? 0x40 : 0);
      if ((step.entry & wanted) != wanted) return false;
    }
    return true;
  }

  std::string Trace(std::uint64_t linear, Access access) const {
    WalkTrace trace;
    (void)CpuWalker(memory_, state_).Inspect(InputAddress(linear), access, &trace);
    std::string words;
    for (const WalkStep& step : trace.steps()) {
      char text[64];
      std::snprintf(text, sizeof(text), "\n  at %#llx: %#llx",
                    static_cast<unsigned long long>(step.entry_address.bits()),
                    static_cast<unsigned long long>(step.entry));
      words += text;
    }
    (void)mmu_->Inspect(InputAddress(linear), access, &trace);
    for (const WalkStep& step : trace.steps()) {
      char text[64];
      std::snprintf(
          text, sizeof(text), "\n  SPTE of page %llu: %#llx",
          static_cast<unsigned long long>(ShadowPages::PageAt(Hpa(step.entry_address.bits()))->id),
          static_cast<unsigned long long>(step.entry));
      words += text;
    }
    return words;
  }

  std::optional<std::string> CheckedAccess() {
    const std::uint64_t linear = RandomLinear();
    const Access access = RandomAccess();
    bool from_tlb = false;
    if (unseen_ && Chance(4)) {
      (void)Run(linear, access, from_tlb);  // may be as it was before
      return std::nullopt;
    }
    if (unseen_ && Chance(3)) Changed();
    if (unseen_) {
      mmu_->Invalidate(Gva(linear));
      std::erase_if(tlb_, [&](const auto& entry) { return entry.first.first == linear >> 12; });
    }
    const Outcome want = Expected(linear, access);
    const Outcome got = Run(linear, access, from_tlb);
    char what[96];
    std::snprintf(what, sizeof(what),
                  "linear %#llx, row %u: ", static_cast<unsigned long long>(linear),
                  access.permission_row());
    if (got != want && Expected(linear, access) == want) {
      return what + Words(got) + ", want " + Words(want);
    }
    if (got.kind == Outcome::Kind::kHost && want == got && !HasAccessedDirty(linear, access)) {
      return std::string(what) + "A or D is missing" + (from_tlb ? " (TLB)" : "") +
             Trace(linear, access);
    }
    return std::nullopt;
  }

  // The guest stores an entry wherever some linear address leads it.
  std::optional<std::string> GuestWrites() {
    const std::uint64_t linear = RandomLinear() & ~std::uint64_t{7};
    const Access access = Access::Write(Privilege::kSupervisor).WithSmapWaived();
    lent_.reset();
    bool from_tlb = false;
    const Outcome got = Run(linear, access, from_tlb);
    if (got.kind != Outcome::Kind::kHost) return std::nullopt;
    *reinterpret_cast<std::uint64_t*>(got.value) = RandomEntry();
    if (lent_) {
      const Gpa page(lent_->bits() & ~std::uint64_t{0xfff});
      Chance(2) ? mmu_->GuestWrote(page, 4096) : mmu_->GuestWrote(*lent_, 8);
    } else {
      unseen_ = true;
    }
    return std::nullopt;
  }

  std::mt19937_64 random_;
  PagingFeatures features_;
  TestMemory memory_;
  GuestTables tables_;
  std::map<std::pair<std::uint64_t, unsigned>, std::uint64_t> tlb_;
  ShadowPages pages_;
  CpuWalker walker_;
  std::unique_ptr<ShadowingMmu> mmu_;
  PagingState state_;
  ShadowRoot root_;
  std::optional<Gpa> lent_;  // of the write that was made for the guest
  bool unseen_ = false;      // the guest wrote through SPTEs since all was last invalidated
};

TEST(ShadowingMmuDifferential, AgreesWithTheWalker) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(g_seconds);
  unsigned seed = g_seed;
  std::uint64_t steps = 0;
  for (; std::chrono::steady_clock::now() < end; ++seed) {
    Guest guest(seed);
    for (unsigned step = 0; step < kSteps; ++step, ++steps) {
      const std::optional<std::string> complaint = guest.Step();
      ASSERT_FALSE(complaint) << "seed " << seed << ", step " << step << ": " << *complaint << "\n"
                              << guest.Describe();
    }
  }
  std::printf("seeds %u to %u, %llu steps\n", g_seed, seed - 1,
              static_cast<unsigned long long>(steps));
}

}  // namespace
}  // namespace pagesaw

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const auto number = [&](std::string_view name, unsigned& value) {
      if (!argument.starts_with(name)) return;
      value = static_cast<unsigned>(std::strtoul(argv[i] + name.size(), nullptr, 10));
    };
    number("--seed=", pagesaw::g_seed);
    number("--seconds=", pagesaw::g_seconds);
  }
  std::printf("first seed %u\n", pagesaw::g_seed);
  return RUN_ALL_TESTS();
}
